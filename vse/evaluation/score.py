"""Score a corpus: every image against every caption, in blocks of bounded memory."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vse.data.corpus import Corpus
from vse.distributed import broadcast, is_main
from vse.errors import InputError
from vse.evaluation.encode import CorpusEmbeddings, check_corpus, encode_corpus
from vse.evaluation.folds import fold_metrics
from vse.model import VSEModel
from vse.set_health import set_health

_BLOCK = 1 << 25  # pairs of embeddings compared at a time


class CorpusScores(NamedTuple):
    """The scores that one model, or an ensemble, gives to a corpus.

    Attributes:
        name: What reports call the model or the ensemble.
        scores: Scores (images, captions), float32 on the CPU.
        sets: What is known of the embedding sets; empty for single embeddings and ensembles.
        embeddings: The embeddings of each of its models; empty for scores that come from a file.
        models: The number of models.
    """

    name: str
    scores: Tensor
    sets: dict[str, Any] = {}
    embeddings: tuple[CorpusEmbeddings, ...] = ()
    models: int = 1

    def with_sets(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Add what is known of the embedding sets to metrics.

        Args:
            metrics: Metrics of these scores.

        Returns:
            The metrics, with "sets" beside them where there are embedding sets.
        """
        return {**metrics, "sets": self.sets} if self.sets else metrics


@torch.no_grad()
def score(
    similarity: Callable[[Tensor, Tensor], Tensor], images: Tensor, captions: Tensor, progress: bool = True
) -> Tensor:
    """Compare all embeddings of images with all of captions, in square blocks of bounded memory.

    Args:
        similarity: A function of two batches of embedding sets, see :mod:`vse.similarity`.
        images: Embeddings (images, K, H).
        captions: Embeddings (captions, L, H).
        progress: Whether to show a progress bar.

    Returns:
        Scores (images, captions), float32 on the CPU.

    >>> score(cosine, torch.eye(2)[:, None], torch.eye(2)[:, None]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    side = max(1, math.isqrt(_BLOCK // (images.shape[1] * captions.shape[1])))
    scores = torch.empty(len(images), len(captions))
    corners = [(i, j) for i in range(0, len(images), side) for j in range(0, len(captions), side)]
    for i, j in tqdm(corners, desc="scoring", unit=" blocks", leave=False, delay=2, disable=not progress):
        rows, columns = slice(i, i + side), slice(j, j + side)
        scores[rows, columns] = similarity(images[rows].float(), captions[columns].float())
    return scores


def embed_corpus(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True
) -> CorpusEmbeddings:
    """Encode a corpus for scoring.

    Args:
        model: A trained model.
        corpus: The images and captions.
        batch_size: The number of images, and of captions, that are encoded at a time.
        precision: The precision of the encoding: "fp32", "bf16" or "fp16".
        progress: Whether to show progress bars.

    Returns:
        Embeddings of the images (images, K, H) and of the captions (captions, L, H), and the model's similarity.

    Raises:
        InputError: The corpus does not fit the model, or its features hold NaN or Inf.
    """
    check_corpus(model, corpus)
    with _mistakes_of(corpus):
        return encode_corpus(model, corpus, batch_size, precision, progress)


def score_embeddings(
    embeddings: CorpusEmbeddings, corpus: Corpus, progress: bool = True, name: str = ""
) -> CorpusScores:
    """Score all images against all captions of a corpus by their embeddings.

    Args:
        embeddings: The embeddings, from :func:`embed_corpus`.
        corpus: The corpus that they belong to.
        progress: Whether to show a progress bar.
        name: What reports call the model.

    Returns:
        The scores, the embeddings, and the health of embedding sets (:func:`vse.set_health.set_health`).

    Raises:
        InputError: The embeddings do not fit the similarity, or the model gives NaN.
    """
    with _mistakes_of(corpus):
        scores = score(embeddings.similarity, embeddings.images, embeddings.captions, progress)
    if scores.isnan().any():
        raise InputError(f"{corpus.name}: the model gives NaN; its weights have diverged")
    image_of_caption = torch.from_numpy(corpus.image_of_caption).to(embeddings.images.device)
    similarity, images, captions = embeddings.similarity, embeddings.images.float(), embeddings.captions.float()
    health = set_health(images, captions, image_of_caption, similarity)
    return CorpusScores(name, scores, {key: float(value) for key, value in health.items()}, (embeddings,))


def evaluate(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True
) -> dict[str, Any]:
    """Evaluate plain retrieval, among all images and all captions of a corpus.

    Several processes share the encoding; the main one scores, and all of them get the metrics.

    Args:
        model: A trained model.
        corpus: The images and captions.
        batch_size: The number of images, and of captions, that are encoded at a time.
        precision: The precision of the encoding: "fp32", "bf16" or "fp16".
        progress: Whether to show progress bars.

    Returns:
        The dict of :func:`vse.evaluation.folds.fold_metrics`, and for embedding sets also "sets", their health
        (:func:`vse.set_health.set_health`).

    Raises:
        InputError: As :func:`embed_corpus` and :func:`score_embeddings`.
    """
    embeddings = embed_corpus(model, corpus, batch_size, precision, progress)
    metrics: dict[str, Any] = {}
    if is_main():
        scored = score_embeddings(embeddings, corpus, progress)
        metrics = scored.with_sets(fold_metrics(scored.scores, corpus.image_of_caption, clips=corpus.video))
    result: dict[str, Any] = broadcast(metrics)
    return result


@contextlib.contextmanager
def _mistakes_of(corpus: Corpus) -> Iterator[None]:
    """Name the corpus where it does not fit the model, or its embeddings do not fit the similarity."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{corpus.name}: {error}") from None


def single_embedding_rsums(
    embeddings: CorpusEmbeddings, image_of_caption: np.ndarray, progress: bool = True
) -> dict[str, list[float]]:
    """Compute the RSUM of each embedding of a set alone, which shows what the other embeddings add.

    For each k, one side's sets are cut to their k-th embedding, (n, 1, H), while the other side keeps its whole sets;
    the model's own similarity compares them, and the RSUM is that of plain retrieval among all images and captions.
    All K scorings of a side together cost as much as scoring the whole sets once.

    Args:
        embeddings: The embeddings of a corpus, K for each image and L for each caption.
        image_of_caption: Index (captions,) of each caption's image.
        progress: Whether to show a progress bar.

    Returns:
        "image_rsum", a list of K numbers, where K > 1; and "text_rsum", a list of L numbers, where L > 1.

    >>> single_embedding_rsums(CorpusEmbeddings(max_cosine, images, captions), image_of_caption)
    {'image_rsum': [401.2, 397.5], 'text_rsum': [399.0, 384.8]}
    """
    similarity, images, captions = embeddings
    pairs: list[tuple[str, Tensor, Tensor]] = []
    if images.shape[1] > 1:
        pairs += [("image_rsum", single, captions) for single in images.split(1, dim=1)]
    if captions.shape[1] > 1:
        pairs += [("text_rsum", images, single) for single in captions.split(1, dim=1)]
    result: dict[str, list[float]] = {}
    bar = tqdm(pairs, desc="single embeddings", unit=" embeddings", leave=False, delay=2, disable=not progress)
    for name, some_images, some_captions in bar:
        scores = score(similarity, some_images, some_captions, progress=False)
        result.setdefault(name, []).append(float(fold_metrics(scores, image_of_caption)["rsum"]))
    return result
