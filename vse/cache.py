"""The user's cache folder: what can be computed again, kept so that the next start is faster.

The folder is ``$VSE_CACHE``, or else ``vse`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may be removed at any time.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from vse.errors import InputError
from vse.files import write_file


def _path(kind: str, key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.environ.get("VSE_CACHE") or os.path.join(base, "vse")
    return Path(folder) / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def load(kind: str, key: str) -> dict[str, np.ndarray] | None:
    """Return arrays that were kept.

    Args:
        kind: What they are, for the name of the file.
        key: Everything that they were computed from, as a text.

    Returns:
        The arrays by name; None if there are none, or the file is damaged or cannot be read.
    """
    try:
        with np.load(_path(kind, key), allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except Exception:  # a damaged archive raises all kinds; its checksums tell that it is damaged
        return None


def save(kind: str, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays for a later :func:`load`; without a folder that can be written to, nothing is kept.

    Processes that save the same at the same time replace one another's complete file.

    Args:
        kind: What they are, for the name of the file.
        key: Everything that they were computed from, as a text.
        arrays: The arrays by name.
    """
    path = _path(kind, key)
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
