"""Evaluation protocols: which images and captions are ranked together, and how sure the numbers are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.errors import InputError
from vse.metrics import query_ranks, retrieval_metrics

_FOLDS = 5
_IMAGES = {"f30k": 1000, **dict.fromkeys(("coco_1k", "coco_5k", "coco", "cxc", "eccv"), 5000)}  # of the test split
PROTOCOLS = ("retrieval", "f30k", "coco_1k", "coco_5k", "coco", "cxc", "eccv", "video")


def evaluate_scores(scores: Tensor, image_of_caption: np.ndarray, protocol: str, video: bool = False) -> dict[str, Any]:
    """Metrics of a score matrix (images, captions) under a protocol.

    "retrieval": among all images and captions (:func:`vse.metrics.retrieval_metrics`' dict); "f30k" and "coco_5k" are
    that for test splits of 1,000 and 5,000 images; "coco_1k": the mean over five folds of 1,000 images in their order,
    "folds" beside it; "coco": {"coco_1k": ..., "coco_5k": ...}; "video" (and any for clips): "nmr" beside the median
    rank, the median rank divided by the number of candidates (PVSE, Song & Soleymani 2019). Raises InputError for a
    split of another size, both sizes named, and for "video" when there are no clips.
    """
    check_split(len(scores), protocol, video)
    if protocol == "coco":
        return {name: evaluate_scores(scores, image_of_caption, name, video) for name in ("coco_1k", "coco_5k")}
    folds = [_metrics(*fold[:2], video) for fold in _folds(scores, image_of_caption, protocol)]
    return folds[0] if len(folds) == 1 else {**_mean(folds), "folds": len(folds)}


def check_split(images: int, protocol: str, video: bool, captions: int | None = None) -> None:
    """Raise InputError for a split that a protocol is not for, naming both sizes."""
    expected = _IMAGES.get(protocol, images)
    if images != expected:
        raise InputError(f"protocol {protocol} is for a split of {expected:,} images, this one has {images:,}")
    if expected == 5000 and protocol in _IMAGES and captions not in (None, 25_000):
        hint = "; with karpathy, data.options.per_image=5 takes the first five of an image" * (captions > 25_000)
        raise InputError(f"protocol {protocol} is for 25,000 captions, this split has {captions:,}{hint}")
    if protocol == "video" and not video:
        raise InputError("protocol video is for clips, and this corpus has pictures or their features")


class _Fold(NamedTuple):
    scores: Tensor
    positives: np.ndarray
    image_of_caption: np.ndarray  # among all images


def _folds(scores: Tensor, image_of_caption: np.ndarray, protocol: str) -> list[_Fold]:
    """What is ranked together."""
    count = _FOLDS if protocol == "coco_1k" else 1
    size = len(scores) // count
    folds = []
    for first in range(0, count * size, size):
        captions = np.flatnonzero((image_of_caption >= first) & (image_of_caption < first + size))
        own = image_of_caption[captions]
        positives = np.arange(first, first + size)[:, None] == own[None, :]
        part = scores if count == 1 else scores[first : first + size, torch.from_numpy(captions)]
        folds.append(_Fold(part, positives, own))
    return folds


def _metrics(scores: Tensor, positives: np.ndarray, video: bool) -> dict[str, Any]:
    metrics = retrieval_metrics(scores, positives)
    if video:
        for side, candidates in (("i2t", scores.shape[1]), ("t2i", scores.shape[0])):
            metrics[side]["nmr"] = metrics[side]["medr"] / candidates
    return metrics


def _mean(trees: Sequence[Any]) -> Any:
    """Mean of dicts of numbers, key by key."""
    if isinstance(trees[0], dict):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))


def bootstrap(
    members: Sequence[Tensor], image_of_caption: np.ndarray, protocol: str, samples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """95 % intervals of R@K and RSUM for each of some score matrices on the same corpus, by resampling images.

    A sample draws as many images as there are, with replacement, and their captions with them: these are the queries;
    the candidates stay. All members share the samples; each after the first has "difference", the interval of its RSUM
    minus the first's. Under "coco_1k" a query keeps its fold's candidates; "coco" is not for this. Raises InputError
    for no samples.

    >>> bootstrap([torch.eye(9)], np.arange(9), "retrieval", samples=100)[0]["rsum"]
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
        for side, ranks, queries in _query_ranks(scores, image_of_caption, protocol):
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
    """Raise InputError for a number of bootstrap samples that means nothing or takes all memory."""
    if not 1 <= samples <= 10_000:
        raise InputError(f"bootstrap needs 1 to 10,000 samples, got {samples}")


def _query_ranks(
    scores: Tensor, image_of_caption: np.ndarray, protocol: str
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """For both directions, the rank of each query and the image that it is or describes."""
    i2t, t2i, images, captions = [], [], [], []
    for fold in _folds(scores, image_of_caption, protocol):
        i2t.append(query_ranks(fold.scores, fold.positives).numpy())
        t2i.append(query_ranks(fold.scores.T, fold.positives.T).numpy())
        images.append(np.unique(fold.image_of_caption))
        captions.append(fold.image_of_caption)
    pairs = (("i2t", i2t, images), ("t2i", t2i, captions))
    return [(side, np.concatenate(ranks), np.concatenate(of)) for side, ranks, of in pairs]


def _interval(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]
