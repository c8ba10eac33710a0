"""Ranking losses on a score matrix, and the criterion that joins one with weighted regularisers.

A loss is ``loss(scores (A, C), positives (A, C) bool) -> scalar``: rows are images, columns captions, and
``positives`` says which pairs belong together; it comes from ids, so a row may have any number of positives.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vse.sets import Aggregated

Mining = Literal["hardest", "all", "semihard"]
Reduction = Literal["sum", "mean", "mean_pairs"]


class TripletLoss(nn.Module):
    """Bidirectional triplet ranking loss with a margin (VSE++, Faghri et al. 2018, equations 5 and 6).

    For each positive pair (i, c) and each negative c' of image i (and, the other way, each negative image of
    caption c) the cost is max(0, margin + s(i, c') - s(i, c)).

    ``mining``: "all" keeps every triplet; "hardest" only that of each positive pair's hardest negative, per direction;
    "semihard" every triplet with its cost clamped to [0, margin] (DivE). While the epoch given to :meth:`set_epoch`
    is below ``warmup_epochs``, all triplets are used, whatever the mining.
    ``reduction``: "sum" (VSE∞); "mean" over the triplets of each direction ("hardest": over positive pairs;
    "semihard": over the non-zero costs; DivE); "mean_pairs", the sum divided by A*C (PVSE's unmined form).
    The two directions are added. No violation, or no negative at all, gives 0 with finite gradients.

    Shapes: scores (A, C), positives (A, C) bool -> scalar. Raises ValueError for a margin that is not positive, an
    unknown mining or reduction, wrong shapes, or a batch without a positive pair.

    >>> loss = TripletLoss(margin=0.2)
    >>> loss(torch.randn(4, 4), torch.eye(4, dtype=torch.bool))
    """

    def __init__(
        self,
        margin: float = 0.2,
        mining: Mining = "hardest",
        reduction: Reduction = "sum",
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__()
        if margin <= 0:
            raise ValueError(f"margin must be positive, got {margin}")
        if mining not in get_args(Mining):
            raise ValueError(f"mining must be one of {get_args(Mining)}, got {mining!r}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {warmup_epochs}")
        self.margin = margin
        self.mining = mining
        self.reduction = reduction
        self.warmup_epochs = warmup_epochs
        self.warming_up = False

    def set_epoch(self, epoch: int) -> None:
        """Use all negatives in the first ``warmup_epochs`` epochs; epochs count from 0."""
        self.warming_up = epoch < self.warmup_epochs

    def forward(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of one batch."""
        check_scores(scores, positives)
        if scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        return self._direction(scores, positives) + self._direction(scores.T, positives.T)

    def _direction(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Loss of the rows' queries against the columns."""
        mining = "all" if self.warming_up else self.mining
        query, match = positives.nonzero(as_tuple=True)  # P positive pairs
        negatives = scores.masked_fill(positives, float("-inf"))
        if mining == "hardest":
            negatives = negatives.max(1, keepdim=True).values
        costs = (self.margin + negatives[query] - scores[query, match].unsqueeze(1)).relu()  # (P, 1) or (P, columns)
        if mining == "semihard":
            costs = costs.clamp(max=self.margin)
        if self.reduction == "sum":
            return costs.sum()
        if self.reduction == "mean_pairs":
            return costs.sum() / positives.numel()
        if mining == "hardest":
            return costs.mean()
        kept = costs > 0 if mining == "semihard" else ~positives[query]
        return costs.sum() / kept.sum().clamp(min=1)

    def extra_repr(self) -> str:  # noqa: D102
        return f"margin={self.margin}, mining={self.mining}, reduction={self.reduction}"


class Criterion(nn.Module):
    """A ranking loss plus weighted regularisers: total = ranking + sum_t weight_t * term_t(image, text).

    Returns every part by name beside "total", for the logs.

    >>> criterion = Criterion(TripletLoss())
    >>> criterion(scores, positives, image, text)["total"].backward()
    """

    def __init__(
        self,
        ranking: Callable[[Tensor, Tensor], Tensor],
        terms: dict[str, tuple[float, Callable[[Aggregated, Aggregated], Tensor]]] | None = None,
    ) -> None:
        super().__init__()
        self.ranking = ranking
        self.terms = dict(terms or {})
        self.term_modules = nn.ModuleDict({n: t for n, (_, t) in self.terms.items() if isinstance(t, nn.Module)})

    def forward(self, scores: Tensor, positives: Tensor, image: Aggregated, text: Aggregated) -> dict[str, Tensor]:
        """Return {"total": ..., "ranking": ..., and each term unweighted}."""
        parts = {"ranking": self.ranking(scores, positives)}
        total = parts["ranking"]
        for name, (weight, term) in self.terms.items():
            parts[name] = term(image, text)
            total = total + weight * parts[name]
        return {"total": total, **parts}


def check_scores(scores: Tensor, positives: Tensor) -> None:
    """Raise ValueError unless the two are (A, C), ``positives`` is bool and some pair is positive."""
    if scores.dim() != 2 or scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives must be (A, C) alike, got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    if positives.dtype != torch.bool:
        raise ValueError(f"positives must be bool, got {positives.dtype}")
    if positives.device.type == "cpu" and not positives.any():
        raise ValueError("the batch has no positive pair")


LOSSES: dict[str, Callable[..., nn.Module]] = {"triplet": TripletLoss}
REGULARISERS: dict[str, Callable[..., Tensor | nn.Module]] = {}
