"""One-to-one matching of two small sets, exact, for all pairs of sets at once."""

from functools import cache
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vse.errors import check_choice
from vse.sets import at_least_float32
from vse.similarity.base import pair_cosines, sum_over

Value = Literal["cosine", "exponential"]

LARGEST = 8  # elements of a set; a set of n has 2^n subsets
_BLOCK = 1 << 25  # numbers that are compared at a time


def assignment(
    a: Tensor,
    b: Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    value: Value = "cosine",
) -> Tensor:
    """Maximal pair assignment: the best one-to-one matching of two sets (MaxMatch, Alomari et al., ACL 2025).

    pi* = argmax over one-to-one pi of sum_k c_{k, pi(k)}. The score is the mean over the matched pairs of c ("cosine")
    or of exp(c) - 1 ("exponential"). When the sets differ in size, every element of the smaller one gets a partner of
    its own. The matching is found without gradient; the gradient reaches each matched pair.

    **The paper's code is not public.** That the matching maximises the sum of cosines, that only matched cosines count,
    and that they are scaled by exp are the paper's. The mean and the -1 are a third party's reading. At test time
    the paper takes the most similar pairs instead, we do not know how many; here training and test are alike.

    The search goes over the subsets of the right set (Held & Karp 1962), 2^K K / 2 steps instead of K!, for all pairs
    of sets at once.

    Args:
        a: Embeddings (A, K, H), K at most 8.
        b: Embeddings (C, L, H), L at most 8.
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.
        value: What is averaged over the matched pairs, "cosine" or "exponential".

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape or a mask is wrong, a set has more than 8 elements, or ``value`` is unknown.

    >>> assignment(torch.eye(2)[None], torch.eye(2)[None])
    tensor([[1.]])
    """
    check_choice("value", value, get_args(Value))
    cosines = pair_cosines(a, b, a_mask, b_mask).permute(1, 0, 3, 2)
    size = max(a.shape[1], b.shape[1])
    if size > LARGEST:
        raise ValueError(f"assignment matches sets of at most {LARGEST}, got K = {a.shape[1]} and L = {b.shape[1]}")
    partners = match(cosines.detach(), a_mask, b_mask)  # (A, K, C)
    matched = cosines.gather(3, partners.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    has_partner = partners >= 0
    values = at_least_float32(matched)
    values = values.expm1() if value == "exponential" else values
    return (sum_over(values, has_partner, -2) / has_partner.sum(1)).to(cosines.dtype)


@torch.no_grad()
def match(cosines: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """Find the best one-to-one matching of each pair of sets.

    Args:
        cosines: What each pair of elements is worth, (A, K, C, L) with K and L at most 8.
        a_mask: (A, K), True on real elements; None when all are real.
        b_mask: (C, L), True on real elements; None when all are real.

    Returns:
        Partners (A, K, C): the place in the right set of each left element's partner, -1 for an element without one.

    >>> match(torch.tensor([[0.9, 0.8], [0.7, 0.1]])[None, :, None]).flatten().tolist()
    [1, 0]
    """
    size = max(cosines.shape[1], cosines.shape[3])
    steps = _steps(size, cosines.device)
    if torch.compiler.is_compiling():  # for any number of samples, so in one piece
        return _partners(cosines, a_mask, b_mask, steps)
    width = max(step.column.numel() for step in steps)
    rows = max(1, _BLOCK // (cosines.shape[2] * max(width, size * size)))
    masks = [None] * len(cosines) if a_mask is None else a_mask.split(rows)
    blocks = zip(cosines.split(rows), masks, strict=False)
    return torch.cat([_partners(own, mask, b_mask, steps) for own, mask in blocks])


def _partners(cosines: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, steps: list["_Step"]) -> Tensor:
    """What :func:`match` returns, for a block of the left sets."""
    left, right = cosines.shape[1], cosines.shape[3]
    worth = _square(cosines, a_mask, b_mask, len(steps))
    partners = _best_columns(worth, steps)[..., :left].transpose(1, 2)  # (A, K, C)
    found = partners < right
    if a_mask is not None:
        found = found & a_mask.unsqueeze(-1)
    if b_mask is not None:
        real = b_mask.expand(partners.shape[0], left, -1, -1)
        found = found & real.gather(3, partners.clamp(max=right - 1).unsqueeze(-1)).squeeze(-1)
    return partners.masked_fill(~found, -1)


def _square(cosines: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, size: int) -> Tensor:
    """The worth (A, C, size, size) of each pair, with dummies in masked and missing places.

    A dummy matches at no cost, but it must not take a partner away: where the left set is the smaller one, no real left
    element may match a dummy, and the other way round.
    """
    rows, left, columns, right = cosines.shape
    worth = at_least_float32(cosines).new_zeros(rows, columns, size, size)
    worth[..., :left, :right] = cosines.transpose(1, 2)
    real_left = _real(a_mask, rows, left, size, cosines.device)[:, None, :, None]
    real_right = _real(b_mask, columns, right, size, cosines.device)[None, :, None]
    smaller_left = real_left.sum(2, keepdim=True) <= real_right.sum(3, keepdim=True)
    smaller_right = real_left.sum(2, keepdim=True) >= real_right.sum(3, keepdim=True)
    worth = worth.masked_fill(~(real_left & real_right), 0.0)
    return worth.masked_fill((real_left & ~real_right & smaller_left) | (~real_left & real_right & smaller_right), -1e4)


def _real(mask: Tensor | None, samples: int, places: int, size: int, device: torch.device) -> Tensor:
    """Which of ``size`` places (samples, size) hold a real element."""
    real = torch.zeros(samples, size, dtype=torch.bool, device=device)
    real[:, :places] = True if mask is None else mask
    return real


class _Step(NamedTuple):
    """How the next left element extends the matchings; the subsets of n columns follow from those of n - 1.

    Attributes:
        before: (subsets, n) the number of the subset without each of its columns.
        column: (subsets, n) these columns.
    """

    before: Tensor
    column: Tensor


@cache
def _steps(size: int, device: torch.device) -> list[_Step]:
    """The steps for sets of ``size`` elements, kept on the device where they are needed."""
    steps = []
    number: dict[tuple[int, ...], int] = {(): 0}
    for count in range(1, size + 1):
        subsets = list(combinations(range(size), count))
        before = [[number[subset[:i] + subset[i + 1 :]] for i in range(count)] for subset in subsets]
        steps.append(_Step(torch.tensor(before, device=device), torch.tensor(subsets, device=device)))
        number = {subset: i for i, subset in enumerate(subsets)}
    return steps


def _best_columns(worth: Tensor, steps: list[_Step]) -> Tensor:
    """The column (A, C, size) of each row in the matching with the largest sum."""
    best = worth.new_zeros(*worth.shape[:2], 1)
    chosen = []
    for row, step in enumerate(steps):
        sums = best[..., step.before] + worth[:, :, row][..., step.column]  # (A, C, subsets, n)
        best, choice = sums.max(-1)
        chosen.append(choice)
    columns = []
    subset = torch.zeros_like(chosen[-1][..., 0])  # the only subset of all columns
    for step, choice in zip(reversed(steps), reversed(chosen), strict=True):
        last = choice.gather(-1, subset.unsqueeze(-1)).squeeze(-1)
        columns.append(step.column[subset, last])
        subset = step.before[subset, last]
    return torch.stack(columns[::-1], dim=-1)
