"""Encode a corpus once, score it in chunks, report."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vse.data.corpus import Corpus
from vse.data.vocabulary import MissingVocabulary
from vse.errors import InputError, first_line
from vse.evaluation.judgements import Judgements, check_ids, cxc_metrics, cxc_within, eccv_metrics
from vse.evaluation.protocols import check_split, evaluate_scores
from vse.files import check_target, write_file
from vse.model import VSEModel
from vse.runtime import autocast
from vse.set_health import set_health

_BLOCK = 1 << 25  # products of embeddings held at a time while scoring


class Encoded(NamedTuple):
    """A corpus as a model sees it."""

    similarity: Callable[[Tensor, Tensor], Tensor]
    images: Tensor  # (images, K, H)
    captions: Tensor  # (captions, K, H)


class Member(NamedTuple):
    """Scores of one model, or of an ensemble, on a corpus."""

    name: str
    scores: Tensor  # (images, captions)
    sets: dict[str, float]  # the embedding sets' health, for a single model that has sets
    encoded: tuple[Encoded, ...] = ()  # by each of its models; none for saved scores
    models: int = 1


def evaluate(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True
) -> dict[str, Any]:
    """Plain retrieval among all of a corpus's images and captions: :func:`vse.metrics.retrieval_metrics`' dict.

    For embedding sets also "sets", their health (:func:`vse.set_health.set_health`); for clips also "nmr", see
    :func:`vse.evaluation.protocols.evaluate_scores`. Raises what :func:`score_corpus` raises.
    """
    member = score_corpus(model, corpus, batch_size, precision, progress)
    return report(member, corpus, "retrieval")


def report(member: Member, corpus: Corpus, protocol: str, judgements: Judgements | None = None) -> dict[str, Any]:
    """Metrics under a protocol, and the health of embedding sets as "sets".

    "cxc" and "eccv": see :func:`vse.evaluation.judgements.cxc_metrics` and
    :func:`vse.evaluation.judgements.eccv_metrics`; with
    ``judgements`` and embeddings, "cxc" has "i2i" and "t2t" as well. All others: see
    :func:`vse.evaluation.protocols.evaluate_scores`.
    """
    _check_size(corpus, protocol)
    if protocol in ("cxc", "eccv"):
        judge = cxc_metrics if protocol == "cxc" else eccv_metrics
        with _of_corpus(corpus):
            metrics = judge(member.scores, corpus.image_ids, corpus.caption_ids, corpus.image_of_caption)
        if protocol == "cxc" and judgements is not None and member.encoded:
            metrics |= score_within(member, corpus, judgements)
    else:
        metrics = evaluate_scores(member.scores, corpus.image_of_caption, protocol, corpus.video)
    return {**metrics, "sets": member.sets} if member.sets else metrics


def check_protocol(corpus: Corpus, protocol: str) -> None:
    """Raise InputError for a corpus that a protocol is not for."""
    _check_size(corpus, protocol)
    if protocol in ("cxc", "eccv"):
        with _of_corpus(corpus):
            check_ids(corpus.image_ids, corpus.caption_ids, corpus.image_of_caption)


def _check_size(corpus: Corpus, protocol: str) -> None:
    check_split(len(corpus.images), protocol, corpus.video, len(corpus.captions))


@contextlib.contextmanager
def _of_corpus(corpus: Corpus) -> Iterator[None]:
    """Put the corpus's name before what is wrong with its ids."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{corpus.name}: {error}") from None


def score_within(member: Member, corpus: Corpus, judgements: Judgements) -> dict[str, Any]:
    """CxC's "i2i" and "t2t"; an ensemble's scores are the mean of its models'."""

    def mean(side: str) -> Callable[[slice], Tensor]:
        sets = [(encoded.similarity, getattr(encoded, side)) for encoded in member.encoded]
        return lambda rows: torch.stack([score(f, a[rows], a, progress=False) for f, a in sets]).mean(0)

    with _of_corpus(corpus):
        return {
            "i2i": cxc_within(mean("images"), corpus.image_ids, judgements.images),
            "t2t": cxc_within(mean("captions"), corpus.caption_ids, judgements.captions, corpus.image_of_caption),
        }


def check_corpus(model: VSEModel, corpus: Corpus) -> None:
    """Raise InputError for a model without its vocabulary, and for features of another width than the model's."""
    if isinstance(model.vocabulary, MissingVocabulary):
        model.vocabulary.encode("")  # raises, before the images are encoded
    width, found = getattr(model.image.encoder, "in_dim", None), getattr(corpus.images, "width", None)
    if None not in (width, found) and width != found:
        raise InputError(f"{corpus.name}: its features are {found} wide, but the model reads {width}")


def score_corpus(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True, name: str = ""
) -> Member:
    """Scores of all images and captions of a corpus, each encoded once.

    Raises InputError for features of another width than the model's, for NaN or Inf in them, and when the model itself
    gives NaN.
    """
    check_corpus(model, corpus)
    try:
        with autocast(model.device, precision):
            images, captions = encode_corpus(model, corpus, batch_size, progress)
        scores = score(model.similarity, images, captions, progress)
    except InputError:
        raise
    except ValueError as error:  # the corpus does not fit the model, or its embeddings the similarity
        raise InputError(f"{corpus.name}: {error}") from None
    if scores.isnan().any():
        raise InputError(f"{corpus.name}: the model gives NaN; its weights have diverged")
    encoded = Encoded(model.similarity, images, captions)
    health = set_health(images.float(), captions.float(), torch.from_numpy(corpus.image_of_caption).to(images.device))
    return Member(name, scores, {key: float(value) for key, value in health.items()}, (encoded,))


def ensemble(members: Sequence[Member]) -> Member:
    """Mean of the members' scores, as the papers' ensembles are made. Raises InputError for another shape."""
    for member in members:
        if member.scores.shape != members[0].scores.shape:
            ours, theirs = (tuple(m.scores.shape) for m in (members[0], member))
            raise InputError(f"{members[0].name} has scores {ours}, {member.name} {theirs}; expected the same corpus")
    mean = sum((member.scores for member in members[1:]), members[0].scores.clone()) / len(members)
    models = sum(member.models for member in members)
    encoded = tuple(part for member in members for part in member.encoded)
    if len(encoded) < len(members):
        encoded = ()  # saved scores are among them
    return Member(f"ensemble of {models}", mean, {}, encoded, models)


def save_scores(path: Path, member: Member, corpus: Corpus) -> None:
    """Write a score matrix with the ids of its rows and columns, for :func:`read_scores`."""
    check_scores_file(path)
    scores, ids = member.scores.numpy(), _ids(corpus)
    write_file(path, lambda file: np.savez(file, allow_pickle=False, scores=scores, models=member.models, **ids))


def check_scores_file(path: Path) -> None:
    """Raise InputError for a place where no scores can be written, or where another file stands."""
    if path.suffix != ".npz":
        raise InputError(f"{path}: expected a file name that ends in .npz")
    check_target(path)
    if path.exists() and path.stat().st_size:
        _open_scores(path)


def _open_scores(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file of scores. Raises InputError for another file."""
    keys = ("scores", "models", "image_ids", "caption_ids", "captions")
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: content[key] for key in keys}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of scores") from None
    except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
        raise InputError(f"{path}: not a file of scores, as --save-scores writes them ({first_line(error)})") from None


def _ids(corpus: Corpus) -> dict[str, np.ndarray]:
    """What tells a corpus's rows and columns from another's."""
    captions = hashlib.sha256("\n".join(corpus.captions).encode()).hexdigest()
    ids = {key: np.array([str(i) for i in getattr(corpus, key)]) for key in ("image_ids", "caption_ids")}
    return {**ids, "captions": np.array([captions])}


def read_scores(path: Path, corpus: Corpus) -> Member:
    """Scores that :func:`save_scores` wrote. Raises InputError when their ids are not the corpus's."""
    content = _open_scores(path)
    for key, expected in _ids(corpus).items():
        if content[key].tolist() != expected.tolist():
            raise InputError(f"{path}: its {key} are not those of {corpus.name}")
    scores, models, shape = content["scores"], content["models"], (len(corpus.images), len(corpus.captions))
    if scores.dtype != np.float32 or scores.shape != shape or not np.isfinite(scores).all():
        found = f"{scores.dtype} of shape {scores.shape}, or not finite"
        raise InputError(f"{path}: its scores are {found}; expected finite float32 numbers of shape {shape}")
    if models.dtype.kind != "i" or models.shape or models < 1:
        raise InputError(f"{path}: its number of models is {models}")
    return Member(str(path), torch.from_numpy(scores), {}, models=int(models))


def encode_corpus(model: VSEModel, corpus: Corpus, batch_size: int, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Embeddings of all images (n, K, H) and all captions (m, L, H)."""
    parts = []
    total = len(corpus.images) + len(corpus.captions)
    with tqdm(total=total, desc="encoding", unit=" items", unit_scale=True, leave=False, disable=not progress) as bar:
        for start in range(0, len(corpus.images), batch_size):
            rows = np.arange(start, min(start + batch_size, len(corpus.images)))
            images = [torch.from_numpy(image) for image in corpus.images.read(rows)]
            parts.append(model.encode_images(images, batch_size))
            bar.update(len(rows))
        captions = model.encode_texts(corpus.captions, batch_size, bar.update)
    return torch.cat(parts), captions


@torch.no_grad()
def score(
    similarity: Callable[[Tensor, Tensor], Tensor], images: Tensor, captions: Tensor, progress: bool = True
) -> Tensor:
    """Scores (images, captions), float32 on the CPU, computed in square blocks of bounded memory."""
    side = max(1, math.isqrt(_BLOCK // (images.shape[1] * captions.shape[1])))
    scores = torch.empty(len(images), len(captions))
    corners = [(i, j) for i in range(0, len(images), side) for j in range(0, len(captions), side)]
    for i, j in tqdm(corners, desc="scoring", unit=" blocks", leave=False, delay=2, disable=not progress):
        rows, columns = slice(i, i + side), slice(j, j + side)
        scores[rows, columns] = similarity(images[rows].float(), captions[columns].float())
    return scores
