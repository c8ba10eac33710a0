"""Read published weights and checkpoints without running any code that they contain."""

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

# Besides tensors and plain values a file may contain the options of an official code and the numbers of NumPy, since
# some codes save their scores as such.
_scalar = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def read_weights(file: str | Path, what: str) -> tuple[Path, Any]:
    """Read a file that torch or safetensors has written, without running any code that it contains.

    Args:
        file: The file; a ~ is expanded.
        what: What the file should be, for messages.

    Returns:
        The path with the ~ expanded, and the content.

    Raises:
        InputError: The file is missing or damaged, or contains more than tensors, plain values and the options of a
            command line.
    """
    path = Path(os.path.expanduser(file))
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another protocol
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return path, load_file(path)
            return path, torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as weights ({error.strerror or first_line(error)})") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever an unpickler raises for text, truncated files, or more than tensors
        problem = "it is not a torch file, is truncated, or contains more than tensors"
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            problem = f"it wants to run {wanted[1]}, which is not allowed"
        raise InputError(f"{path}: cannot be read as weights ({problem}); expected {what}") from None


def is_state_dict(content: Any) -> bool:
    """Whether something is a dict of dense tensors by name whose storage is complete."""
    return isinstance(content, dict) and all(
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        for key, value in content.items()
    )
