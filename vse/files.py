"""Files that are written completely or not at all, and folders that only one process may use at a time."""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from vse.errors import InputError

_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")  # the names of files that are being written, see write_file


def check_target(path: Path) -> None:
    """Check that a path can be written to, so that a long computation is not lost at its end.

    Args:
        path: The file to write.

    Raises:
        InputError: The path is not a file's, or its folder is missing or cannot be written to.
    """
    _check_name(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        problem = "cannot be written" if path.parent.is_dir() else "no such folder"
        raise InputError(f"{path.parent}: {problem}; expected a folder for {path.name}")


def _check_name(path: Path) -> None:
    if not path.name or (path.exists() and not path.is_file()):
        raise InputError(f"{path}: expected the name of a file")


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file completely or not at all.

    Args:
        path: The file. Its previous content is kept until the new content is complete on disk.
        write: Writes the new content; it is called with a file that is open for bytes.

    Raises:
        InputError: The disk is full, or the path cannot be written to.
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


def remove_unfinished(folder: Path) -> None:
    """Remove the files that :func:`write_file` has left in a folder when its process was killed.

    Args:
        folder: The folder. Nobody else writes there now.
    """
    for path in folder.glob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8, completely or not at all.

    Args:
        path: The file. Its previous content is kept until the new content is complete on disk.
        text: The new content.
        errors: What becomes of characters that UTF-8 does not have, as in :meth:`str.encode`. Python reads a file's
            name that is not UTF-8 with such characters; text for people shows them with "backslashreplace".

    Raises:
        InputError: The disk is full, or the path cannot be written to.
    """
    write_file(path, lambda file: file.write(text.encode(errors=errors)))


def write_json(path: Path, content: object) -> None:
    """Write plain values to a JSON file, completely or not at all.

    Args:
        path: The file. Its previous content is kept until the new content is complete on disk.
        content: The values.

    Raises:
        InputError: The disk is full, or the path cannot be written to.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def claim_folder(folder: Path, label: str = "run.dir", doing: str = "training") -> Iterator[None]:
    """Create a folder and lock it until the block or the process ends.

    Args:
        folder: The folder.
        label: The setting that names it, for messages.
        doing: What another process that has locked it is doing, for messages.

    Raises:
        InputError: The folder cannot be written to, or another process has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise InputError(f"{label}: cannot write in {folder} ({error.strerror})") from None
    with lock:
        try:
            _lock(lock)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # any other error: the file system has no locks
                raise InputError(f"{label}: another process is {doing} in {folder}") from None
        remove_unfinished(folder)
        yield


def _lock(file: TextIO) -> None:
    """Lock an open file; the system removes the lock when the process ends, however it ends.

    Raises OSError when another process has the lock. Where Python has no file locks, nothing is locked.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    try:
        import fcntl
    except ImportError:
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the loader's workers do not inherit it
