"""Folds: which images and captions are ranked together, and the metrics of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.metrics import retrieval_metrics


class Fold(NamedTuple):
    """Images and captions that are ranked among themselves."""

    scores: Tensor  # (images, captions) of the fold
    positives: np.ndarray  # (images, captions) bool
    image_of_caption: np.ndarray  # (captions,) index of each caption's image among all images of the corpus


def split_folds(scores: Tensor, image_of_caption: np.ndarray, folds: int = 1) -> list[Fold]:
    """Cut a score matrix into equal slices of the images in their order, each with its own captions.

    Args:
        scores: Scores (images, captions).
        image_of_caption: Index (captions,) of each caption's image.
        folds: The number of slices.

    Returns:
        The slices.

    Raises:
        ValueError: The images cannot be divided into that many equal slices.

    >>> [fold.scores.tolist() for fold in split_folds(torch.eye(4), np.arange(4), folds=2)]
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
    """
    if len(scores) % folds:
        raise ValueError(f"expected images that can be divided into {folds} folds, got {len(scores)}")
    size = len(scores) // folds
    result = []
    for first in range(0, len(scores), size):
        captions = np.flatnonzero((image_of_caption >= first) & (image_of_caption < first + size))
        own = image_of_caption[captions]
        positives = np.arange(first, first + size)[:, None] == own[None, :]
        part = scores if folds == 1 else scores[first : first + size, torch.from_numpy(captions)]
        result.append(Fold(part, positives, own))
    return result


def fold_metrics(scores: Tensor, image_of_caption: np.ndarray, folds: int = 1, clips: bool = False) -> dict[str, Any]:
    """Retrieval metrics of a corpus, averaged over folds: each fold counts the same.

    Args:
        scores: Scores (images, captions).
        image_of_caption: Index (captions,) of each caption's image.
        folds: The number of folds, see :func:`split_folds`.
        clips: Whether the images are clips. Their metrics also have "nmr", the normalised median rank: the median rank
            divided by the number of candidates (PVSE, Song & Soleymani 2019).

    Returns:
        The dict of :func:`vse.metrics.retrieval_metrics`; with several folds, also "folds", their number.

    Raises:
        ValueError: As :func:`split_folds` and :func:`vse.metrics.retrieval_metrics`.

    >>> fold_metrics(torch.eye(10), np.arange(10), folds=5)["rsum"]
    600.0
    """
    found = []
    for fold in split_folds(scores, image_of_caption, folds):
        metrics = retrieval_metrics(fold.scores, fold.positives)
        if clips:
            metrics["i2t"]["nmr"] = metrics["i2t"]["medr"] / fold.scores.shape[1]
            metrics["t2i"]["nmr"] = metrics["t2i"]["medr"] / fold.scores.shape[0]
        found.append(metrics)
    return found[0] if folds == 1 else {**_mean(found), "folds": folds}


def _mean(trees: Sequence[Any]) -> Any:
    """Mean of dicts of numbers, key by key."""
    if isinstance(trees[0], dict):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))
