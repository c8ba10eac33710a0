"""Bootstrap intervals: how much the metrics would differ on other test images of the same kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vse.errors import InputError
from vse.evaluation.folds import split_folds
from vse.metrics import query_ranks

_MOST_SAMPLES = 10_000  # more take much memory and change no printed digit


def bootstrap(
    members: Sequence[Tensor], image_of_caption: np.ndarray, folds: int = 1, samples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """95 % intervals of R@K and RSUM, by resampling the images.

    A sample draws as many images as there are, with replacement, and takes their captions with them: these are the
    queries. The candidates stay what they are; with several folds, a query keeps the candidates of its fold. All
    members share the samples, so their differences are paired.

    Args:
        members: Score matrices (images, captions) of several models on one corpus.
        image_of_caption: Index (captions,) of each caption's image.
        folds: The number of folds, see :func:`vse.evaluation.folds.split_folds`.
        samples: The number of samples, 1 to 10,000.
        seed: The seed of the draws.

    Returns:
        For each member ``{"samples", "i2t": {"r1": [low, high], ...}, "t2i": {...}, "rsum": [low, high]}``; each after
        the first also has "difference", the interval of its RSUM minus the first one's.

    Raises:
        InputError: The number of samples is out of range.

    >>> bootstrap([torch.eye(9)], np.arange(9), samples=100)[0]["rsum"]
    [600.0, 600.0]
    """
    check_samples(samples)
    images = len(members[0])
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    results: list[dict[str, Any]] = []
    sums: list[np.ndarray] = []
    for scores in members:
        result: dict[str, Any] = {"samples": samples}
        total = np.zeros(samples)
        for side, (ranks, queries) in _ranks_of_queries(scores, image_of_caption, folds).items():
            weights = draws[:, queries]
            weights = weights / weights.sum(1, keepdims=True)
            result[side] = {}
            for k in (1, 5, 10):
                recalls = 100 * weights @ (ranks < k)
                result[side][f"r{k}"] = _interval(recalls)
                total += recalls
        result["rsum"] = _interval(total)
        if sums:
            result["difference"] = _interval(total - sums[0])
        sums.append(total)
        results.append(result)
    return results


def check_samples(samples: int) -> None:
    """Check the number of bootstrap samples.

    Args:
        samples: The number, which must be from 1 to 10,000.

    Raises:
        InputError: The number is smaller or larger.
    """
    if not 1 <= samples <= _MOST_SAMPLES:
        raise InputError(f"bootstrap needs 1 to {_MOST_SAMPLES:,} samples, got {samples}")


def _ranks_of_queries(
    scores: Tensor, image_of_caption: np.ndarray, folds: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For both directions, the rank of each query, and the index of the image that it is or describes."""
    i2t, t2i, images, captions = [], [], [], []
    for fold in split_folds(scores, image_of_caption, folds):
        i2t.append(query_ranks(fold.scores, fold.positives).numpy())
        t2i.append(query_ranks(fold.scores.T, fold.positives.T).numpy())
        images.append(np.unique(fold.image_of_caption))  # an image without a caption is no query
        captions.append(fold.image_of_caption)
    return {
        "i2t": (np.concatenate(i2t), np.concatenate(images)),
        "t2i": (np.concatenate(t2i), np.concatenate(captions)),
    }


def _interval(values: np.ndarray) -> list[float]:
    """Return the ends of the middle 95 % of some values."""
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]
