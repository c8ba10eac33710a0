"""Files that are written whole or not at all, and folders that one process holds alone."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vse.errors import InputError


def check_target(path: Path) -> None:
    """Raise InputError for a place that no file can be written to, before the work that it is for."""
    _check_name(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        problem = "cannot be written" if path.parent.is_dir() else "no such folder"
        raise InputError(f"{path.parent}: {problem}; expected a folder for {path.name}")


def _check_name(path: Path) -> None:
    if not path.name or (path.exists() and not path.is_file()):
        raise InputError(f"{path}: expected the name of a file")


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(binary file)`` for a new file that takes ``path``'s place only once it is complete on disk.

    Raises InputError when the disk is full or the place cannot be written; what stood at ``path`` is kept.
    """
    _check_name(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as a RuntimeError around the file's OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        kept = "; the previous one is kept" if path.exists() else ""
        raise InputError(f"{path}: cannot be written ({cause.strerror}){kept}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def claim_folder(folder: Path, label: str = "run.dir", doing: str = "training") -> Iterator[None]:
    """Create a folder and hold it alone. Raises InputError when it cannot be written or another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise InputError(f"{label}: cannot write in {folder} ({error.strerror})") from None
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by the loader's workers
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # any other: a file system without locks
                raise InputError(f"{label}: another process is {doing} in {folder}") from None
        for unfinished in folder.glob(".*.tmp"):  # of a run that was killed while writing
            unfinished.unlink()
        yield
