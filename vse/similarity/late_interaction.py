"""Late interaction: each element of one set looks for its best partners in the other, then the results are pooled.

Both sets keep all their elements, such as regions and words (the aggregator ``tokens``), so the masks matter here. The
left set is the image's, the right one the caption's.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vse.errors import check_choice, check_positive
from vse.sets import at_least_float32, fill_masked, masked_softmax
from vse.similarity.base import hide, left_mask, max_over, mean_over, pair_cosines, right_mask, sum_over, unit

Side = Literal["image", "text"]
Reduction = Literal["sum", "mean"]
Coding = Literal["hard_words", "hard_regions", "soft_regions"]
Pooling = Literal["lse", "mean", "max", "sum", "softmax"]

_SMALLEST = 1e-12  # smallest squared length, so that a root has a finite gradient


def max_sim(
    a: Tensor,
    b: Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    query: Side = "text",
    reduction: Reduction = "sum",
) -> Tensor:
    """MaxSim: each element of the query finds its best partner (ColBERT, Khattab & Zaharia 2020, equation 3).

    sum_l max_k c_kl for the query "text", and sum_k max_l c_kl for the query "image", where c_kl is the cosine of the
    image's element k and the caption's element l. The sum grows with the size of the query; the mean does not.

    Args:
        a: Embeddings (A, K, H) of the images.
        b: Embeddings (C, L, H) of the captions.
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.
        query: The side whose elements are summed over.
        reduction: "sum" (ColBERT) or "mean" over the query's elements.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong, or a choice is unknown.

    >>> max_sim(torch.randn(3, 36, 8), torch.randn(5, 12, 8)).shape
    torch.Size([3, 5])
    """
    check_choice("query", query, get_args(Side))
    check_choice("reduction", reduction, get_args(Reduction))
    best = _best_partners(pair_cosines(a, b, a_mask, b_mask), a_mask, b_mask, query)
    return sum_over(*best) if reduction == "sum" else mean_over(*best)


def chan(
    a: Tensor,
    b: Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    coding: Coding = "hard_words",
    pooling: Pooling = "lse",
    coding_temperature: float = 0.1,
    pooling_temperature: float = 0.1,
) -> Tensor:
    """Cross-modal aligning: one number for each element of a side, then a pooling (CHAN, Pan, Wu & Zhang, CVPR 2023).

    The numbers u, from the cosines c_kl of region k and word l:

    - "hard_words" (the released VHACoding): u_l = max_k c_kl, one for each word.
    - "hard_regions" (THACoding): u_k = max_l c_kl, one for each region.
    - "soft_regions" (VSACoding): u_k = r_k . t_k / (|t_k| + 1e-8), where t_k = sum_l w_l softmax_l(c_kl /
      ``coding_temperature``) is the mixture of the words w that region r_k attends to.

    The poolings of the n numbers, with p the ``pooling_temperature``:

    - "lse": log sum exp(u / p). As in the released code it is **not** multiplied by p, so it is a score on the scale of
      u / p, which grows with log n; a margin of 0.05 then is one of 0.05 p between cosines. The paper's formula has the
      factor p in front.
    - "softmax": sum softmax(u / p) u. The released code gives NaN for it as soon as there is padding.
    - "mean", "max" and "sum".

    It is not symmetric: exchanging the sides turns "hard_words" into "hard_regions". Half precision is computed in
    float32.

    Args:
        a: Embeddings (A, K, H) of the images' regions.
        b: Embeddings (C, L, H) of the captions' words.
        a_mask: (A, K), True on real regions; None when all are real.
        b_mask: (C, L), True on real words; None when all are real.
        coding: How a number is made for each element of a side.
        pooling: How the numbers become a score.
        coding_temperature: What cosines are divided by in the softmax of "soft_regions".
        pooling_temperature: What the numbers are divided by in "lse" and "softmax".

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong, a choice is unknown, or a temperature is not positive.

    >>> chan(torch.randn(3, 36, 8), torch.randn(5, 12, 8), pooling="mean").shape
    torch.Size([3, 5])
    """
    check_choice("coding", coding, get_args(Coding))
    check_choice("pooling", pooling, get_args(Pooling))
    check_positive("coding_temperature", coding_temperature)
    check_positive("pooling_temperature", pooling_temperature)
    kind, (a, b) = a.dtype, (at_least_float32(a), at_least_float32(b))
    cosines = pair_cosines(a, b, a_mask, b_mask)
    if coding == "soft_regions":
        codes = _soft_codes(cosines, b, a_mask, b_mask, coding_temperature)
    else:
        codes = _best_partners(cosines, a_mask, b_mask, "text" if coding == "hard_words" else "image")
    return _pool(codes, pooling, pooling_temperature).to(kind)


class Codes(NamedTuple):
    """One number for each element of a side.

    Attributes:
        values: (A, L, C) for the words, or (K, A, C) for the regions.
        mask: True on real elements, of a shape that broadcasts against the values; None when all are real.
        dim: The axis of the elements, counted from the end.
    """

    values: Tensor
    mask: Tensor | None
    dim: int


def _best_partners(cosines: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, query: Side) -> Codes:
    """The cosine of each query element's best partner."""
    if query == "text":
        return Codes(max_over(cosines, left_mask(a_mask, 2), -4), right_mask(b_mask), -2)
    return Codes(max_over(cosines, right_mask(b_mask), -2), left_mask(a_mask, 1), -3)


def _soft_codes(
    cosines: Tensor, words: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, temperature: float
) -> Codes:
    """The cosine of each region and the mixture of words that it attends to.

    |t_k|^2 comes from the words' own products: the mixtures themselves, (K, A, C, H), would not fit into memory.
    """
    weights = masked_softmax(cosines / temperature, right_mask(b_mask), -2)
    words = unit(fill_masked(words, b_mask))
    products = words @ words.transpose(1, 2)  # (C, L, L)
    squared = (torch.einsum("kalc,clm->kamc", weights, products) * weights).sum(2)
    length = squared.clamp(min=_SMALLEST).sqrt() + 1e-8
    return Codes((weights * cosines).sum(2) / length, left_mask(a_mask, 1), -3)


def _pool(codes: Codes, pooling: Pooling, temperature: float) -> Tensor:
    """Scores (A, C) from the numbers of a side's elements."""
    values, mask, dim = codes
    if pooling == "lse":
        return hide(values / temperature, mask, float("-inf")).logsumexp(dim)
    if pooling == "softmax":
        return (masked_softmax(values / temperature, mask, dim) * values).sum(dim)
    if pooling == "mean":
        return mean_over(values, mask, dim)
    return max_over(values, mask, dim) if pooling == "max" else sum_over(values, mask, dim)
