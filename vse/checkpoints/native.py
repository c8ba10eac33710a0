"""The format of checkpoints: this module alone knows what they contain and how they are written, read and found.

A checkpoint is a dict of tensors and plain values, so that ``torch.load(..., weights_only=True)`` reads it. The classes
below list its fields. A file also has the fields ``format`` and ``version``.
"""

import lzma
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from vse.build import Words
from vse.checkpoints.exported import WEIGHTS, read_exported
from vse.checkpoints.hub import PREFIX, download
from vse.checkpoints.official import native_state
from vse.config import Config
from vse.data.subwords import Subwords
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.encoders.base import traits_of
from vse.errors import InputError, first_line
from vse.files import write_file
from vse.model import VSEModel
from vse.safe_load import is_state_dict, read_weights

FORMAT = "vse checkpoint"
VERSION = 2
_FORMAT_1 = "vse checkpoint 1"  # version 1 had its number in the format and no field "version"
_LARGEST = 1 << 24  # more rows or a greater width must be a mistake


class EvaluationState(TypedDict):
    """The fields of every checkpoint: all that evaluation needs, so that no other file is read."""

    config: dict[str, Any]  # the resolved config, as `Config.model_dump()` gives it
    vocabulary: Any  # a list of words, a tokenizer's state, or a note that the vocabulary is missing
    architectures: dict[str, dict[str, Any]]  # of the encoders that were read from a file, by "image" or "text"
    in_dim: int | None  # width of the precomputed features; None for pictures and clips
    model: dict[str, Tensor]  # the model's state dict


class Source(TypedDict):
    """The checkpoint that a run started from."""

    path: str
    sha256: str  # of the file


class RunState(EvaluationState):
    """The additional fields of a run's checkpoints."""

    criterion: dict[str, Tensor]  # the state dict of the loss, such as a learned temperature
    source: Source | None  # the checkpoint that the run started from (train.start_from); may be missing in a file
    epoch: int  # number of finished epochs
    start: dict[str, float]  # health of the embedding sets on the first batch, before the first update


class BestState(RunState):
    """The content of best.pt."""

    dev: dict[str, Any]  # the metrics on the dev split


class TrainingState(RunState):
    """The content of last.pt: all that a run needs to continue exactly from here."""

    step: int  # number of steps done in the current epoch
    best: dict[str, Any]  # {"rsum" or another eval.best: the best on dev so far, "epoch": when; None before the first}
    history: list[float]  # the dev score of every evaluation, for schedule and patience: greater is better
    evaluated: int | None  # number of steps before the last evaluation; may be missing in a file
    epoch_loss: tuple[float, int]  # sum of the losses of the current epoch, and of how many steps; may be missing
    average: dict[str, Any] | None  # what `vse.training.average.WeightAverage.state()` gives; may be missing in a file
    train_captions: int  # number of training captions: another number means another data set
    digests: dict[str, str] | None  # of the captions of "train" and "dev"; may be missing in a file
    optimiser: dict[str, Any]  # its state dict
    scaler: dict[str, Any]  # the state dict of the fp16 loss scaler
    queue: dict[str, Any] | None  # what `vse.training.queue.EmbeddingQueue.state()` gives; may be missing in a file
    confused: Tensor | None  # the table of the last mining (`vse.training.mining`); may be missing in a file
    random: list[dict[str, Any]]  # of each process: its generators, as `vse.runtime.random_states()` gives them


_TRAINING_FIELDS = sorted(TrainingState.__required_keys__ - EvaluationState.__required_keys__)


def evaluation_state(config: Config, model: VSEModel, in_dim: int | None) -> EvaluationState:
    """Collect what a checkpoint holds for evaluation.

    Args:
        config: The resolved config of the model.
        model: The model, with its vocabulary.
        in_dim: Width of the precomputed features, None for pictures and clips.

    Returns:
        The fields.
    """
    assert model.vocabulary is not None
    architectures = {side: traits_of(tower.encoder).architecture for side, tower in _sides(model).items()}
    return {
        "config": config.model_dump(),
        "vocabulary": model.vocabulary.state,
        "architectures": {side: found for side, found in architectures.items() if found is not None},
        "in_dim": in_dim,
        "model": model.state_dict(),
    }


def _sides(model: VSEModel) -> dict[str, Any]:
    return {"image": model.image, "text": model.text}


def saved_architectures(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the architecture of each side's encoder, or {} where the config is enough.

    A model that is built with them reads no file of published weights (:func:`vse.build.build_model`).
    """
    return {"image": {}, "text": {}, **state["architectures"]}


def saved_vocabulary(state: Mapping[str, Any]) -> Words:
    """Return the vocabulary of a checkpoint.

    Args:
        state: The checkpoint's content, see :func:`load_checkpoint`.

    Returns:
        The vocabulary, the tokenizer, or what stands for a vocabulary that the checkpoint lacks.

    Raises:
        InputError: It is not a valid vocabulary.
    """
    vocabulary = state["vocabulary"]
    if isinstance(vocabulary, dict) and "rows" in vocabulary:
        return MissingVocabulary(**vocabulary)
    try:
        return Subwords(**vocabulary) if isinstance(vocabulary, dict) else Vocabulary(vocabulary)
    except ValueError as error:
        raise InputError(f"the checkpoint's vocabulary: {error}") from None


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint completely or not at all.

    Args:
        path: The file. What it held before is kept until the new content is complete.
        state: An :class:`EvaluationState`, a :class:`BestState` or a :class:`TrainingState`.

    Raises:
        InputError: A weight is not finite, or the file cannot be written.
    """
    for name, value in state["model"].items():
        if not value.isfinite().all():
            raise InputError(f"{name} is no longer finite; {path} is left as it was; try a lower optim.lr")
    write_file(path, lambda file: torch.save({"format": FORMAT, "version": VERSION, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package, of any version, an exported model, or an official code's checkpoint.

    The tensors are on the CPU.

    No code in the file is executed.

    Args:
        path: The file.

    Returns:
        The fields of :class:`EvaluationState`, and those of :class:`BestState` or :class:`TrainingState` when a run
        wrote the file.

    Raises:
        InputError: The file, which the message names, is missing, truncated, damaged, of another kind, or of a newer
            version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    if path.suffix == Path(WEIGHTS).suffix:
        exported = read_exported(path)
        _check_fields(exported, path)
        return exported
    _check_archive(path)
    _, content = read_weights(path, "a checkpoint of vse, VSE∞, PVSE, VSE-2AD or DivE")
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, _FORMAT_1):
        return _read_official(content, path)
    state = {key: value for key, value in content.items() if key not in ("format", "version", "assumed")}
    if content["format"] == _FORMAT_1:
        state = _from_version_1(state)
    elif content.get("version") != VERSION:
        version = content.get("version")
        raise InputError(f"{path}: a checkpoint of version {version}; this version of vse reads 1 to {VERSION}")
    _check_fields(state, path)
    return state


def training_state(state: dict[str, Any], path: Path) -> TrainingState:
    """Check that a checkpoint is a run's last.pt.

    Args:
        state: The content of the checkpoint.
        path: Its file, for the message.

    Returns:
        The state of the run.

    Raises:
        InputError: The checkpoint lacks what a run needs to continue.
    """
    later = {
        "source": None,
        "queue": None,
        "confused": None,
        "evaluated": None,
        "epoch_loss": (0.0, 0),
        "average": None,
        "digests": None,
    }
    state = {**later, **state}
    if missing := [key for key in _TRAINING_FIELDS if key not in state]:
        raise InputError(f"{path}: holds no training state (no {', '.join(missing)}); expected the last.pt of a run")
    return cast(TrainingState, state)


def find_checkpoint(path: str | Path) -> Path:
    """Find the file of a checkpoint.

    Args:
        path: A run folder, the folder of an exported model, a file, or an exported model on the hub,
            "hf://owner/name", which is fetched.

    Returns:
        A run's best.pt (last.pt before the first validation), an exported model's weights, or the file itself.

    Raises:
        InputError: There is no such file, folder or model, or no checkpoint in the folder.
    """
    path = download(path) if isinstance(path, str) and path.startswith(PREFIX) else Path(path)
    if path.is_dir():
        for name in ("best.pt", "last.pt", WEIGHTS):
            if (path / name).is_file():
                return path / name
        expected = "a run folder, an exported model or a checkpoint"
        raise InputError(f"{path}: no best.pt or last.pt in this folder; expected {expected}")
    if not path.exists():
        raise InputError(f"{path}: no such run folder or checkpoint")
    return path


def _read_official(content: Any, path: Path) -> dict[str, Any]:
    """The state of an official code's checkpoint, in the fields of this package."""
    try:
        official = native_state(content)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if official is None:
        found = ", ".join(sorted(map(str, content))[:6]) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: not a checkpoint of vse or of an official code (found: {found})")
    return official


def _from_version_1(state: dict[str, Any]) -> dict[str, Any]:
    """Add the fields that version 1 did not have, or not always."""
    state = {"architectures": {}, **state}
    if "step" in state:
        state = {"history": [], "start": {}, **state}
    if "random" in state:
        state["random"] = [state["random"]]  # there was one process
    return state


def _check_fields(state: dict[str, Any], path: Path) -> None:
    """Raise InputError unless all fields that evaluation needs are there and valid."""
    missing = [key for key in EvaluationState.__annotations__ if key not in state]
    if missing:
        raise InputError(f"{path}: an incomplete checkpoint: it lacks {', '.join(missing)}")
    right = {
        "config": isinstance(state["config"], dict),
        "vocabulary": _is_vocabulary(state["vocabulary"]),
        "architectures": _is_architectures(state["architectures"]),
        "in_dim": state["in_dim"] is None or _is_size(state["in_dim"]),
        "model": is_state_dict(state["model"]),
    }
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise InputError(f"{path}: a damaged checkpoint: the content of {', '.join(wrong)} is not valid")


def _check_archive(path: Path) -> None:
    """Raise InputError for an incomplete torch file, by its end and its checksums, before anything else is read."""
    try:
        with open(path, "rb") as file:
            if not b"PK".startswith(file.read(2)):
                return  # written by a torch before 1.6, which used no zip files
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError):
        raise InputError(f"{path}: truncated, or not a checkpoint of vse") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    if damaged:
        raise InputError(f"{path}: damaged: the checksum of its part {damaged} is wrong")


def _is_size(value: Any) -> bool:
    """Whether it is a plausible number of rows, or width."""
    return type(value) is int and 0 < value < _LARGEST


def _is_architectures(value: Any) -> bool:
    """Whether it is a dict of encoders' architectures, each a dict."""
    return isinstance(value, dict) and all(isinstance(architecture, dict) for architecture in value.values())


def _is_vocabulary(value: Any) -> bool:
    """Whether it is a list of words, what a tokenizer is made from, or a note that the vocabulary is missing."""
    if isinstance(value, dict) and "rows" in value:
        return set(value) == {"rows", "file"} and _is_size(value["rows"]) and isinstance(value["file"], str)
    if isinstance(value, dict):
        numbers = all(value.get(key) is None or type(value[key]) is int for key in ("mask", "max_length"))
        return set(value) == {"content", "mask", "max_length"} and isinstance(value["content"], str) and numbers
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
