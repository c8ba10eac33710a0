"""Exported models: a folder with safetensors, a JSON file and the tokenizer, which any platform and program can read.

It holds what a checkpoint holds for evaluation (:class:`vse.checkpoints.native.EvaluationState`), and nothing in it is
executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vse.errors import InputError, first_line
from vse.files import write_file, write_text

FORMAT = "vse export"
VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer/tokenizer.json"


def write_exported(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the files of an exported model.

    Args:
        folder: The folder to write into, which exists.
        state: An :class:`vse.checkpoints.native.EvaluationState`.

    Raises:
        InputError: A file cannot be written.
    """
    from safetensors.torch import save

    about = {"format": FORMAT, "version": VERSION, **{key: value for key, value in state.items() if key != "model"}}
    if _is_tokenizer(state["vocabulary"]):
        about["vocabulary"] = {key: value for key, value in state["vocabulary"].items() if key != "content"}
        (folder / TOKENIZER).parent.mkdir()
        write_text(folder / TOKENIZER, state["vocabulary"]["content"])
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / CONFIG, text)
    weights = {key: value.cpu().clone().contiguous() for key, value in state["model"].items()}
    write_file(folder / WEIGHTS, lambda file: file.write(save(weights, {"format": "pt"})))


def read_exported(file: Path) -> dict[str, Any]:
    """Read an exported model.

    Args:
        file: The file of its weights; the others lie beside it.

    Returns:
        The fields of :class:`vse.checkpoints.native.EvaluationState`, not yet checked.

    Raises:
        InputError: A file, which the message names, is missing, damaged or of another kind.
    """
    path = file.with_name(CONFIG)
    try:
        state = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({first_line(error)})") from None
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not of an exported model; expected what `vse export` writes beside {file.name}")
    version = state.pop("version", None)
    if version != VERSION:
        raise InputError(f"{path}: an exported model of version {version}; this version of vse reads {VERSION}")
    if _is_tokenizer(state.get("vocabulary")):
        state["vocabulary"] = {**state["vocabulary"], "content": _read(file.parent / TOKENIZER)}
    return {**state, "model": _read_weights(file)}


def _is_tokenizer(vocabulary: Any) -> bool:
    """Whether the state of a vocabulary is a tokenizer's, and neither words nor a note that they are missing."""
    return isinstance(vocabulary, dict) and "mask" in vocabulary


def _read(path: Path) -> str:
    """The text of a file. Raises InputError, which names it."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected it beside the weights of an exported model") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None


def _read_weights(file: Path) -> Any:
    """The tensors in a file of safetensors. Raises InputError for another file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file}: truncated, or not a file of safetensors ({first_line(error)})") from None
