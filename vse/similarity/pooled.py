"""Similarities that reduce the cosines of all pairs of embeddings to a number.

K and L may differ, and with masks each set has its own size. c_kl is the cosine of embeddings k and l; every maximum,
sum and mean runs over the real embeddings only.
"""

import torch
from torch import Tensor, nn

from vse.errors import check_positive
from vse.sets import fill_masked
from vse.similarity.base import (
    check_embeddings,
    hide,
    left_mask,
    max_over,
    mean_over,
    pair_cosines,
    right_mask,
    sum_over,
    unit,
)

_FLAT = 40.0  # temperature up to which exp(-2 t) is a float32 well above 0
_BLOCK = 1 << 25  # numbers that order() holds at a time


def cosine(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """Cosine of single embeddings, s_ij = <a_i, b_j> / (|a_i| |b_j|) (VSE++; VSE∞ equation 1).

    Args:
        a: Embeddings (A, 1, H).
        b: Embeddings (C, 1, H).
        a_mask: (A, 1), True on real embeddings; None when all are real.
        b_mask: (C, 1), True on real embeddings; None when all are real.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong, or a side has more than one embedding per sample.

    >>> cosine(torch.randn(3, 1, 8), torch.randn(5, 1, 8)).shape
    torch.Size([3, 5])
    """
    check_embeddings(a, b, a_mask, b_mask)
    if a.shape[1] != 1 or b.shape[1] != 1:
        raise ValueError(f"cosine compares single embeddings, got K = {a.shape[1]} and L = {b.shape[1]}")
    return unit(a[:, 0]) @ unit(b[:, 0]).T


def max_cosine(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """Cosine of the best pair, max_kl c_kl: multiple-instance learning (PVSE, Song & Soleymani 2019).

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong.

    >>> max_cosine(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """
    cosines = pair_cosines(a, b, a_mask, b_mask)
    best = max_over(cosines, right_mask(b_mask), -2)  # (K, A, C)
    return max_over(best, left_mask(a_mask, 1), -3)


def chamfer(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """Chamfer similarity, (mean_k max_l c_kl + mean_l max_k c_kl) / 2 (DivE, Kim et al. 2023, section 3.3).

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong.

    >>> chamfer(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """
    cosines = pair_cosines(a, b, a_mask, b_mask)
    best_of_a = max_over(cosines, right_mask(b_mask), -2)  # (K, A, C)
    best_of_b = max_over(cosines, left_mask(a_mask, 2), -4)  # (A, L, C)
    return (mean_over(best_of_a, left_mask(a_mask, 1), -3) + mean_over(best_of_b, right_mask(b_mask), -2)) / 2


def smooth_chamfer(
    a: Tensor,
    b: Tensor,
    a_mask: Tensor | float | None = None,
    b_mask: Tensor | None = None,
    temperature: float = 16.0,
) -> Tensor:
    """Smooth-Chamfer similarity (DivE, Kim et al. 2023, section 3.3).

    (mean_k log sum_l exp(t c_kl) + mean_l log sum_k exp(t c_kl)) / 2t, where t is the ``temperature``. Every pair has a
    weight; the larger t is, the more of the weight is on the best pair. The score may exceed 1.

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).
        a_mask: (A, K), True on real embeddings; None when all are real. A number is taken as the temperature, which
            was the third argument before there were masks.
        b_mask: (C, L), True on real embeddings; None when all are real.
        temperature: The factor t of the cosines.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong, or ``temperature`` is not positive.

    >>> smooth_chamfer(torch.randn(3, 4, 8), torch.randn(5, 2, 8), temperature=16.0).shape
    torch.Size([3, 5])
    """
    if isinstance(a_mask, int | float):
        temperature, a_mask = a_mask, None
    check_positive("temperature", temperature)
    cosines = pair_cosines(a, b, a_mask, b_mask)
    rows, columns = left_mask(a_mask, 2), right_mask(b_mask)
    # A masked embedding of the side that is not summed over has cosines of 0, so that its logarithm is finite.
    if temperature > _FLAT or cosines.dtype in (torch.float16, torch.bfloat16):
        scaled = cosines * temperature
        of_a = hide(scaled, columns, float("-inf")).logsumexp(-2) / temperature
        of_b = hide(scaled, rows, float("-inf")).logsumexp(-4) / temperature
    else:  # no cosine exceeds 1: with exp(t (c - 1)) one exponential serves both sums, and neither sum underflows
        near = cosines.sub_(1.0).mul_(temperature).exp_()
        of_a = 1.0 + sum_over(near, columns, -2).log() / temperature
        of_b = 1.0 + sum_over(near, rows, -4).log() / temperature
    return (mean_over(of_a, left_mask(a_mask, 1), -3) + mean_over(of_b, columns, -2)) / 2


class MatchProbability(nn.Module):
    """Mean over all pairs of sigmoid(a c_kl + b), with a and b learned (PCME, Chun et al. 2021, as used by DivE).

    Args:
        scale: Initial value of a. DivE's released code does not train it.
        shift: Initial value of b. DivE's released code does not train it.

    >>> MatchProbability()(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
        """Compare embedding sets.

        Args:
            a: Embeddings (A, K, H).
            b: Embeddings (C, L, H).
            a_mask: (A, K), True on real embeddings; None when all are real.
            b_mask: (C, L), True on real embeddings; None when all are real.

        Returns:
            Scores (A, C).

        Raises:
            ValueError: A shape or a mask is wrong.
        """
        matches = (pair_cosines(a, b, a_mask, b_mask) * self.scale + self.shift).sigmoid()
        return mean_over(mean_over(matches, right_mask(b_mask), -2), left_mask(a_mask, 1), -3)


def order(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """Order-embedding score of the best pair, max_kl -|max(0, |b_l| - |a_k|)|_2 with |.| elementwise (PVSE's baseline).

    Vendrov et al. 2016: the score is 0 where the image a is at least as large as its caption b in every coordinate.

    Args:
        a: Embeddings (A, K, H) of the images.
        b: Embeddings (C, L, H) of the captions.
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong.

    >>> order(torch.randn(3, 1, 8), torch.randn(5, 1, 8)).shape
    torch.Size([3, 5])
    """
    check_embeddings(a, b, a_mask, b_mask)
    a, b = fill_masked(a, a_mask).abs(), fill_masked(b, b_mask).abs()
    if torch.compiler.is_compiling():  # for any number of samples, so in one piece
        return _order_scores(a, b, a_mask, b_mask)
    rows = max(1, _BLOCK // (a.shape[1] * b.numel()))  # in blocks, since the difference of all pairs has an axis H
    masks = [None] * len(a) if a_mask is None else a_mask.split(rows)
    return torch.cat([_order_scores(own, b, mask, b_mask) for own, mask in zip(a.split(rows), masks, strict=False)])


def _order_scores(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
    """Scores (A, C) of the absolute values of embeddings (A, K, H) and (C, L, H)."""
    excess = (b[None, None] - a[:, :, None, None]).relu()  # (A, K, C, L, H)
    size = torch.linalg.vector_norm(excess, dim=-1)
    if a_mask is not None:
        size = hide(size, a_mask[:, :, None, None], float("inf"))
    return -hide(size, b_mask, float("inf")).amin((1, 3))
