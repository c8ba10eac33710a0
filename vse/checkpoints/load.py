"""From a checkpoint, this package's or an official code's, to a model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vse.build import Words, build_model, evaluation_state, reads_subwords, resolve, saved_vocabulary
from vse.checkpoints.native import find_checkpoint, load_checkpoint, save_checkpoint
from vse.checkpoints.official import released_padding
from vse.components import errors_at
from vse.config import Config, config_changes, make_config
from vse.data.subwords import Subwords
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.errors import InputError, misfit
from vse.files import check_target
from vse.model import VSEModel

_TRAINING_STATE = ("epoch", "step", "best", "train_captions", "optimiser", "scaler", "random", "criterion")


def load_model(
    path: str | Path,
    overrides: Sequence[str] = (),
    vocabulary: str | Path | None = None,
    padding: str = "masked",
    keep_own: bool = False,
) -> tuple[VSEModel, Config, Path]:
    """Model of a run folder or checkpoint, in evaluation mode on the CPU, with its config and the file it came from.

    Arguments as in :func:`vse.load`. With ``keep_own`` the ``vocabulary`` is only for a checkpoint that has none.
    """
    if padding not in ("masked", "released"):
        raise InputError(f"padding must be 'masked' or 'released', got {padding!r}")
    file = find_checkpoint(path)
    state = load_checkpoint(file)
    if padding == "released":
        state = {**state, "config": released_padding(state["config"])}
    if assumed := state.get("assumed"):
        note = f"{file}: taken from the published models, as its options do not say: {', '.join(assumed)}"
        print(note, file=sys.stderr)
    config = config_of_checkpoint(state, file, overrides)
    words = _choose_vocabulary(config, state, file, vocabulary, keep_own)
    weights = _fit_words(state["model"], words)
    model = build_model(config, state["in_dim"], words, state)
    if config.given("model.similarity"):  # another one, with its own parameters
        weights = {key: value for key, value in weights.items() if not key.startswith("similarity.")}
        weights |= {key: value for key, value in model.state_dict().items() if key.startswith("similarity.")}
    load_weights(model, weights, file)
    with errors_at(config, "model.similarity", config.model.similarity.arguments), torch.no_grad():
        model.similarity(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    return model.eval(), config, file


def convert(
    path: str | Path, output: Path, overrides: Sequence[str] = (), vocabulary: str | Path | None = None
) -> Words:
    """Write an official checkpoint as one of this package; return its vocabulary. Raises InputError if there is a file.

    Without a vocabulary, given or beside it, the new checkpoint lacks it, too.
    """
    if output.exists():
        raise InputError(f"{output}: is there already; expected the name of a new file")
    check_target(output)
    model, config, file = load_model(path, overrides, vocabulary)
    state = evaluation_state(config, model, getattr(model.image.encoder, "in_dim", None))
    for name, value in state["model"].items():
        if not value.isfinite().all():
            raise InputError(f"{file}: {name} is not finite")
    save_checkpoint(output, state)
    assert model.vocabulary is not None
    return model.vocabulary


def saved_state(config: Config, folder: Path) -> dict[str, Any] | None:
    """Content of the run's last.pt, when there is one and this config may go on with it."""
    file = folder / "last.pt"
    if not file.exists() and not (folder / "best.pt").exists():
        return None
    if config.run.resume == "never":
        raise InputError(f"run.resume is never, but {folder} holds a run; choose another run.dir or remove it")
    if not file.exists():
        raise InputError(f"{file}: missing, beside a best.pt that a new run would replace; choose another run.dir")
    state = load_checkpoint(file)
    if missing := [key for key in _TRAINING_STATE if key not in state]:
        raise InputError(f"{file}: holds no training state (no {', '.join(missing)}); expected the last.pt of a run")
    saved = resolve(make_config(state["config"], (), {"": str(file)}))  # defaults of settings newer than the run
    changes = config_changes(saved.model_dump(), config)
    if changes:
        raise InputError(f"{file}: cannot go on under another config: {'; '.join(changes)}; choose another run.dir")
    return state


def load_weights(model: nn.Module, weights: dict[str, Any], file: Path) -> None:
    """Load a state dict strictly. Raises InputError that names the first keys that do not fit."""
    if problem := misfit(model.state_dict(), weights):
        raise InputError(f"{file}: its weights do not fit this config: {problem}")
    model.load_state_dict(weights)


def config_of_checkpoint(state: dict[str, Any], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Config that a checkpoint carries, with overrides; it may name modules outside the package, but no functions."""
    return resolve(make_config(state["config"], overrides, {"": str(path)}, trusted=False))


def _choose_vocabulary(
    config: Config, state: dict[str, Any], file: Path, given: str | Path | None, keep_own: bool
) -> Words:
    """The vocabulary that is given, or the checkpoint's own; one that it lacks is looked for beside it and its data."""
    saved = saved_vocabulary(state["vocabulary"])
    read: Any = Subwords.read if reads_subwords(config) else Vocabulary.read
    key = "model.text.encoder.model" if reads_subwords(config) else "data.vocabulary.file"
    if keep_own and not isinstance(saved, MissingVocabulary):
        given = None
    if given is None and config.given(key):
        given = config.value(key)
    if given is not None:
        words = read(str(given))
        if not _fits(words, len(saved)):
            raise InputError(f"{given}: has {len(words):,} words, but {file} has a table of {len(saved):,}")
        if not isinstance(saved, MissingVocabulary) and words.ids != saved.ids:
            raise InputError(
                f"{given}: has other words, or other ids for them, than {file}, which has its vocabulary in it"
            )
        return words
    if isinstance(saved, MissingVocabulary):
        saved.checkpoint = file
        names = [Path(name).name for name in saved.file.split(" or ")]
        for path in [folder / name for folder in (file.parent, Path(config.data.root)) for name in names]:
            if path.exists():
                words = read(str(path))
                if _fits(words, len(saved)):
                    return words
                note = f"{path}: not used: has {len(words):,} words, but {file} has a table of {len(saved):,}"
                print(note, file=sys.stderr)
    return saved


def _fits(words: Words, rows: int) -> bool:
    """Whether a table has a row for each word, but perhaps for the <mask> that a file had not."""
    return len(words) == rows or (isinstance(words, Vocabulary) and words.appended and len(words) == rows + 1)


def _fit_words(weights: dict[str, Any], words: Words) -> dict[str, Any]:
    """Weights whose table has a row for each word: one for a <mask> that a file had not starts as <unk>'s."""
    key = "text.encoder.embedding.weight"
    if key not in weights or not isinstance(words, Vocabulary) or len(words) == len(weights[key]):
        return weights
    return {**weights, key: torch.cat([weights[key], weights[key][words.unk : words.unk + 1]])}
