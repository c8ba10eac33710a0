"""Ensembles: the mean of several models' scores, which may come from files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vse.data.corpus import Corpus
from vse.errors import InputError, first_line
from vse.evaluation.score import CorpusScores
from vse.files import check_target, write_file

_KEYS = ("scores", "models", "image_ids", "caption_ids", "captions")  # the arrays in a file of scores


def ensemble(members: Sequence[CorpusScores]) -> CorpusScores:
    """Average the scores of several members, which is how the papers make ensembles.

    Each member has the same weight, however many models it stands for.

    Args:
        members: Scores on the same corpus, at least one.

    Returns:
        Their mean, with the embeddings of all their models unless some scores come from a file.

    Raises:
        InputError: The score matrices differ in shape.
    """
    first = members[0]
    for member in members:
        if member.scores.shape != first.scores.shape:
            ours, theirs = tuple(first.scores.shape), tuple(member.scores.shape)
            raise InputError(f"{first.name} has scores {ours}, {member.name} {theirs}; expected the same corpus")
    mean = first.scores.clone()
    for member in members[1:]:
        mean += member.scores
    mean /= len(members)
    models = sum(member.models for member in members)
    embeddings = tuple(part for member in members for part in member.embeddings)
    if any(not member.embeddings for member in members):
        embeddings = ()
    return CorpusScores(f"ensemble of {models}", mean, embeddings=embeddings, models=models)


def save_scores(path: Path, scored: CorpusScores, corpus: Corpus) -> None:
    """Write a score matrix with the ids of its rows and columns, for :func:`read_scores`.

    Args:
        path: The file to write, whose name ends in ``.npz``.
        scored: The scores of a model or an ensemble.
        corpus: The corpus that they belong to.

    Raises:
        InputError: The file cannot be written, or it is there and holds no scores.
    """
    check_scores_file(path)
    scores, ids = scored.scores.numpy(), _ids(corpus)
    write_file(path, lambda file: np.savez(file, allow_pickle=False, scores=scores, models=scored.models, **ids))


def check_scores_file(path: Path) -> None:
    """Check that scores can be written to a file, before they are computed.

    Args:
        path: The file, whose name must end in ``.npz``.

    Raises:
        InputError: The file cannot be written, its name ends differently, or it is there and holds no scores.
    """
    if path.suffix != ".npz":
        raise InputError(f"{path}: expected a file name that ends in .npz")
    check_target(path)
    if path.exists() and path.stat().st_size:
        _open_scores(path)


def read_scores(path: Path, corpus: Corpus) -> CorpusScores:
    """Read scores that :func:`save_scores` wrote.

    Args:
        path: The file.
        corpus: The corpus that they should belong to.

    Returns:
        The scores, named after the file.

    Raises:
        InputError: The file holds no scores, or scores of another corpus.
    """
    content = _open_scores(path)
    for key, expected in _ids(corpus).items():
        if content[key].tolist() != expected.tolist():
            raise InputError(f"{path}: its {key} are not those of {corpus.name}")
    scores, models, shape = content["scores"], content["models"], (len(corpus.images), len(corpus.captions))
    if scores.dtype != np.float32 or scores.shape != shape or not np.isfinite(scores).all():
        found = f"{scores.dtype} of shape {scores.shape}, or not finite"
        raise InputError(f"{path}: its scores are {found}; expected finite float32 numbers of shape {shape}")
    if models.dtype.kind != "i" or models.shape or models < 1:
        raise InputError(f"{path}: its number of models is {models}; expected 1 or more")
    return CorpusScores(str(path), torch.from_numpy(scores), models=int(models))


def _open_scores(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays in a file of scores. Raises InputError for another file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: content[key] for key in _KEYS}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of scores") from None
    except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
        raise InputError(f"{path}: not a file of scores that --save-scores wrote ({first_line(error)})") from None


def _ids(corpus: Corpus) -> dict[str, np.ndarray]:
    """Return arrays that identify a corpus's rows and columns."""
    return {
        "image_ids": np.array([str(label) for label in corpus.image_ids]),
        "caption_ids": np.array([str(label) for label in corpus.caption_ids]),
        "captions": np.array([hashlib.sha256("\n".join(corpus.captions).encode()).hexdigest()]),
    }
