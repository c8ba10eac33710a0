"""What the tests of similarities share: each similarity beside a twin that is slow and obvious, and small sets.

A twin gets two sets, (K, H) and (L, H), without padding, and gives one score.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vse.similarity import SIMILARITIES, MatchProbability

Twin = Callable[[Tensor, Tensor], Tensor]
Rows = list[list[Tensor]]


def cosines(x: Tensor, y: Tensor) -> Rows:
    return [[x_k @ y_l / (x_k.norm() * y_l.norm()) for y_l in y] for x_k in x]


def largest(values: Any) -> Tensor:
    return max(values, key=Tensor.item)


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def slow_max(x: Tensor, y: Tensor) -> Tensor:
    return largest(c for row in cosines(x, y) for c in row)


def slow_chamfer(x: Tensor, y: Tensor) -> Tensor:
    rows = cosines(x, y)
    best_of_x = [largest(row) for row in rows]
    best_of_y = [largest(column) for column in zip(*rows, strict=True)]
    return (mean(best_of_x) + mean(best_of_y)) / 2


def slow_smooth_chamfer(x: Tensor, y: Tensor, alpha: float = 16.0) -> Tensor:
    rows = cosines(x, y)

    def soft(values: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        return torch.log(sum(torch.exp(alpha * c) for c in values)) / alpha  # type: ignore[arg-type]

    left = torch.stack([soft(row) for row in rows]).mean()
    return (left + torch.stack([soft(column) for column in zip(*rows, strict=True)]).mean()) / 2


def slow_match_probability(x: Tensor, y: Tensor) -> Tensor:
    return mean([1 / (1 + torch.exp(-c)) for row in cosines(x, y) for c in row])


def slow_order(x: Tensor, y: Tensor) -> Tensor:
    return largest(-torch.clamp(y_l.abs() - x_k.abs(), min=0).square().sum().sqrt() for x_k in x for y_l in y)


def slow_max_sim(query: str = "text", reduction: str = "sum") -> Twin:
    def twin(x: Tensor, y: Tensor) -> Tensor:
        rows = cosines(x, y)
        best = [largest(own) for own in (zip(*rows, strict=True) if query == "text" else rows)]
        return torch.stack(best).sum() / (1 if reduction == "sum" else len(best))

    return twin


def slow_chan(coding: str = "hard_words", pooling: str = "lse", alpha: float = 0.1, beta: float = 0.1) -> Twin:
    def code(x: Tensor, y: Tensor) -> list[Tensor]:
        rows = cosines(x, y)
        if coding == "hard_words":
            return [largest(column) for column in zip(*rows, strict=True)]
        if coding == "hard_regions":
            return [largest(row) for row in rows]
        codes = []
        for region, row in zip(x, rows, strict=True):
            weights = torch.softmax(torch.stack(row) / alpha, 0)
            mixture = sum(weight * word / word.norm() for weight, word in zip(weights, y, strict=True))
            codes.append(region / region.norm() @ mixture / (mixture.norm() + 1e-8))  # type: ignore[operator, union-attr]
        return codes

    def twin(x: Tensor, y: Tensor) -> Tensor:
        u = code(x, y)
        if pooling == "lse":
            return torch.log(sum(torch.exp(value / beta) for value in u))  # type: ignore[arg-type]
        if pooling == "softmax":
            total = sum(torch.exp(value / beta) for value in u)
            return sum(torch.exp(value / beta) / total * value for value in u)  # type: ignore[return-value]
        if pooling == "max":
            return largest(u)
        return torch.stack(u).sum() / (len(u) if pooling == "mean" else 1)

    return twin


def slow_assignment(value: str = "cosine") -> Twin:
    def twin(x: Tensor, y: Tensor) -> Tensor:
        rows = cosines(x, y)
        if len(x) > len(y):
            rows = [list(column) for column in zip(*rows, strict=True)]
        best: list[Tensor] = []
        for order in itertools.permutations(range(len(rows[0])), len(rows)):
            matched = [row[place] for row, place in zip(rows, order, strict=True)]
            if not best or sum(map(Tensor.item, matched)) > sum(map(Tensor.item, best)):
                best = matched
        return mean([torch.exp(c) - 1 if value == "exponential" else c for c in best])

    return twin


TWINS: dict[str, Twin] = {
    "cosine": slow_max,
    "max": slow_max,
    "chamfer": slow_chamfer,
    "smooth_chamfer": slow_smooth_chamfer,
    "match_probability": slow_match_probability,
    "order": slow_order,
    "max_sim": slow_max_sim(),
    "chan": slow_chan(),
    "assignment": slow_assignment(),
}
# Further settings of similarities: "name, what is special about it", the arguments, and the twin.
VARIANTS: dict[str, tuple[dict[str, Any], Twin]] = {
    "smooth_chamfer, sharp": ({"temperature": 50.0}, lambda x, y: slow_smooth_chamfer(x, y, 50.0)),
    "assignment, exponential": ({"value": "exponential"}, slow_assignment("exponential")),
    **{
        f"max_sim, {query}, {reduction}": ({"query": query, "reduction": reduction}, slow_max_sim(query, reduction))
        for query in ("image", "text")
        for reduction in ("sum", "mean")
    },
    **{
        f"chan, {coding}, {pooling}": (
            {"coding": coding, "pooling": pooling, "coding_temperature": 0.2, "pooling_temperature": 0.3},
            slow_chan(coding, pooling, 0.2, 0.3),
        )
        for coding in ("hard_words", "hard_regions", "soft_regions")
        for pooling in ("lse", "mean", "max", "sum", "softmax")
    },
}
EVERY = [*TWINS, *VARIANTS]
ONE = {"cosine"}  # compares single embeddings only


def make(name: str, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
    """The similarity of a name in ``EVERY``."""
    plain = name.split(",")[0]
    if plain == "match_probability":
        return MatchProbability().to(dtype)
    function: Any = SIMILARITIES[plain]
    arguments = VARIANTS[name][0] if name in VARIANTS else {}
    return lambda a, b, a_mask=None, b_mask=None: function(a, b, a_mask=a_mask, b_mask=b_mask, **arguments)


def twin_of(name: str) -> Twin:
    return VARIANTS[name][1] if name in VARIANTS else TWINS[name]


def slow_scores(name: str, left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Scores (A, C) of sets without padding, pair by pair."""
    twin = twin_of(name)
    return torch.stack([torch.stack([twin(x, y) for y in right]) for x in left])


def masked_sets(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four sets of up to 5 embeddings and three of up to 4, in any places, and their masks (K = 1 for ``cosine``)."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for counts, places in (((5, 2, 1, 3), 5), ((1, 4, 2), 4)):
        places = 1 if name in ONE else places
        mask = torch.zeros(len(counts), places, dtype=torch.bool)
        for row, count in enumerate(counts):
            mask[row, torch.randperm(places, generator=generator)[:count]] = True
        sides.append((torch.randn(len(counts), places, 6, generator=generator, dtype=torch.float64).to(dtype), mask))
    (a, a_mask), (b, b_mask) = sides
    return a, b, a_mask, b_mask


def real(embeddings: Tensor, mask: Tensor) -> list[Tensor]:
    """The real embeddings (n, H) of each set."""
    return [row[own] for row, own in zip(embeddings, mask, strict=True)]


def garbage(embeddings: Tensor, mask: Tensor, value: float = math.nan) -> Tensor:
    """The sets with garbage in masked places."""
    return embeddings.masked_fill(~mask.unsqueeze(-1), value)
