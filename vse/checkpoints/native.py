"""Checkpoints: dicts of tensors and plain values, written whole or not at all."""

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from vse.checkpoints.official import native_state
from vse.errors import InputError, first_line
from vse.files import write_file
from vse.safe_load import is_state_dict, read_weights

FORMAT = "vse checkpoint 1"
_LARGEST = 1 << 24  # rows or widths that are no mistake


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises InputError, and keeps the old one, when a weight is not finite: such a state is of no use.
    """
    for name, value in state["model"].items():
        if not value.isfinite().all():
            raise InputError(f"{name} is no longer finite; {path} is left as it was; try a lower optim.lr")
    write_file(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package, or of an official code, onto the CPU; nothing in the file is executed.

    Raises InputError, naming the file, when it is missing, truncated, or of another kind.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    _check_archive(path)
    _, state = read_weights(path, "a checkpoint of vse, VSE∞, PVSE, VSE-2AD or DivE")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        try:
            official = native_state(state)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if official is None:
            found = ", ".join(sorted(map(str, state))[:6]) if isinstance(state, dict) else type(state).__name__
            raise InputError(f"{path}: not a checkpoint of vse or of an official code (found: {found})")
        return official
    missing = [key for key in ("config", "vocabulary", "in_dim", "model") if key not in state]
    if missing:
        raise InputError(f"{path}: an incomplete checkpoint: it lacks {', '.join(missing)}")
    kinds = {
        "config": isinstance(state["config"], dict),
        "vocabulary": _is_vocabulary(state["vocabulary"]),
        "architectures": _is_architectures(state.get("architectures", {})),
        "in_dim": state["in_dim"] is None or (isinstance(state["in_dim"], int) and 0 < state["in_dim"] < _LARGEST),
        "model": is_state_dict(state["model"]),
    }
    if wrong := [key for key, right in kinds.items() if not right]:
        raise InputError(f"{path}: a damaged checkpoint: its {', '.join(wrong)} is of another kind than it should be")
    return {key: value for key, value in state.items() if key != "assumed"}  # which only an official one says


def _check_archive(path: Path) -> None:
    """Raise InputError for a torch file that is not whole: its end and its checksums tell, before anything is read."""
    try:
        with open(path, "rb") as file:
            if not b"PK".startswith(file.read(2)):
                return  # of a torch before 1.6
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError):
        raise InputError(f"{path}: truncated, or not a checkpoint of vse") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    if damaged:
        raise InputError(f"{path}: damaged: the checksum of its part {damaged} is wrong")


def _is_architectures(state: Any) -> bool:
    """Whether it is the architectures of encoders, each as a dict."""
    return isinstance(state, dict) and all(isinstance(architecture, dict) for architecture in state.values())


def _is_vocabulary(state: Any) -> bool:
    """Whether it is a list of words, or what a tokenizer, or a note that one is missing, is made from."""
    if isinstance(state, dict) and "rows" in state:
        rows_fit = type(state["rows"]) is int and 0 < state["rows"] < _LARGEST
        return set(state) == {"rows", "file"} and rows_fit and isinstance(state["file"], str)
    if isinstance(state, dict):
        numbers = all(state.get(key) is None or type(state[key]) is int for key in ("mask", "max_length"))
        return set(state) == {"content", "mask", "max_length"} and isinstance(state["content"], str) and numbers
    return isinstance(state, list) and all(isinstance(word, str) for word in state)


def find_checkpoint(path: str | Path) -> Path:
    """Return a run folder's best.pt (last.pt before the first validation), or the file itself."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.pt", "last.pt"):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path}: no best.pt or last.pt in this folder; expected a run folder or a checkpoint")
    if not path.exists():
        raise InputError(f"{path}: no such run folder or checkpoint")
    return path
