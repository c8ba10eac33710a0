"""Ranks without a score matrix: blocks of scores are compared with the scores of the positives, and dropped.

The positives are an index of pairs. A first pass looks up the score of each query's best positive, in the blocks that
hold positives; a second one goes through all blocks and counts, for both directions, the negatives that score at least
as high. A pair's score can differ in its last bits between a block and a smaller product. So the first pass computes
the very blocks that the second one counts in: the same items, in the same order and number.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.console import Item, show_progress
from vse.evaluation.blocks import Items, ScoreBlocks, bounds, check_not_nan, cut

_KEPT = 1 << 25  # scores of the first pass that are kept for the second one


class Ranks(NamedTuple):
    """0-based ranks of both directions, on the CPU; -1 for a query that has no positive.

    Attributes:
        i2t: The rank of each image's best positive among the captions that are negatives.
        t2i: The rank of each caption's best positive among the images that are negatives.
    """

    i2t: Tensor
    t2i: Tensor


class _Cell(NamedTuple):
    """One block of the grid that images and captions are cut into."""

    rows: slice  # places among the images that are ranked
    columns: slice  # places among the captions that are ranked
    row_items: Items
    column_items: Items
    i: Tensor  # the row of each pair in the block
    j: Tensor  # the column of each pair in the block


@torch.no_grad()
def rank(
    scores: ScoreBlocks,
    pairs: np.ndarray,
    images: np.ndarray | None = None,
    captions: np.ndarray | None = None,
    progress: bool = True,
) -> Ranks:
    """Rank captions for each image and images for each caption.

    rank_q = the number of negatives that score at least as high as the query's best positive: a tie counts against the
    model. These are the ranks of :func:`vse.metrics.query_ranks`, for any numbers of images and captions in bounded
    memory. Captions are gone through in the order of their images, so positives meet in few blocks.

    Args:
        scores: The scores (images, captions) of a corpus.
        pairs: The image and the caption (pairs, 2) of each positive pair, in any order. Pairs of other images and
            captions than those that are ranked are left out.
        images: The indices of the images that are ranked; None for all of them.
        captions: The indices of the captions that are ranked; None for all of them.
        progress: Whether to show a progress bar.

    Returns:
        The ranks, in the order of ``images`` and ``captions``.

    Raises:
        ValueError: No pair is positive.
        NaNScores: A score is NaN.

    >>> rank(blocks_of_matrix(torch.tensor([[0.9, 0.5], [0.9, 0.9]])), np.array([[0, 0], [1, 1]])).i2t.tolist()
    [0, 1]
    """
    images = np.arange(scores.images) if images is None else images
    captions = np.arange(scores.captions) if captions is None else captions
    i, j = _places(pairs[:, 0], images, scores.images), _places(pairs[:, 1], captions, scores.captions)
    inside = (i >= 0) & (j >= 0)
    i, j = i[inside], j[inside]
    order = _by_image(i, j, len(captions))
    j = _places(j, order, len(captions))
    cells = _grid(scores, images, captions[order], i, j)
    best_i, best_j = (_lowest(len(side), scores.device) for side in (images, captions))
    kept = _best_positives(scores, cells, best_i, best_j)

    above_i, above_j = (torch.zeros(len(side), dtype=torch.long, device=scores.device) for side in (images, captions))
    peaks = torch.empty(len(cells), device=scores.device)
    scratch = torch.empty(scores.side**2, device=scores.device)
    for number, cell in enumerate(_shown(cells, progress)):
        block = kept.pop(number, None)
        block = scores.block(cell.row_items, cell.column_items) if block is None else block
        peaks[number] = block.amax()
        above_i[cell.rows] += _rivals(block, best_i[cell.rows, None], scratch, [cell]).sum(1).long()
        above_j[cell.columns] += _rivals(block, best_j[cell.columns], scratch, [cell]).sum(0).long()
    check_not_nan(peaks)
    t2i = torch.empty(len(captions), dtype=torch.long)
    t2i[torch.from_numpy(order)] = _only_asked(above_j, j)
    return Ranks(_only_asked(above_i, i), t2i)


@torch.no_grad()
def rank_within(scores: ScoreBlocks, pairs: np.ndarray, progress: bool = True) -> Tensor:
    """Rank the items of one kind for each of them, which is never its own answer nor in its own way.

    Only one direction is asked for. So a row of blocks is computed once and kept until its queries are ranked.

    Args:
        scores: The scores (items, items) of the items, whose row is the query.
        pairs: The query and the answer (pairs, 2) of each positive pair. A pair of an item with itself is left out.
        progress: Whether to show a progress bar.

    Returns:
        0-based ranks (items,), -1 for an item that has no positive.

    Raises:
        ValueError: No pair is positive.
        NaNScores: A score is NaN.

    >>> rank_within(blocks_of_matrix(torch.tensor([[9.0, 0.1, 0.2]] * 3)), np.array([[0, 1], [2, 2]])).tolist()
    [1, -1, -1]
    """
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    asked, items = np.unique(pairs[:, 0]), np.arange(scores.captions)
    cells = _grid(scores, asked, items, _places(pairs[:, 0], asked, scores.images), pairs[:, 1])
    selves = _grid(scores, asked, items, np.arange(len(asked)), asked)
    best, above = _lowest(len(asked), scores.device), torch.zeros(len(asked), dtype=torch.long, device=scores.device)
    peaks = torch.empty(len(cells), device=scores.device)
    scratch = torch.empty(scores.side**2, device=scores.device)
    width = len(bounds(len(items), scores.side)) - 1  # blocks in a row of the grid
    for first in _shown(range(0, len(cells), width), progress):
        row = range(first, first + width)
        blocks = [scores.block(cells[n].row_items, cells[n].column_items) for n in row]
        for number, block in zip(row, blocks, strict=True):
            _raise_to_best(best[cells[number].rows], cells[number].i, block[cells[number].i, cells[number].j])
        for number, block in zip(row, blocks, strict=True):
            rows = cells[number].rows
            peaks[number] = block.amax()
            above[rows] += _rivals(block, best[rows, None], scratch, [cells[number], selves[number]]).sum(1).long()
    check_not_nan(peaks)
    ranks = torch.full((scores.images,), -1)
    ranks[torch.from_numpy(asked)] = above.cpu()
    return ranks


def _places(values: np.ndarray, index: np.ndarray, total: int) -> np.ndarray:
    """Where each value stands in an index of some of ``total`` items; -1 where it does not."""
    place = np.full(total, -1)
    place[index] = np.arange(len(index))
    return place[values]


def _by_image(i: np.ndarray, j: np.ndarray, captions: int) -> np.ndarray:
    """Order captions by their first positive image; those without a positive come last."""
    first = np.full(captions, np.iinfo(np.int64).max)
    np.minimum.at(first, j, i)
    return np.argsort(first, kind="stable")


def _grid(scores: ScoreBlocks, images: np.ndarray, captions: np.ndarray, i: np.ndarray, j: np.ndarray) -> list[_Cell]:
    """Cut images and captions into a grid of blocks, row by row, each with the pairs (i, j) of places in it."""
    if not len(i):
        raise ValueError("no query has a positive, so there is nothing to rank")
    device, tops, lefts = scores.device, bounds(len(images), scores.side), bounds(len(captions), scores.side)
    row_items, column_items = cut(images, scores.side, device), cut(captions, scores.side, device)
    row, column = np.searchsorted(tops, i, side="right") - 1, np.searchsorted(lefts, j, side="right") - 1
    number = row * len(column_items) + column
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(len(row_items) * len(column_items) + 1))
    i_in_block = torch.from_numpy((i - tops[row])[order]).to(device)
    j_in_block = torch.from_numpy((j - lefts[column])[order]).to(device)
    cells: list[_Cell] = []
    for r, rows in enumerate(row_items):
        for c, columns in enumerate(column_items):
            first, last = ends[len(cells)], ends[len(cells) + 1]
            place = slice(int(tops[r]), int(tops[r + 1])), slice(int(lefts[c]), int(lefts[c + 1]))
            cells.append(_Cell(*place, rows, columns, i_in_block[first:last], j_in_block[first:last]))
    return cells


def _best_positives(scores: ScoreBlocks, cells: list[_Cell], best_i: Tensor, best_j: Tensor) -> dict[int, Tensor]:
    """Find the score of each query's best positive; returns the blocks that are worth keeping, by number."""
    kept: dict[int, Tensor] = {}
    room = _KEPT
    for number, cell in enumerate(cells):
        if len(cell.i):
            block = scores.block(cell.row_items, cell.column_items)
            found = block[cell.i, cell.j]
            _raise_to_best(best_i[cell.rows], cell.i, found)
            _raise_to_best(best_j[cell.columns], cell.j, found)
            if block.numel() <= room:
                kept[number] = block
                room -= block.numel()
    return kept


def _lowest(count: int, device: torch.device) -> Tensor:
    """Scores that any positive's score replaces."""
    return torch.full((count,), float("-inf"), device=device)


def _raise_to_best(best: Tensor, places: Tensor, found: Tensor) -> None:
    """Replace the best scores at these places by the scores found for them, where those are higher."""
    best.scatter_reduce_(0, places, found, "amax")


def _rivals(block: Tensor, best: Tensor, scratch: Tensor, excluded: Iterable[_Cell]) -> Tensor:
    """Mark with 1.0 the scores that reach the best positive's, but for the excluded pairs.

    The marks are numbers: a CPU compares into float32 three times as fast as into bool, and their sums are exact.
    """
    marks = torch.ge(block, best, out=scratch[: block.numel()].view(block.shape))
    for cell in excluded:
        marks[cell.i, cell.j] = 0.0
    return marks


def _only_asked(ranks: Tensor, places: np.ndarray) -> Tensor:
    """Ranks on the CPU, -1 for the queries that are at none of these places."""
    asked = torch.zeros(len(ranks), dtype=torch.bool)
    asked[torch.from_numpy(places)] = True
    return ranks.cpu().masked_fill(~asked, -1)


def _shown(items: Sequence[Item], progress: bool) -> Iterable[Item]:
    """Go through items with a progress bar."""
    return show_progress(items, len(items), "ranking", " blocks", delay=2, shown=progress)
