"""Folds: which images and captions are ranked together, and the metrics of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vse.evaluation.blocks import ScoreBlocks
from vse.evaluation.ranks import rank
from vse.metrics import metrics_of_ranks


class FoldRanks(NamedTuple):
    """The ranks of images and captions that are ranked among themselves.

    Attributes:
        i2t: The 0-based rank of each image of the fold, -1 for an image without a caption.
        t2i: The 0-based rank of each caption of the fold.
        images: The index of each of these images among all images of the corpus.
        image_of_caption: The index of each of these captions' image among all images of the corpus.
    """

    i2t: Tensor
    t2i: Tensor
    images: np.ndarray
    image_of_caption: np.ndarray


def rank_folds(
    scores: ScoreBlocks, image_of_caption: np.ndarray, folds: int = 1, progress: bool = False
) -> list[FoldRanks]:
    """Rank within equal slices of the images in their order, each with its own captions.

    Args:
        scores: Scores (images, captions).
        image_of_caption: Index (captions,) of each caption's image.
        folds: The number of slices.
        progress: Whether to show progress bars.

    Returns:
        The ranks of each slice, see :func:`vse.evaluation.ranks.rank`.

    Raises:
        ValueError: The images cannot be divided into that many equal slices, or a slice has no caption.
        NaNScores: A score is NaN.

    >>> [fold.t2i.tolist() for fold in rank_folds(blocks_of_matrix(torch.eye(4)), np.arange(4), folds=2)]
    [[0, 0], [0, 0]]
    """
    if scores.images % folds:
        raise ValueError(f"expected images that can be divided into {folds} folds, got {scores.images}")
    size = scores.images // folds
    pairs = np.stack([image_of_caption, np.arange(len(image_of_caption))], 1)
    result = []
    for first in range(0, scores.images, size):
        captions = np.flatnonzero((image_of_caption >= first) & (image_of_caption < first + size))
        images = np.arange(first, first + size)
        ranks = rank(scores, pairs, images, captions, progress)
        result.append(FoldRanks(ranks.i2t, ranks.t2i, images, image_of_caption[captions]))
    return result


def fold_metrics(folds: Sequence[FoldRanks], clips: bool = False) -> dict[str, Any]:
    """Retrieval metrics of a corpus, averaged over folds: each fold counts the same.

    Args:
        folds: The ranks of each fold, from :func:`rank_folds`.
        clips: Whether the images are clips. Their metrics also have "nmr", the normalised median rank: the median rank
            divided by the number of candidates (PVSE, Song & Soleymani 2019).

    Returns:
        The dict of :func:`vse.metrics.retrieval_metrics`; with several folds, also "folds", their number.

    >>> fold_metrics(rank_folds(blocks_of_matrix(torch.eye(10)), np.arange(10), folds=5))["rsum"]
    600.0
    """
    found = []
    for fold in folds:
        metrics = metrics_of_ranks(fold.i2t[fold.i2t >= 0], fold.t2i)
        if clips:
            metrics["i2t"]["nmr"] = metrics["i2t"]["medr"] / len(fold.t2i)
            metrics["t2i"]["nmr"] = metrics["t2i"]["medr"] / len(fold.i2t)
        found.append(metrics)
    return found[0] if len(folds) == 1 else {**_mean(found), "folds": len(folds)}


def _mean(trees: Sequence[Any]) -> Any:
    """Mean of dicts of numbers, key by key."""
    if isinstance(trees[0], dict):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))
