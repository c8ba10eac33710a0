"""Published weights and checkpoints, read without running anything."""

import argparse
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vse.errors import InputError, first_line

# What a file may name beside tensors and plain values: an official code's options, and numpy's numbers, as scores are.
_scalar = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def read_weights(file: str | Path, what: str) -> tuple[Path, Any]:
    """Content of a torch file, and its path with the ~ expanded; nothing in it is executed.

    Raises InputError, naming the file and ``what`` was expected, when it is missing, or wants more than tensors, plain
    values and the options of a command line.
    """
    path = Path(os.path.expanduser(file))
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another protocol
            return path, torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as weights ({error.strerror or first_line(error)})") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever an unpickler raises for text, truncated files, or more than tensors
        problem = "it is no torch file, is truncated, or holds more than tensors"
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            problem = f"it asks for {wanted[1]}, and nothing that a file asks for is run"
        raise InputError(f"{path}: cannot be read as weights ({problem}); expected {what}") from None


def is_state_dict(content: Any) -> bool:
    """Whether it is a dict of plain tensors by name, all of whose numbers are there."""
    return isinstance(content, dict) and all(
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        for key, value in content.items()
    )
