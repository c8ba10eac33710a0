"""The three ways to start a run: from scratch, from another run's checkpoint, or where it stopped."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vse.build import (
    Words,
    build_model,
    build_vocabulary,
    check_augmentation,
    check_prefixes,
    fill_word_vectors,
    reads_subwords,
    resolve,
)
from vse.checkpoints.load import add_mask_row, match_vocabulary
from vse.checkpoints.native import (
    Source,
    TrainingState,
    find_checkpoint,
    load_checkpoint,
    saved_architectures,
    saved_vocabulary,
    training_state,
)
from vse.config import Config, config_changes, make_config
from vse.data.corpus import Corpus
from vse.data.subwords import Subwords
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.errors import InputError, misfit
from vse.files import sha256
from vse.model import VSEModel
from vse.optim import is_below

_WORD_TABLE = "text.encoder.embedding.weight"


class Start(NamedTuple):
    """What a run starts with.

    Attributes:
        model: The model that is to be trained.
        vocabulary: The vocabulary or tokenizer that the model reads captions with.
        source: The checkpoint that the run started from, if there was one.
    """

    model: VSEModel
    vocabulary: Vocabulary | Subwords
    source: Source | None


def saved_state(config: Config, folder: Path) -> TrainingState | None:
    """Read the last.pt of a run.

    Args:
        config: The config with which the run should continue.
        folder: The run folder.

    Returns:
        The state; None in a folder without a run.

    Raises:
        InputError: The folder has a run that must not continue (``run.resume: never``) or cannot with this config.
    """
    file = folder / "last.pt"
    if not file.exists() and not (folder / "best.pt").exists():
        return None
    if config.run.resume == "never":
        raise InputError(f"run.resume is never, but {folder} holds a run; choose another run.dir or remove it")
    if not file.exists():
        raise InputError(f"{file}: missing, beside a best.pt that a new run would replace; choose another run.dir")
    state = training_state(load_checkpoint(file), file)
    saved = resolve(make_config(state["config"], (), {"": str(file)}))  # defaults of settings newer than the run
    changes = config_changes(saved.model_dump(), config)
    if changes:
        raise InputError(f"{file}: cannot go on under another config: {'; '.join(changes)}; choose another run.dir")
    return state


def start(config: Config, training: Corpus, in_dim: int | None, state: TrainingState | None) -> Start:
    """Build the model and the vocabulary that a run starts with.

    Args:
        config: The run's config.
        training: The training corpus, for a new vocabulary.
        in_dim: Width of the precomputed features, None for pictures and clips.
        state: The state of a run that continues. It needs no other file, and its weights are loaded later.

    Returns:
        The model, the vocabulary, and the checkpoint that the run started from.

    Raises:
        InputError: A part of the config, or the checkpoint of ``train.start_from``, does not fit.
    """
    if state is not None:
        words = saved_vocabulary(state)
        assert not isinstance(words, MissingVocabulary)  # no run has been without one
        return Start(build_model(config, in_dim, words, saved_architectures(state)), words, state["source"])
    if config.train.start_from is not None:
        return start_from(config, config.train.start_from, training, in_dim)
    for key, given in (
        ("train.start_fresh", config.train.start_fresh),
        ("data.vocabulary.extend", config.data.vocabulary.extend),
    ):
        if given:
            raise config.error(key, "needs a train.start_from, which is not set")
    words = build_vocabulary(config, training)
    return Start(build_model(config, in_dim, words), words, None)


def start_from(config: Config, path: str, training: Corpus, in_dim: int | None) -> Start:
    """Start a new run with the weights and the vocabulary of a checkpoint (``train.start_from``).

    The parts that ``train.start_fresh`` names keep their own initialisation. The loss, the optimiser and everything
    else of the training start from scratch. With ``data.vocabulary.extend``, words of the training captions that the
    checkpoint does not know get newly initialised rows.

    Args:
        config: The new run's config, which defines the model. The checkpoint's config is ignored.
        path: A run folder, or a checkpoint of this package or an official code.
        training: The training corpus, for new words.
        in_dim: Width of the precomputed features, None for pictures and clips.

    Returns:
        The model, the vocabulary, and the checkpoint as the source.

    Raises:
        InputError: The checkpoint cannot be read, or a part of it does not fit the config's model.
    """
    try:
        file = find_checkpoint(path)
    except InputError as error:
        raise config.error("train.start_from", str(error)) from None
    state = load_checkpoint(file)
    known, words = _start_vocabulary(config, state, file, training)
    architectures = {side: a for side, a in saved_architectures(state).items() if not _has_fresh_encoder(config, side)}
    model = build_model(config, in_dim, words, architectures)
    vectors = config.data.vocabulary.vectors
    if vectors is not None and "text" in architectures and config.data.vocabulary.extend:
        fill_word_vectors(config, vectors, model, words)  # rows of known words are replaced below
    weights = state["model"]
    if known is not None:
        weights = add_mask_row(weights, known)
        weights = _extend_table(weights, model.state_dict(), known, words)
    load_parts(config, model, weights, file)
    return Start(model, words, {"path": str(file), "sha256": sha256(file)})


def load_parts(config: Config, model: VSEModel, weights: dict[str, Tensor], file: Path) -> None:
    """Load a state dict into a model, except for the parts in ``train.start_fresh``, which keep their initialisation.

    Args:
        config: The config; ``train.start_fresh`` holds prefixes of parameter names, such as "image.aggregator".
        model: The model.
        weights: The state dict.
        file: The checkpoint that the weights come from, for messages.

    Raises:
        InputError: A prefix fits no parameter's name, or a tensor does not fit.
    """
    fresh, own = config.train.start_fresh, model.state_dict()
    names = own.keys() | weights.keys()
    check_prefixes(config, "train.start_fresh", fresh, names)
    kept = {name for name in names if not any(is_below(name, prefix) for prefix in fresh)}
    expected = {name: value for name, value in own.items() if name in kept}
    given = {name: value for name, value in weights.items() if name in kept}
    if problem := misfit(expected, given):
        wrong = {name for name in kept if misfit(_only(name, expected), _only(name, given))}
        raise InputError(
            f"{file}: its weights do not fit this config: {problem}; {_hint(_part(name) for name in wrong)}"
        )
    model.load_state_dict({**own, **given})


def _only(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name]} if name in tensors else {}


def _hint(parts: Iterable[str]) -> str:
    """What to do about parts that do not fit."""
    return f"set train.start_fresh=[{', '.join(sorted(set(parts)))}] to initialise them anew"


def _has_fresh_encoder(config: Config, side: str) -> bool:
    """Whether a side's encoder, or a part of it, is initialised anew, perhaps from a file of published weights."""
    encoder = f"{side}.encoder"
    return any(is_below(encoder, prefix) or is_below(prefix, encoder) for prefix in config.train.start_fresh)


def _start_vocabulary(
    config: Config, state: dict[str, Any], file: Path, training: Corpus
) -> tuple[Words | None, Vocabulary | Subwords]:
    """The vocabularies of the checkpoint and of the new run; the first is None if the text encoder is new."""
    extend = config.data.vocabulary.extend
    if any(prefix in ("text", "text.encoder") for prefix in config.train.start_fresh):
        if extend:
            raise config.error("data.vocabulary.extend", "the text encoder starts afresh: there is nothing to extend")
        return None, build_vocabulary(config, training)
    saved, given = saved_vocabulary(state), config.data.vocabulary.file
    if isinstance(saved, MissingVocabulary):
        if given is None and reads_subwords(config):
            given = config.value("model.text.encoder.model")
    elif isinstance(saved, Subwords) != reads_subwords(config):
        name = config.model.text.encoder.name
        raise InputError(f"{file}: its text encoder reads another kind of tokens than {name}; {_hint(['text'])}")
    known = match_vocabulary(config, saved, file, given)
    if isinstance(known, MissingVocabulary):
        raise InputError(
            f"{file}: came without its vocabulary, {known.file} ({known.rows:,} rows); give it as data.vocabulary.file"
        )
    if isinstance(known, Subwords):
        if extend:
            problem = f"{config.model.text.encoder.name} has a tokenizer of its own and learns no new words"
            raise config.error("data.vocabulary.extend", problem)
        check_augmentation(config, known)
        return known, known
    if not extend:
        return known, known
    return known, known.extended(training.captions, config.data.vocabulary.min_count)


def _extend_table(
    weights: dict[str, Tensor], own: dict[str, Tensor], known: Words, words: Vocabulary | Subwords
) -> dict[str, Tensor]:
    """Weights whose table of words has the checkpoint's row for each known word, and the model's own for others."""
    table, fresh = weights.get(_WORD_TABLE), own.get(_WORD_TABLE)
    if known is words or not isinstance(known, Vocabulary) or table is None or fresh is None:
        return weights
    if table.shape[1:] != fresh.shape[1:]:
        return weights  # whoever loads them says so
    extended = fresh.clone()
    for word, row in known.ids.items():
        extended[words.ids[word]] = table[row]
    return {**weights, _WORD_TABLE: extended}


def _part(name: str) -> str:
    """The part of a model that a parameter belongs to: "image.aggregator", or "similarity"."""
    return ".".join(name.split(".")[: 1 if name.startswith("similarity.") else 2])
