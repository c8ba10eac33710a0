"""Scores of all images against all captions, computed a block at a time where they are needed."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vse.ragged import Sets, places_of, take
from vse.runtime import products
from vse.similarity import compare

_BLOCK = 1 << 21  # pairs of embeddings in a block: its 8 MiB of scores stay in a CPU's cache while they are counted
_DEVICE_BLOCK = 1 << 24  # the same on an accelerator, which needs large products
_ALIGNED = 16  # numbers in a cache line

Items: TypeAlias = slice | Tensor  # some images or captions of a corpus: neighbours, or their indices


class NaNScores(ValueError):
    """A model gives NaN, which shows only while its scores are computed."""


class ScoreBlocks(NamedTuple):
    """Scores of all images against all captions, of which any block can be asked for.

    Attributes:
        images: The number of images.
        captions: The number of captions.
        side: How many images, and how many captions, a block may have.
        device: Where blocks are computed.
        block: Gives the scores (n, m) of n images against m captions, float32. It may be a view of other numbers: do
            not write to it.
    """

    images: int
    captions: int
    side: int
    device: torch.device
    block: Callable[[Items, Items], Tensor]


def blocks_of_embeddings(similarity: Callable[..., Tensor], images: Sets, captions: Sets) -> ScoreBlocks:
    """Scores by a similarity of embeddings, computed in float32 where the embeddings are.

    Sets of different sizes are padded in each block, to the largest set in it.

    Args:
        similarity: A function of two batches of embedding sets, see :mod:`vse.similarity`.
        images: Embeddings (images, K, H), or sets of different sizes.
        captions: Embeddings (captions, L, H), or sets of different sizes.

    Returns:
        The scores, in blocks of bounded memory.

    >>> blocks_of_embeddings(cosine, torch.eye(2)[:, None], torch.eye(2)[:, None]).block(slice(0, 1), slice(0, 2))
    tensor([[1., 0.]])
    """

    def block(rows: Items, columns: Items) -> Tensor:
        a, b = take(images, rows), take(captions, columns)
        with products(images.device, "fp32"):
            return compare(similarity, a.embeddings.float(), b.embeddings.float(), a.mask, b.mask).float()

    return ScoreBlocks(len(images), len(captions), _side(images, captions), images.device, block)


def blocks_of_matrix(scores: Tensor) -> ScoreBlocks:
    """Scores that are there already.

    Args:
        scores: Scores (images, captions).

    Returns:
        The same scores, float32.

    >>> blocks_of_matrix(torch.eye(2)).block(slice(0, 1), slice(0, 2))
    tensor([[1., 0.]])
    """
    one = scores.new_empty(1, 1, 0)

    def block(rows: Items, columns: Items) -> Tensor:
        if isinstance(columns, slice):
            return scores[:, columns][rows].float()
        return scores[rows][:, columns].float()

    images, captions = scores.shape
    return ScoreBlocks(images, captions, _side(one, one), scores.device, block)


def mean_of_blocks(members: Sequence[ScoreBlocks]) -> ScoreBlocks:
    """Average the scores of several models.

    Args:
        members: Each model's scores of the same images and captions, at least one model.

    Returns:
        Their mean.

    >>> mean_of_blocks([blocks_of_matrix(torch.eye(2)), blocks_of_matrix(torch.zeros(2, 2))]).block(0, slice(0, 2))
    tensor([0.5000, 0.0000])
    """
    first = members[0]
    if len(members) == 1:
        return first

    def block(rows: Items, columns: Items) -> Tensor:
        total = first.block(rows, columns)
        for member in members[1:]:
            total = total + member.block(rows, columns)
        return total / len(members)

    return first._replace(side=min(member.side for member in members), block=block)


def transpose(scores: ScoreBlocks) -> ScoreBlocks:
    """Exchange the two sides, so that captions are the rows.

    Args:
        scores: Scores (images, captions).

    Returns:
        Scores (captions, images).

    >>> transpose(blocks_of_matrix(torch.zeros(2, 5))).captions
    2
    """
    return scores._replace(
        images=scores.captions, captions=scores.images, block=lambda rows, columns: scores.block(columns, rows).T
    )


def bounds(total: int, side: int) -> np.ndarray:
    """Cut a number of places into parts of nearly one size.

    No part is a single row, which another kernel would multiply. Large parts start at multiples of 16: a product of
    1,250 x 1,389 takes half as long again on a CPU as one of 1,248 x 1,392.

    Args:
        total: The number of places.
        side: The most places in a part.

    Returns:
        The bounds (parts + 1,) of the parts, from 0 to ``total``.

    >>> bounds(9, 4).tolist()
    [0, 3, 6, 9]
    """
    step = _ALIGNED if side >= 16 * _ALIGNED else 1
    parts = 1 if total <= side else -(-total // (side - step + 1))
    found = np.arange(parts + 1) * total // parts
    found[1:-1] -= found[1:-1] % step
    return found


def cut(index: np.ndarray, side: int, device: torch.device) -> list[Items]:
    """Cut an index of images or captions into parts; a part without gaps is a slice, which copies nothing.

    Args:
        index: Indices (n,).
        side: The most indices in a part, see :func:`bounds`.
        device: Where parts with gaps are kept.

    Returns:
        The parts.

    >>> cut(np.array([3, 4, 5, 9]), 2, torch.device("cpu"))
    [slice(3, 5, None), tensor([5, 9])]
    """
    parts: list[Items] = []
    on_device = torch.from_numpy(index).to(device)
    for first, end in pairwise(bounds(len(index), side).tolist()):
        part = index[first:end]
        if (np.diff(part) == 1).all():
            parts.append(slice(int(part[0]), int(part[-1]) + 1))
        else:
            parts.append(on_device[first:end])
    return parts


def score_rows(scores: ScoreBlocks, rows: Items) -> Tensor:
    """Score some images against all captions.

    Args:
        scores: The scores (images, captions).
        rows: The n images.

    Returns:
        Scores (n, captions), on the scores' device.

    Raises:
        NaNScores: A score is NaN.

    >>> score_rows(blocks_of_matrix(torch.eye(3)), slice(0, 1))
    tensor([[1., 0., 0.]])
    """
    columns = pairwise(bounds(scores.captions, scores.side).tolist())
    found = torch.cat([scores.block(rows, slice(first, end)) for first, end in columns], 1)
    check_not_nan(found.amax())
    return found


def check_not_nan(peaks: Tensor) -> None:
    """Check that no score is NaN.

    Args:
        peaks: The largest score of each of some blocks: it is NaN where any score of the block is.

    Raises:
        NaNScores: One of them is NaN.

    >>> check_not_nan(torch.tensor([0.9, 0.8]))
    """
    if peaks.isnan().any():
        raise NaNScores("the model gives NaN; its weights have diverged")


def _side(images: Sets, captions: Sets) -> int:
    """How many images, and captions, a block of bounded memory may have."""
    pairs = _BLOCK if images.device.type == "cpu" else _DEVICE_BLOCK
    return max(1, math.isqrt(pairs // (places_of(images) * places_of(captions))))
