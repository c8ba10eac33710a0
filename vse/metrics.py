"""Retrieval metrics: numbers in, numbers out."""

from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 24  # score entries handled at a time: bounds the memory of the comparisons


def query_ranks(scores: Any, positives: Any) -> Tensor:
    """0-based rank of each query's best positive among the query's negatives.

    rank_q = the number of negatives that score at least as high as the best positive: a tie counts against the model.
    Scores are compared in float32.

    Args:
        scores: Scores (queries, items), a tensor or an array.
        positives: (queries, items) bool, True where the item is a right answer to the query.

    Returns:
        Ranks (queries,), without the queries that have no positive.

    Raises:
        ValueError: The shapes differ, ``positives`` is not bool, a score is NaN, or no query has a positive.

    >>> query_ranks([[0.9, 0.5], [0.9, 0.9]], [[True, False], [False, True]]).tolist()
    [0, 1]
    """
    scores, positives = torch.as_tensor(scores), torch.as_tensor(positives)
    if scores.dim() != 2 or scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives must both have the shape (queries, items), "
            f"got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    if positives.dtype != torch.bool:
        raise ValueError(f"positives must be bool, got {positives.dtype}")
    if not positives.any():
        raise ValueError("no query has a positive, so there is nothing to rank")
    rows = max(1, _CHUNK // scores.shape[1])
    ranks = []
    for part, real in zip(scores.split(rows), positives.split(rows), strict=True):
        part = part.float()
        if part.isnan().any():
            raise ValueError("scores contain NaN, which cannot be ranked")
        best = part.masked_fill(~real, float("-inf")).amax(1, keepdim=True)
        rank = ((part >= best) & ~real).sum(1)
        ranks.append(rank[real.any(1)])
    return torch.cat(ranks)


def summarise_ranks(ranks: Tensor) -> dict[str, float]:
    """Compute the recalls and the median and mean rank of all queries.

    The median rank is floor(median of the 0-based ranks) + 1, as in all four official codes. A median between two ranks
    is their mean, before it is rounded down.

    Args:
        ranks: 0-based ranks (queries,).

    Returns:
        ``{"r1", "r5", "r10", "medr", "meanr"}``: R@1, R@5 and R@10 in percent, and the 1-based median and mean rank.

    >>> summarise_ranks(torch.tensor([0, 7]))
    {'r1': 50.0, 'r5': 50.0, 'r10': 100.0, 'medr': 4.0, 'meanr': 4.5}
    """
    ranks = ranks.double()
    recall = {f"r{k}": 100.0 * float((ranks < k).double().mean()) for k in (1, 5, 10)}
    return {**recall, "medr": float(ranks.quantile(0.5).floor()) + 1, "meanr": float(ranks.mean()) + 1}


def retrieval_metrics(scores: Any, positives: Any) -> dict[str, Any]:
    """Compute image-to-text and text-to-image retrieval metrics of one score matrix.

    Ranks are those of :func:`query_ranks`: compared in float32, a tie counts against the model.

    Args:
        scores: Scores (images, captions), a tensor or an array.
        positives: (images, captions) bool, True where the caption describes the image.

    Returns:
        ``{"i2t": {"r1", "r5", "r10", "medr", "meanr"}, "t2i": {...}, "rsum"}``. Recalls are percentages; rsum is the
        sum of the six of them, at most 600.

    Raises:
        ValueError: The shapes differ, ``positives`` is not bool, a score is NaN, or no pair is positive.

    >>> retrieval_metrics(torch.eye(3), torch.eye(3, dtype=torch.bool))["rsum"]
    600.0
    """
    scores, positives = torch.as_tensor(scores), torch.as_tensor(positives)
    return metrics_of_ranks(query_ranks(scores, positives), query_ranks(scores.T, positives.T))


def metrics_of_ranks(i2t_ranks: Tensor, t2i_ranks: Tensor) -> dict[str, Any]:
    """Compute the metrics of both directions from the ranks of their queries.

    Args:
        i2t_ranks: The 0-based rank (images,) of each image that is a query.
        t2i_ranks: The 0-based rank (captions,) of each caption that is a query.

    Returns:
        The dict of :func:`retrieval_metrics`.

    >>> metrics_of_ranks(torch.tensor([0, 7]), torch.tensor([0, 0]))["rsum"]
    500.0
    """
    i2t, t2i = summarise_ranks(i2t_ranks), summarise_ranks(t2i_ranks)
    return {"i2t": i2t, "t2i": t2i, "rsum": sum(side[k] for side in (i2t, t2i) for k in ("r1", "r5", "r10"))}
