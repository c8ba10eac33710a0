"""Load a model from a checkpoint of this package, an exported model or a checkpoint of an official code."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vse.build import (
    Words,
    build_model,
    build_vocabulary,
    complete,
    encoder_traits,
    read_config,
    reads_subwords,
    resolve,
)
from vse.checkpoints.native import (
    EvaluationState,
    evaluation_state,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    saved_architectures,
    saved_vocabulary,
)
from vse.checkpoints.official import released_padding
from vse.components import errors_at
from vse.config import Config, make_config
from vse.config_files import find_config, names_config
from vse.data.subwords import Subwords
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.encoders.base import traits_of
from vse.errors import InputError, misfit
from vse.files import check_target
from vse.model import VSEModel

_WORD_TABLE = "text.encoder.embedding.weight"


class Loaded(NamedTuple):
    """A model from a checkpoint, and what is known of it.

    Attributes:
        model: The model, in evaluation mode on the CPU.
        config: The config that it was built from, with the overrides.
        file: The checkpoint that it came from.
        start: The health of its embedding sets when its training began; {} when that is not known.
    """

    model: VSEModel
    config: Config
    file: Path
    start: dict[str, float]


def load_model(
    path: str | Path,
    overrides: Sequence[str] = (),
    vocabulary: str | Path | None = None,
    padding: str = "masked",
    keep_own: bool = False,
) -> Loaded:
    """Load the model of a run folder, an exported model or a checkpoint.

    Args:
        path: The folder, file or name on the hub, or a config, see :func:`load_pretrained`.
        overrides: Settings ("key=value") that differ from the checkpoint's config.
        vocabulary: A vocabulary file, or a tokenizer's folder, as in :func:`vse.load`.
        padding: "masked" or "released", as in :func:`vse.load`.
        keep_own: Whether ``vocabulary`` is ignored when the checkpoint has its own.

    Returns:
        The model in evaluation mode on the CPU, with its config and the file that it came from.

    Raises:
        InputError: What :func:`vse.load` raises.
    """
    if padding not in ("masked", "released"):
        raise InputError(f"padding must be 'masked' or 'released', got {padding!r}")
    if names_config(path):
        return load_pretrained(path, overrides)
    file = find_checkpoint(path)
    state = load_checkpoint(file)
    if padding == "released":
        state = {**state, "config": released_padding(state["config"])}
    if assumed := state.get("assumed"):
        note = f"{file}: its options lack these, so the published models' values are used: {', '.join(assumed)}"
        print(note, file=sys.stderr)
    config = config_of_checkpoint(state, file, overrides)
    words = _choose_vocabulary(config, state, file, vocabulary, keep_own)
    model = build_model(config, state["in_dim"], words, saved_architectures(state))
    weights = add_mask_row(state["model"], words)
    is_given = config.given("model.similarity")  # perhaps only by the name that it has
    if is_given and config.model.similarity.model_dump() != state["config"]["model"].get("similarity"):
        weights = _with_similarity_of(model, weights, file)
    load_weights(model, weights, file)
    with errors_at(config, "model.similarity", config.model.similarity.arguments), torch.no_grad():
        model.similarity(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    return Loaded(model.eval(), config, file, state.get("start", {}))


def _with_similarity_of(model: VSEModel, weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, but the similarity's are those that a model has been built with."""
    others = {key: value for key, value in weights.items() if not key.startswith("similarity.")}
    own = {key: value for key, value in model.state_dict().items() if key.startswith("similarity.")}
    if len(others) < len(weights):
        print(f"{file}: model.similarity is another one, so what the run's has learned is not used", file=sys.stderr)
    return {**others, **own}


def load_pretrained(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Build the model of a config whose encoders are published ones, so that it is of use without training.

    Args:
        path: A config file, or the name of a shipped config.
        overrides: Settings ("key=value") that differ from the config's.

    Returns:
        The model in evaluation mode on the CPU, with its config and the config's file.

    Raises:
        InputError: The config is wrong, the published files are missing, or a part would have to be trained first; the
            message names that part.

    >>> load_pretrained("clip/f30k").model.encode_texts("two dogs").shape
    torch.Size([1, 512])
    """
    config = read_config(path, overrides)
    for side in ("image", "text"):
        if not encoder_traits(config, side).pretrained:
            raise _untrained(config, f"model.{side}.encoder")
    config = complete(config)
    vocabulary = build_vocabulary(config)
    model = build_model(config, None, vocabulary)
    towers = {"image": model.image, "text": model.text}
    for side, tower in towers.items():
        if not traits_of(tower.encoder).pretrained:
            raise _untrained(config, f"model.{side}.encoder")
        if list(tower.aggregator.parameters()):
            raise _untrained(config, f"model.{side}.aggregator")
    if isinstance(model.similarity, nn.Module) and list(model.similarity.parameters()):
        raise _untrained(config, "model.similarity")
    return Loaded(model.eval(), config, find_config(path), {})


def _untrained(config: Config, key: str) -> InputError:
    """The error for a part of a config that is of no use before it is trained."""
    name = config.value(f"{key}.name")
    return config.error(key, f"{name} has parameters that are not pretrained; train it first, then evaluate its run")


def convert(
    path: str | Path, output: Path, overrides: Sequence[str] = (), vocabulary: str | Path | None = None
) -> Words:
    """Write an official checkpoint as one of this package.

    Args:
        path: The official checkpoint.
        output: The new file.
        overrides: Settings ("key=value") that the new checkpoint's config has instead.
        vocabulary: Its vocabulary file, or its tokenizer's folder.

    Returns:
        The vocabulary. If it was neither given nor found next to the old checkpoint, the new one lacks it too.

    Raises:
        InputError: There is a file at ``output``, or what :func:`vse.load` raises.
    """
    if output.exists():
        raise InputError(f"{output}: exists already; expected the name of a new file")
    check_target(output)
    loaded = load_model(path, overrides, vocabulary)
    save_checkpoint(output, state_of(loaded))
    assert loaded.model.vocabulary is not None
    return loaded.model.vocabulary


def state_of(loaded: Loaded) -> EvaluationState:
    """Collect what a checkpoint holds of a model that was loaded.

    Raises:
        InputError: A weight is not finite.
    """
    model = loaded.model
    state = evaluation_state(loaded.config, model, traits_of(model.image.encoder).in_dim)
    for name, value in state["model"].items():
        if not value.isfinite().all():
            raise InputError(f"{loaded.file}: {name} is not finite")
    return state


def load_weights(model: nn.Module, weights: dict[str, Any], file: Path) -> None:
    """Load a state dict into a model.

    Args:
        model: The model.
        weights: The state dict.
        file: Where it comes from, for the message.

    Raises:
        InputError: The state dict does not fit; the message names the first keys that do not.
    """
    if problem := misfit(model.state_dict(), weights):
        raise InputError(f"{file}: its weights do not fit this config: {problem}")
    model.load_state_dict(weights)


def config_of_checkpoint(state: dict[str, Any], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config in a checkpoint, which may name modules outside the package but no functions.

    Args:
        state: The checkpoint.
        path: Its file, for messages.
        overrides: Settings ("key=value") that differ from the checkpoint's.

    Returns:
        The config, resolved.

    Raises:
        InputError: The config is not valid.
    """
    return resolve(make_config(state["config"], overrides, {"": str(path)}, trusted=False))


def _choose_vocabulary(
    config: Config, state: dict[str, Any], file: Path, given: str | Path | None, keep_own: bool
) -> Words:
    """The vocabulary that the user gives, or the checkpoint's own, or one found next to the checkpoint or the data."""
    saved = saved_vocabulary(state)
    key = "model.text.encoder.model" if reads_subwords(config) else "data.vocabulary.file"
    if keep_own and not isinstance(saved, MissingVocabulary):
        given = None
    if given is None and config.given(key):
        given = config.value(key)
    return match_vocabulary(config, saved, file, given)


def match_vocabulary(config: Config, saved: Words, file: Path, given: str | Path | None) -> Words:
    """Find the vocabulary that a checkpoint was trained with.

    Args:
        config: The config. Its text encoder decides the kind of vocabulary, and its ``data.root`` is searched.
        saved: The vocabulary in the checkpoint, or the note that it is missing.
        file: The checkpoint.
        given: A vocabulary file, or a tokenizer's folder.

    Returns:
        The vocabulary ``given``, or else ``saved``. If both are missing, the vocabulary in a file of the published name
        next to the checkpoint or in ``data.root``; if there is no such file, ``saved``.

    Raises:
        InputError: ``given`` cannot be read, or is not the vocabulary that the weights were trained with.
    """
    read: Any = Subwords.read if reads_subwords(config) else Vocabulary.read
    if given is not None:
        words: Words = read(str(given))
        if not _fits(words, len(saved)):
            raise InputError(f"{given}: has {len(words):,} words, but the table in {file} has {len(saved):,} rows")
        if not isinstance(saved, MissingVocabulary) and words.ids != saved.ids:  # type: ignore[union-attr]
            raise InputError(f"{given}: has other words, or other ids for them, than the vocabulary in {file}")
        return words
    if isinstance(saved, MissingVocabulary):
        saved.checkpoint = file
        names = [Path(name).name for name in saved.file.split(" or ")]
        for path in [folder / name for folder in (file.parent, Path(config.data.root)) for name in names]:
            if path.exists():
                words = read(str(path))
                if _fits(words, len(saved)):
                    return words
                note = f"{path}: not used: has {len(words):,} words, but the table in {file} has {len(saved):,} rows"
                print(note, file=sys.stderr)
    return saved


def _fits(words: Words, rows: int) -> bool:
    """Whether a table has a row for each word. A <mask> that was appended to the file's words may lack one."""
    return len(words) == rows or (isinstance(words, Vocabulary) and words.appended and len(words) == rows + 1)


def add_mask_row(weights: dict[str, Any], words: Words) -> dict[str, Any]:
    """Add a row for an appended <mask> to the table of words, if there is none; it starts as the row of <unk>.

    Args:
        weights: The state dict of a model.
        words: Its vocabulary.

    Returns:
        The state dict, whose table has a row for each word.
    """
    if _WORD_TABLE not in weights or not isinstance(words, Vocabulary) or len(words) == len(weights[_WORD_TABLE]):
        return weights
    table = weights[_WORD_TABLE]
    return {**weights, _WORD_TABLE: torch.cat([table, table[words.unk : words.unk + 1]])}
