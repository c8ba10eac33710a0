"""Score a corpus: every image against every caption, in blocks of bounded memory."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vse.console import show_progress
from vse.contracts import check_scores
from vse.data.corpus import Corpus
from vse.distributed import broadcast, is_main
from vse.errors import InputError
from vse.evaluation.blocks import NaNScores, ScoreBlocks, blocks_of_embeddings, blocks_of_matrix, bounds, check_not_nan
from vse.evaluation.encode import CorpusEmbeddings, check_corpus, encode_corpus
from vse.evaluation.folds import FoldRanks, fold_metrics, rank_folds
from vse.model import VSEModel
from vse.ragged import RaggedSets, Sets
from vse.set_health import set_health
from vse.similarity import check_takes_masks


@dataclass(frozen=True, eq=False)
class CorpusScores:
    """The scores that one model, or an ensemble, gives to a corpus.

    A model's scores are computed in blocks from its embeddings where they are needed. The matrix of all of them is made
    only where it is asked for.

    Attributes:
        name: What reports call the model or the ensemble.
        matrix: Scores (images, captions), float32 on the CPU, of an ensemble or from a file; None for a single model.
        sets: What is known of the embedding sets; empty for single embeddings and ensembles.
        embeddings: The embeddings of each of its models; empty for scores that come from a file.
        models: The number of models.
    """

    name: str
    matrix: Tensor | None = None
    sets: dict[str, Any] = field(default_factory=dict)
    embeddings: tuple[CorpusEmbeddings, ...] = ()
    models: int = 1
    _ranks: dict[tuple[int, bytes], list[FoldRanks]] = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def scores(self) -> Tensor:
        """Scores (images, captions), float32 on the CPU; they are computed at the first call, and kept.

        Raises:
            NaNScores: The model gives NaN.
        """
        return score(*self.embeddings[0]) if self.matrix is None else self.matrix

    @property
    def blocks(self) -> ScoreBlocks:
        """The same scores in blocks, from the matrix if it is there and else from the embeddings."""
        if self.matrix is None and "scores" not in self.__dict__:
            return blocks_of_embeddings(*self.embeddings[0])
        return blocks_of_matrix(self.scores)

    def ranks(self, image_of_caption: np.ndarray, folds: int = 1, progress: bool = True) -> list[FoldRanks]:
        """Rank within folds; the ranks are kept, so that metrics and their intervals need one pass.

        Args:
            image_of_caption: Index (captions,) of each caption's image.
            folds: The number of folds.
            progress: Whether to show a progress bar.

        Returns:
            The ranks of each fold, see :func:`vse.evaluation.folds.rank_folds`.

        Raises:
            ValueError: As :func:`vse.evaluation.folds.rank_folds`; NaNScores is one.
        """
        key = folds, image_of_caption.tobytes()
        if key not in self._ranks:
            self._ranks[key] = rank_folds(self.blocks, image_of_caption, folds, progress)
        return self._ranks[key]

    def with_sets(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Add what is known of the embedding sets to metrics.

        Args:
            metrics: Metrics of these scores.

        Returns:
            The metrics, with "sets" beside them where there are embedding sets.
        """
        return {**metrics, "sets": self.sets} if self.sets else metrics


@torch.no_grad()
def score(similarity: Callable[..., Tensor], images: Sets, captions: Sets, progress: bool = True) -> Tensor:
    """Compare all embeddings of images with all of captions, in square blocks of bounded memory.

    Args:
        similarity: A function of two batches of embedding sets, see :mod:`vse.similarity`.
        images: Embeddings (images, K, H), or sets of different sizes.
        captions: Embeddings (captions, L, H), or sets of different sizes.
        progress: Whether to show a progress bar.

    Returns:
        Scores (images, captions), float32 on the CPU.

    Raises:
        NaNScores: A score is NaN.

    >>> score(cosine, torch.eye(2)[:, None], torch.eye(2)[:, None]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    blocks = blocks_of_embeddings(similarity, images, captions)
    scores, peaks = torch.empty(len(images), len(captions)), []
    sides = [[slice(*part) for part in pairwise(bounds(total, blocks.side).tolist())] for total in scores.shape]
    corners = list(product(*sides))
    for rows, columns in show_progress(corners, len(corners), "scoring", " blocks", delay=2, shown=progress):
        block = blocks.block(rows, columns)
        peaks.append(block.amax())
        scores[rows, columns] = block
    check_not_nan(torch.stack(peaks))
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
        Embeddings of the images (images, K, H) and of the captions (captions, L, H), without padding where the sets
        differ in size, and the model's similarity.

    Raises:
        InputError: The corpus does not fit the model, or its features hold NaN or Inf.
    """
    check_corpus(model, corpus)
    with _mistakes_of(corpus):
        return encode_corpus(model, corpus, batch_size, precision, progress)


def score_embeddings(embeddings: CorpusEmbeddings, corpus: Corpus, name: str = "") -> CorpusScores:
    """Prepare the scores of all images against all captions of a corpus, by their embeddings.

    Args:
        embeddings: The embeddings, from :func:`embed_corpus`.
        corpus: The corpus that they belong to.
        name: What reports call the model.

    Returns:
        The scores, which are computed where they are needed, the embeddings, and the health of embedding sets
        (:func:`vse.set_health.set_health`).

    Raises:
        InputError: The embeddings do not fit the similarity.
    """
    similarity, images, captions = embeddings
    with _mistakes_of(corpus), torch.no_grad():
        if isinstance(images, RaggedSets) or isinstance(captions, RaggedSets):
            check_takes_masks(similarity)
        else:
            check_scores(similarity, images, captions)
        blocks_of_embeddings(similarity, images, captions).block(slice(1), slice(1))
    image_of_caption = torch.from_numpy(corpus.image_of_caption).to(images.device)
    health = set_health(images, captions, image_of_caption, similarity)
    return CorpusScores(name, sets={key: float(value) for key, value in health.items()}, embeddings=(embeddings,))


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
        InputError: As :func:`embed_corpus` and :func:`score_embeddings`, or the model gives NaN.
    """
    embeddings = embed_corpus(model, corpus, batch_size, precision, progress)
    metrics: dict[str, Any] = {}
    if is_main():
        scored = score_embeddings(embeddings, corpus)
        with nan_names(corpus):
            ranks = scored.ranks(corpus.image_of_caption, progress=progress)
        metrics = scored.with_sets(fold_metrics(ranks, corpus.video))
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


@contextlib.contextmanager
def nan_names(corpus: Corpus) -> Iterator[None]:
    """Name the corpus on which a model gives NaN, which shows only while the scores are computed.

    Args:
        corpus: The corpus.

    Raises:
        InputError: A score that the block computed is NaN.
    """
    try:
        yield
    except NaNScores as error:
        raise InputError(f"{corpus.name}: {error}") from None


def single_embedding_rsums(
    embeddings: CorpusEmbeddings, image_of_caption: np.ndarray, progress: bool = True
) -> dict[str, list[float]]:
    """Compute the RSUM of each embedding of a set alone, which shows what the other embeddings add.

    For each k, one side's sets are cut to their k-th embedding, (n, 1, H), while the other side keeps its whole sets;
    the model's own similarity compares them, and the RSUM is that of plain retrieval among all images and captions.
    All K scorings of a side together cost as much as scoring the whole sets once. Sets of different sizes, such as the
    words of captions, have no k-th embedding that would mean the same in all of them: they are left out.

    Args:
        embeddings: The embeddings of a corpus, K for each image and L for each caption.
        image_of_caption: Index (captions,) of each caption's image.
        progress: Whether to show a progress bar.

    Returns:
        "image_rsum", a list of K numbers, where K > 1; and "text_rsum", a list of L numbers, where L > 1. Nothing where
        a side's sets differ in size.

    >>> single_embedding_rsums(CorpusEmbeddings(max_cosine, images, captions), image_of_caption)
    {'image_rsum': [401.2, 397.5], 'text_rsum': [399.0, 384.8]}
    """
    similarity, images, captions = embeddings
    if isinstance(images, RaggedSets) or isinstance(captions, RaggedSets):
        return {}
    pairs: list[tuple[str, Tensor, Tensor]] = []
    if images.shape[1] > 1:
        pairs += [("image_rsum", single, captions) for single in images.split(1, dim=1)]
    if captions.shape[1] > 1:
        pairs += [("text_rsum", images, single) for single in captions.split(1, dim=1)]
    result: dict[str, list[float]] = {}
    bar = show_progress(pairs, len(pairs), "single embeddings", " embeddings", delay=2, shown=progress)
    for name, some_images, some_captions in bar:
        ranks = rank_folds(blocks_of_embeddings(similarity, some_images, some_captions), image_of_caption)
        result.setdefault(name, []).append(float(fold_metrics(ranks)["rsum"]))
    return result
