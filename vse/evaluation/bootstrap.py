"""Bootstrap intervals: how much the metrics would differ on other test images of the same kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vse.errors import InputError
from vse.evaluation.folds import FoldRanks

_MOST_SAMPLES = 10_000  # more take long and change no printed digit
_DRAWN = 1 << 22  # numbers that are drawn at a time
_SIDES = ("i2t", "t2i")
_KS = (1, 5, 10)

Ranks = Sequence[FoldRanks]  # of one model, by folds


def bootstrap(results: Sequence[Sequence[Ranks]], samples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """95 % intervals of R@K and RSUM, by resampling the images.

    A sample draws as many images as there are, with replacement, and takes their captions with them: these are the
    queries. The candidates stay what they are; with several folds, a query keeps the candidates of its fold. All
    results share the samples, so their differences are paired.

    A result may be the mean of several runs. Its interval then is that of the mean: it tells of the choice of images,
    not of the choice of seeds.

    An image without a caption is no query. A sample of nothing but such images is left out.

    Args:
        results: For each result the ranks of its runs, one or several, on one corpus, see
            :func:`vse.evaluation.folds.rank_folds`.
        samples: The number of samples, 1 to 10,000.
        seed: The seed of the draws.

    Returns:
        For each result ``{"samples", "i2t": {"r1": [low, high], ...}, "t2i": {...}, "rsum": [low, high]}``; each after
        the first also has "difference", the interval of its RSUM minus the first one's.

    Raises:
        InputError: The number of samples is out of range, or in none of them is an image with a caption.

    >>> bootstrap([[rank_folds(blocks_of_matrix(torch.eye(9)), np.arange(9))]], samples=100)[0]["rsum"]
    [600.0, 600.0]
    """
    check_samples(samples)
    images = sum(len(fold.images) for fold in results[0][0])
    sums = _drawn_sums(np.stack([_sums_of_images(runs, images) for runs in results]), samples, seed)
    sums = sums[(sums[..., 0] > 0).all((1, 2))]
    if not len(sums):
        raise InputError(f"none of {samples} bootstrap samples has an image with a caption; take more samples")
    recalls = 100 * (sums[..., 1:] / sums[..., :1])
    rsums = recalls.sum((2, 3))
    found: list[dict[str, Any]] = []
    for number in range(len(results)):
        result: dict[str, Any] = {"samples": samples}
        for place, side in enumerate(_SIDES):
            own = recalls[:, number, place]
            result[side] = {f"r{k}": _interval(own[:, column]) for column, k in enumerate(_KS)}
        result["rsum"] = _interval(rsums[:, number])
        if number:
            result["difference"] = _interval(rsums[:, number] - rsums[:, 0])
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


def _sums_of_images(runs: Sequence[Ranks], images: int) -> np.ndarray:
    """What each image adds to the recalls of a result, (sides, 4, images).

    These are the number of its queries in all runs, and the number of them whose rank is below 1, 5 and 10. Such whole
    numbers add up exactly, in whatever order.
    """
    sums = np.zeros((len(_SIDES), 1 + len(_KS), images))
    for folds in runs:
        for place, (ranks, image_of_query) in enumerate(_ranks_of_queries(folds)):
            sums[place, 0] += np.bincount(image_of_query, minlength=images)
            for column, k in enumerate(_KS, 1):
                sums[place, column] += np.bincount(image_of_query[ranks < k], minlength=images)
    return sums


def _drawn_sums(sums: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Add up the sums of images (..., images) over the images of each sample, (samples, ...).

    The samples are drawn some at a time: all of them together would take 9 GB for 10,000 samples of COCO's images.
    """
    images = sums.shape[-1]
    columns = sums.reshape(-1, images).T
    generator, size = np.random.default_rng(seed), max(1, _DRAWN // images)
    found = []
    for first in range(0, samples, size):
        draws = generator.multinomial(images, np.full(images, 1 / images), size=min(size, samples - first))
        found.append(draws.astype(np.float64) @ columns)
    return np.concatenate(found).reshape(samples, *sums.shape[:-1])


def _ranks_of_queries(folds: Ranks) -> list[tuple[np.ndarray, np.ndarray]]:
    """For both directions, the rank of each query, and the index of the image that it is or describes."""
    i2t = np.concatenate([fold.i2t.numpy() for fold in folds])
    images = np.concatenate([fold.images for fold in folds])
    asked = i2t >= 0  # an image without a caption is no query
    t2i = np.concatenate([fold.t2i.numpy() for fold in folds])
    return [(i2t[asked], images[asked]), (t2i, np.concatenate([fold.image_of_caption for fold in folds]))]


def _interval(values: np.ndarray) -> list[float]:
    """Return the ends of the middle 95 % of some values."""
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]
