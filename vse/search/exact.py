"""The best items for each query, found block by block: no matrix of all scores is ever made."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vse.evaluation.blocks import bounds, check_not_nan
from vse.sets import Aggregated

_PAIRS = 1 << 21  # pairs of embeddings in a block on a CPU, whose scores stay in its cache
_DEVICE_PAIRS = 1 << 24  # the same on an accelerator, which needs large products
# Numbers in a block of embeddings on a CPU: a larger block would be allocated from the system anew each time.
_NUMBERS = 1 << 20
_DEVICE_NUMBERS = 1 << 24
_NOWHERE = torch.iinfo(torch.long).max  # the position of a place that no item has taken yet

Block = tuple[int, Aggregated]  # the position of a block's first item, and the block's embedding sets


class Best(NamedTuple):
    """The best items of each query, the best first; of equal scores, the item that comes first in the index.

    Attributes:
        scores: Scores (queries, top), float32 on the CPU; -inf where an approximate search has found fewer.
        positions: The items' positions (queries, top) in the index; -1 where fewer were found.
    """

    scores: Tensor
    positions: Tensor


class Sides(NamedTuple):
    """How many queries, and how many items, are compared at a time."""

    queries: int
    items: int


def choose_sides(queries: int, places: tuple[int, int], width: int, device: torch.device) -> Sides:
    """Choose the sides of the blocks, so that neither the scores nor the embeddings of a block take much memory.

    Args:
        queries: The number of queries.
        places: The number of embeddings in the largest set of a query, and of an item.
        width: The embeddings' width H.
        device: Where they are compared.

    Returns:
        The sides.

    >>> choose_sides(1, (1, 4), 512, torch.device("cpu"))
    Sides(queries=1, items=512)
    """
    most_pairs, numbers = (_PAIRS, _NUMBERS) if device.type == "cpu" else (_DEVICE_PAIRS, _DEVICE_NUMBERS)
    pairs = max(1, most_pairs // (places[0] * places[1]))
    side = min(queries, max(1, math.isqrt(pairs)))
    return Sides(side, max(1, min(pairs // side, numbers // (places[1] * width))))


@torch.no_grad()
def find_best(
    score: Callable[[slice, Aggregated], Tensor],
    blocks: Iterable[Block],
    queries: int,
    top: int,
    side: int,
    device: torch.device,
) -> Best:
    """Find the best items for each query.

    Each block is compared with all queries before the next one is read. Only the best items so far are kept.

    Args:
        score: Gives the scores (n, m) of the n queries of a slice against the m sets of a block.
        blocks: All items of the index, in the order of their positions.
        queries: The number of queries.
        top: The number of items to find for each, at most as many as there are.
        side: How many queries are compared at a time.
        device: Where the scores are.

    Returns:
        The best items.

    Raises:
        NaNScores: A score is NaN.

    >>> items = torch.eye(3)[:, None]
    >>> find_best(lambda rows, block: cosine(items[rows], block.embeddings), [(0, Aggregated(items))], 3, 1, 3, device)
    Best(scores=tensor([[1.], [1.], [1.]]), positions=tensor([[0], [1], [2]]))
    """
    best = _Running(queries, top, device)
    parts = [slice(*part) for part in pairwise(bounds(queries, side).tolist())]
    for first, block in blocks:
        for rows in parts:
            best.add(rows, first, score(rows, block).float())
    return Best(best.scores.cpu(), best.positions.cpu())


class _Running:
    """The best scores so far, (queries, top), and their positions."""

    def __init__(self, queries: int, top: int, device: torch.device) -> None:
        self.top = top
        self.scores = torch.full((queries, top), float("-inf"), device=device)
        self.positions = torch.full((queries, top), _NOWHERE, device=device)

    def add(self, rows: slice, first: int, scores: Tensor) -> None:
        """Take the scores (n, m) of some queries against the items from position ``first`` on into account.

        Blocks come in the order of their positions. So a later item that only ties with the worst kept score never
        replaces it.
        """
        peaks = scores.amax(1)
        check_not_nan(peaks)
        is_better = (peaks > self.scores[rows, -1]) | (self.positions[rows, -1] == _NOWHERE)
        chosen = is_better.nonzero()[:, 0]
        if not len(chosen):
            return
        values, places = best_of_rows(scores if len(chosen) == len(scores) else scores[chosen], self.top)
        numbers = chosen + rows.start
        all_scores = torch.cat([self.scores[numbers], values], 1)
        all_positions = torch.cat([self.positions[numbers], places + first], 1)
        ordered = in_order(all_scores, all_positions)
        self.scores[numbers], self.positions[numbers] = (part[:, : self.top] for part in ordered)


def in_order(scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row's scores in descending order; of equal ones, the one with the lower position comes first.

    Args:
        scores: Scores (n, m).
        positions: Their positions (n, m).

    Returns:
        Scores and positions in that order.

    >>> in_order(torch.tensor([[0.5, 0.9, 0.5]]), torch.tensor([[7, 8, 3]]))[1]
    tensor([[8, 3, 7]])
    """
    positions, by_position = positions.sort(dim=1)
    scores, by_score = scores.gather(1, by_position).sort(dim=1, descending=True, stable=True)
    return scores, positions.gather(1, by_score)


def best_of_rows(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Find the highest scores of each row; of equal scores the first ones, which ``torch.topk`` does not promise.

    Args:
        scores: Scores (n, m), none of them NaN.
        top: The number of scores to find.

    Returns:
        The scores and their columns, (n, top) in any order; (n, m) where there are no more than that.

    >>> best_of_rows(torch.tensor([[0.5, 0.9, 0.5, 0.5]]), 2)[1].sort().values
    tensor([[0, 1]])
    """
    values, places = scores.topk(min(top, scores.shape[1]), dim=1)
    is_torn = (scores >= values[:, -1:]).sum(1) > values.shape[1]  # equal scores, only some of which were taken
    torn = is_torn.nonzero()[:, 0]
    if len(torn):
        whole, order = scores[torn].sort(dim=1, descending=True, stable=True)
        values[torn], places[torn] = (part[:, : values.shape[1]] for part in (whole, order))
    return values, places
