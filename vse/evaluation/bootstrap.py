"""Bootstrap intervals: how much the metrics would differ on other test images of the same kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vse.errors import InputError
from vse.evaluation.folds import FoldRanks

_MOST_SAMPLES = 10_000  # more take much memory and change no printed digit


Ranks = Sequence[FoldRanks]  # of one model, by folds


def bootstrap(results: Sequence[Sequence[Ranks]], samples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """95 % intervals of R@K and RSUM, by resampling the images.

    A sample draws as many images as there are, with replacement, and takes their captions with them: these are the
    queries. The candidates stay what they are; with several folds, a query keeps the candidates of its fold. All
    results share the samples, so their differences are paired.

    A result may be the mean of several runs. Its interval then is that of the mean: it tells of the choice of images,
    not of the choice of seeds.

    Args:
        results: For each result the ranks of its runs, one or several, on one corpus, see
            :func:`vse.evaluation.folds.rank_folds`.
        samples: The number of samples, 1 to 10,000.
        seed: The seed of the draws.

    Returns:
        For each result ``{"samples", "i2t": {"r1": [low, high], ...}, "t2i": {...}, "rsum": [low, high]}``; each after
        the first also has "difference", the interval of its RSUM minus the first one's.

    Raises:
        InputError: The number of samples is out of range.

    >>> bootstrap([[rank_folds(blocks_of_matrix(torch.eye(9)), np.arange(9))]], samples=100)[0]["rsum"]
    [600.0, 600.0]
    """
    check_samples(samples)
    images = sum(len(fold.images) for fold in results[0][0])
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    found: list[dict[str, Any]] = []
    sums: list[np.ndarray] = []
    for runs in results:
        result: dict[str, Any] = {"samples": samples}
        total = np.zeros(samples)
        sides = [_ranks_of_queries(folds) for folds in runs]
        for side in sides[0]:
            weights = draws[:, sides[0][side][1]]
            weights = weights / weights.sum(1, keepdims=True)
            result[side] = {}
            for k in (1, 5, 10):
                hits = np.mean([own[side][0] < k for own in sides], axis=0)
                recalls = 100 * weights @ hits
                result[side][f"r{k}"] = _interval(recalls)
                total += recalls
        result["rsum"] = _interval(total)
        if sums:
            result["difference"] = _interval(total - sums[0])
        sums.append(total)
        found.append(result)
    return found


def check_samples(samples: int) -> None:
    """Check the number of bootstrap samples.

    Args:
        samples: The number, which must be from 1 to 10,000.

    Raises:
        InputError: The number is smaller or larger.
    """
    if not 1 <= samples <= _MOST_SAMPLES:
        raise InputError(f"bootstrap needs 1 to {_MOST_SAMPLES:,} samples, got {samples}")


def _ranks_of_queries(folds: Sequence[FoldRanks]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For both directions, the rank of each query, and the index of the image that it is or describes."""
    i2t = np.concatenate([fold.i2t.numpy() for fold in folds])
    images = np.concatenate([fold.images for fold in folds])
    asked = i2t >= 0  # an image without a caption is no query
    return {
        "i2t": (i2t[asked], images[asked]),
        "t2i": (
            np.concatenate([fold.t2i.numpy() for fold in folds]),
            np.concatenate([fold.image_of_caption for fold in folds]),
        ),
    }


def _interval(values: np.ndarray) -> list[float]:
    """Return the ends of the middle 95 % of some values."""
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]
