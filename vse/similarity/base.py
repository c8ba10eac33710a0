"""What all similarities share: their checks, cosines of all pairs, and reductions over the real elements of sets."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vse.sets import check_mask, fill_masked

_ROUNDING = 1e-5  # how far from 1 the length of a normalised vector may be


def compare(
    similarity: Callable[..., Tensor], a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None
) -> Tensor:
    """Call a similarity, with masks only where the sets differ in size.

    A similarity from outside of the package that takes only two sets therefore works as long as nothing is masked.

    Args:
        similarity: (A, K, H) and (C, L, H) -> scores (A, C).
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        Scores (A, C).

    >>> compare(max_cosine, torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """
    if a_mask is None and b_mask is None:
        return similarity(a, b)
    return similarity(a, b, a_mask=a_mask, b_mask=b_mask)


def check_takes_masks(similarity: Callable[..., Any]) -> None:
    """Check that a similarity can compare sets of different sizes.

    Args:
        similarity: The similarity, perhaps one from outside of the package.

    Raises:
        ValueError: It has no parameters ``a_mask`` and ``b_mask``.

    >>> check_takes_masks(max_cosine)
    """
    called = similarity.forward if isinstance(similarity, nn.Module) else similarity
    try:
        inspect.signature(called).bind(None, None, a_mask=None, b_mask=None)
    except TypeError:
        raise ValueError(
            f"the sets differ in size, so the similarity must be called with a_mask and b_mask, "
            f"but its parameters are {inspect.signature(called)}"
        ) from None


def check_embeddings(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> None:
    """Check that two sides can be compared.

    Args:
        a: Embeddings, to be (A, K, H).
        b: Embeddings, to be (C, L, H).
        a_mask: Mask of ``a``, to be (A, K) bool with a True in each row; or None.
        b_mask: Mask of ``b``, to be (C, L) bool with a True in each row; or None.

    Raises:
        ValueError: A side has another number of axes or is empty, their widths differ, or a mask is not as it should
            be.

    >>> check_embeddings(torch.randn(3, 4, 8), torch.randn(5, 2, 8))
    """
    if a.dim() != 3 or b.dim() != 3 or a.shape[-1] != b.shape[-1] or 0 in (*a.shape, *b.shape):
        found = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"expected (A, K, H) and (C, L, H) with one H, nothing empty, got {found}")
    for name, side, mask in (("a_mask", a, a_mask), ("b_mask", b, b_mask)):
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise ValueError(f"{name} must be a bool tensor or None, got {mask!r}")
        check_mask(mask, side.shape[:2])


def pair_cosines(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
    """Compute the cosines of all pairs of embeddings.

    The axes of the embeddings come before those of the samples. A sum or a maximum over the embeddings of a set then
    adds or compares whole rows; over a last axis of 4 it would take several times as long.

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).
        a_mask: (A, K), True on real embeddings; None when all are real.
        b_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        Cosines (K, A, L, C); 0 where one of the two embeddings is masked.

    Raises:
        ValueError: A shape or a mask is wrong.

    >>> pair_cosines(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([4, 3, 2, 5])
    """
    check_embeddings(a, b, a_mask, b_mask)
    sides = unit(fill_masked(a, a_mask)), unit(fill_masked(b, b_mask))
    rows, columns = (side.transpose(0, 1).flatten(0, 1) for side in sides)  # (K A, H) and (L C, H)
    return (rows @ columns.T).view(a.shape[1], a.shape[0], b.shape[1], b.shape[0])


def unit(x: Tensor) -> Tensor:
    """L2-normalise the last axis of vectors that are not normalised yet.

    A vector whose length is 1 up to rounding is returned as it is, since a tower has normalised it already. Its score
    and the score's gradient are then those of the plain product, as in the official codes; only the tower's own
    normalisation removes the gradient's component along the vector. Any other vector is divided by its length, and the
    gradient goes through the division.

    Args:
        x: Vectors (..., H).

    Returns:
        Vectors (..., H) of length 1; zero stays zero.

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    normalised = (length - 1).abs() < _ROUNDING
    can_look = x.device.type == "cpu" and not torch.compiler.is_compiling()  # at values, without a wait
    if can_look and not torch.is_grad_enabled() and normalised.all():
        return x  # evaluation compares many blocks
    divisor = length.clamp(min=torch.finfo(x.dtype).tiny).masked_fill(normalised, 1.0)
    return x / divisor


def left_mask(mask: Tensor | None, axes: int) -> Tensor | None:
    """Shape the mask of the left side so that it goes with values (K, A, ...).

    Args:
        mask: (A, K), True on real embeddings; None when all are real.
        axes: The number of axes behind A.

    Returns:
        The mask (K, A, 1, ...), or None.

    >>> left_mask(torch.ones(3, 4, dtype=torch.bool), 2).shape
    torch.Size([4, 3, 1, 1])
    """
    return None if mask is None else mask.T.reshape(*mask.T.shape, *([1] * axes))


def right_mask(mask: Tensor | None) -> Tensor | None:
    """Shape the mask (C, L) of the right side so that it goes with values (..., L, C).

    >>> right_mask(torch.ones(5, 2, dtype=torch.bool)).shape
    torch.Size([2, 5])
    """
    return None if mask is None else mask.T


def hide(values: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Replace the values in masked places.

    Args:
        values: Values of any shape.
        mask: True on real elements, of a shape that broadcasts against the values; None when all are real.
        value: What stands in masked places afterwards.

    Returns:
        Values of the same shape.

    >>> hide(torch.ones(2), torch.tensor([True, False]), -1.0)
    tensor([ 1., -1.])
    """
    return values if mask is None else values.masked_fill(~mask, value)


def max_over(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Take the maximum over the real elements of an axis.

    Args:
        values: Values of any shape.
        mask: True on real elements, of a shape that broadcasts against the values; None when all are real.
        dim: The axis, counted from the end, so that it is the mask's as well.

    Returns:
        Maxima, without the axis.

    >>> max_over(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), -1)
    tensor(1.)
    """
    return hide(values, mask, float("-inf")).amax(dim)


def sum_over(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Add up the real elements of an axis; the arguments are those of :func:`max_over`.

    >>> sum_over(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), -1)
    tensor(1.)
    """
    return hide(values, mask, 0.0).sum(dim)


def mean_over(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Average the real elements of an axis; the arguments are those of :func:`max_over`.

    >>> mean_over(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), -1)
    tensor(1.)
    """
    return values.mean(dim) if mask is None else sum_over(values, mask, dim) / mask.sum(dim)
