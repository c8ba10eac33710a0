"""Published weights, read without running anything."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vse.errors import InputError, first_line


def read_weights(file: str | Path, what: str) -> tuple[Path, Any]:
    """Content of a torch file, and its path with the ~ expanded; nothing in it is executed.

    Raises InputError, naming the file and ``what`` was expected, when it is missing or holds more than tensors and
    plain values.
    """
    path = Path(os.path.expanduser(file))
    try:
        return path, torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as weights ({error.strerror or first_line(error)})") from None
    except MemoryError:
        raise
    except Exception:  # whatever an unpickler raises for text, truncated files, or more than tensors
        problem = "it is no torch file, is truncated, or holds more than tensors"
        raise InputError(f"{path}: cannot be read as weights ({problem}); expected {what}") from None


def is_state_dict(content: Any) -> bool:
    """Whether it is a dict of plain tensors by name."""
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        for key, value in content.items()
    )
