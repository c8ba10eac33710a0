"""What the ranking losses share: the positive pairs of a batch, and their cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional as F


def positive_pairs(scores: Tensor, positives: Tensor, pairs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the positive pairs of a batch.

    Args:
        scores: Scores (A, C), images by captions.
        positives: (A, C) bool, True where image and caption belong together.
        pairs: The rows and columns (2, P) of the positive pairs, where they are known. Without them they are looked
            for, and a GPU has to be waited for: how many are there?

    Returns:
        Rows (P,) and columns (P,) of the P positive pairs.

    Raises:
        ValueError: The shapes differ, ``positives`` is not bool, or no pair is positive.

    >>> positive_pairs(torch.randn(2, 2), torch.eye(2, dtype=torch.bool))
    (tensor([0, 1]), tensor([0, 1]))
    """
    if scores.dim() != 2 or scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives must be (A, C) alike, got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    if positives.dtype != torch.bool:
        raise ValueError(f"positives must be bool, got {positives.dtype}")
    rows, columns = positives.nonzero(as_tuple=True) if pairs is None else pairs
    if not torch.compiler.is_compiling() and not len(rows):
        raise ValueError("the batch has no positive pair")
    return rows, columns


def pair_cross_entropy(matches: Tensor, negatives: Tensor, query: Tensor) -> Tensor:
    """Compute the mean cross-entropy of positive pairs against the negatives of their queries.

    mean over pairs p of log(1 + sum_c exp(negatives[query_p, c]) / exp(matches_p)).

    Args:
        matches: Scores of the positive pairs (P,), divided by the temperature.
        negatives: Scores (Q, C) of the queries' negatives, divided by the temperature; -inf where there is none.
        query: The row of ``negatives`` that belongs to each pair (P,).

    Returns:
        A scalar.

    >>> pair_cross_entropy(torch.zeros(1), torch.zeros(1, 1), torch.tensor([0]))
    tensor(0.6931)
    """
    lowest = torch.finfo(negatives.dtype).min / 2  # finite: the gradient of an all -inf row's logsumexp is NaN
    against = negatives.clamp(min=lowest).logsumexp(1)
    return F.softplus(against[query] - matches).mean()
