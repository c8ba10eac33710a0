"""Choose queries to look at, and find what a model answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vse.evaluation.blocks import ScoreBlocks, score_rows

_ROWS = 8  # queries that are scored at a time
_CANDIDATES = 200  # queries of the best ranks, among which those are looked for whose answers lead the most


class Hit(NamedTuple):
    """An answer to a query.

    Attributes:
        item: Its index among all candidates.
        score: Its score.
        place: Its place among all candidates, from 1; on equal scores, wrong answers come first.
        right: Whether it is right.
    """

    item: int
    score: float
    place: int
    right: bool


class Answers(NamedTuple):
    """What a model answers to a query.

    Attributes:
        top: The first answers.
        right: All right answers, the best first.
        lead: How far the best right answer's score is above the best wrong one's.
    """

    top: list[Hit]
    right: list[Hit]
    lead: float


class Choice(NamedTuple):
    """The queries that are shown: their indices, by group.

    Attributes:
        sampled: Drawn at random.
        best: Those with the best ranks; of the first places, those whose right answer leads by the largest margin.
        worst: Those with the worst ranks, the worst first.
    """

    sampled: list[int]
    best: list[int]
    worst: list[int]


def answer(scores: ScoreBlocks, queries: Sequence[int], positives: Sequence[np.ndarray], count: int) -> list[Answers]:
    """Find the first answers to some queries, and the places of the right ones.

    Args:
        scores: Scores (queries, candidates).
        queries: Which queries.
        positives: The right candidates of each of these queries.
        count: The number of first answers.

    Returns:
        The answers to each query.

    >>> answer(blocks_of_matrix(torch.tensor([[0.1, 0.9, 0.4]])), [0], [np.array([2])], 1)[0].right[0].place
    2
    """
    found = []
    for start in range(0, len(queries), _ROWS):
        rows = torch.tensor(queries[start : start + _ROWS], device=scores.device)
        for row, right in zip(score_rows(scores, rows).cpu().numpy(), positives[start:], strict=False):
            found.append(_answers(row, right, count))
    return found


def _answers(row: np.ndarray, right: np.ndarray, count: int) -> Answers:
    """The answers to one query, from its scores (candidates,)."""
    is_right = np.zeros(len(row), dtype=bool)
    is_right[right] = True
    order = np.lexsort((is_right, -row))  # by score; a tie counts against the model
    place = np.empty(len(row), dtype=np.int64)
    place[order] = np.arange(1, len(row) + 1)

    def hit(item: int) -> Hit:
        return Hit(int(item), float(row[item]), int(place[item]), bool(is_right[item]))

    own = sorted(map(hit, right.tolist()), key=lambda found: found.place)
    wrong = row[~is_right].max() if len(own) < len(row) else -np.inf
    return Answers([hit(item) for item in order[:count]], own, own[0].score - float(wrong) if own else -np.inf)


def choose(
    scores: ScoreBlocks, ranks: np.ndarray, positives: Sequence[np.ndarray], allowed: np.ndarray, count: int, seed: int
) -> Choice:
    """Choose queries to look at.

    Args:
        scores: Scores (queries, candidates).
        ranks: The 0-based rank of each query, -1 for one without a right answer, which is never chosen.
        positives: The right candidates of each query.
        allowed: The indices of the queries that may be chosen.
        count: The number that are sampled; a quarter as many are the best and the worst, at least one.
        seed: The seed of the draw.

    Returns:
        The queries. A sampled one may also be among the best or the worst.
    """
    allowed = allowed[ranks[allowed] >= 0]
    sampled = np.random.default_rng(seed).permutation(allowed)[:count]
    extremes = max(1, count // 4)
    by_rank = allowed[np.argsort(ranks[allowed], kind="stable")]
    candidates = by_rank[: max(extremes, _CANDIDATES)].tolist()
    leads = [found.lead for found in answer(scores, candidates, [positives[query] for query in candidates], 0)]
    best = sorted(zip(candidates, leads, strict=True), key=lambda pair: (ranks[pair[0]], -pair[1]))
    worst = allowed[np.argsort(-ranks[allowed], kind="stable")]
    return Choice(sampled.tolist(), [query for query, _ in best[:extremes]], worst[:extremes].tolist())
