"""The triplet ranking loss of VSE++ and its successors."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vse.errors import check_at_least, check_choice, check_positive
from vse.losses.pairs import positive_pairs
from vse.sets import at_least_float32

Mining = Literal["hardest", "all", "semihard"]
Reduction = Literal["sum", "mean", "mean_pairs"]
Positives = Literal["each", "worst"]


class TripletLoss(nn.Module):
    """Bidirectional triplet ranking loss with a margin (VSE++, Faghri et al. 2018, equations 5 and 6).

    For each positive pair (i, c) and each negative c' of image i (and, the other way, each negative image of caption c)
    the cost is max(0, margin + s(i, c') - s(i, c)). The two directions are added. A batch without a violation, or
    without a negative, has a loss of 0 with finite gradients. Scores in half precision are converted to float32.

    With ``positives="worst"`` (ESA's self-expanding loss, Zhu et al. 2023) a query has one positive, the one with the
    lowest score: max(0, margin + s(i, c') - min over positives c of s(i, c)), once for each negative c' of query i.
    With one positive for each query it is the ordinary loss. The positives come from ids: where a batch has several
    captions of an image, the minimum is over the views of all of them, while ESA's code takes the same pair's views
    alone and treats the others as negatives.

    Args:
        margin: By how much a positive must score above a negative.
        mining: "all" keeps every triplet. "hardest" keeps, in each direction, each positive pair's triplet with its
            hardest negative. "semihard" keeps every triplet but clamps its cost to [0, margin] (DivE).
        reduction: "sum" (VSE∞). "mean" over the triplets of each direction; with "hardest" mining over the positive
            pairs, with "semihard" over the costs above 0 (DivE). "mean_pairs", the sum divided by A * C (PVSE without
            mining).
        warmup_epochs: Number of first epochs in which all triplets are used, whatever the mining; see
            :meth:`set_epoch`.
        positives: "each" keeps the triplets of every positive pair, "worst" those of each query's worst positive. A
            reduction over positive pairs is then one over queries.

    Raises:
        ValueError: ``margin`` is not positive, ``warmup_epochs`` is negative, or a choice is unknown.

    >>> loss = TripletLoss(margin=0.2)
    >>> loss(torch.eye(4), torch.eye(4, dtype=torch.bool))
    tensor(0.)
    """

    def __init__(
        self,
        margin: float = 0.2,
        mining: Mining = "hardest",
        reduction: Reduction = "sum",
        warmup_epochs: int = 0,
        positives: Positives = "each",
    ) -> None:
        super().__init__()
        check_positive("margin", margin)
        check_choice("mining", mining, get_args(Mining))
        check_choice("reduction", reduction, get_args(Reduction))
        check_at_least("warmup_epochs", warmup_epochs, 0)
        check_choice("positives", positives, get_args(Positives))
        self.margin = margin
        self.mining = mining
        self.reduction = reduction
        self.warmup_epochs = warmup_epochs
        self.positives = positives
        self.warming_up = False

    def set_epoch(self, epoch: int) -> None:
        """Use all negatives in the first ``warmup_epochs`` epochs; epochs count from 0."""
        self.warming_up = epoch < self.warmup_epochs

    def forward(self, scores: Tensor, positives: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Judge a batch.

        Args:
            scores: Scores (A, C), images by captions.
            positives: (A, C) bool, True where image and caption belong together.
            pairs: Rows and columns (2, P) of the positive pairs; found in ``positives`` if they are not given.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: A shape or type is wrong, or no pair is positive.
        """
        rows, columns = positive_pairs(scores, positives, pairs)
        scores = at_least_float32(scores)
        return self._direction(scores, positives, rows, columns) + self._direction(scores.T, positives.T, columns, rows)

    def _direction(self, scores: Tensor, positives: Tensor, query: Tensor, match: Tensor) -> Tensor:
        """Loss of the rows' queries against the columns; pair p is (query[p], match[p])."""
        mining = "all" if self.warming_up else self.mining
        negatives = scores.masked_fill(positives, float("-inf"))
        if mining == "hardest":
            negatives = negatives.max(1, keepdim=True).values
        counted = positives.new_ones(query.shape[0], 1)  # which positives there are
        if self.positives == "worst":  # one for each row; it is inf, and all costs are 0, where there is none
            matched, counted = (
                scores.masked_fill(~positives, float("inf")).min(1).values,
                positives.any(1, keepdim=True),
            )
            query = torch.arange(scores.shape[0], device=scores.device)
        else:
            matched = scores[query, match]
        costs = (self.margin + negatives[query] - matched.unsqueeze(1)).relu()  # (P, 1) or (P, columns)
        if mining == "semihard":
            costs = costs.clamp(max=self.margin)
        if self.reduction == "sum":
            return costs.sum()
        if self.reduction == "mean_pairs":
            return costs.sum() / positives.numel()
        kept = counted
        if mining != "hardest":
            kept = costs > 0 if mining == "semihard" else ~positives[query] & counted
        return costs.sum() / kept.sum().clamp(min=1)

    def extra_repr(self) -> str:
        """Show the settings where the module is printed."""
        shown = f"margin={self.margin}, mining={self.mining}, reduction={self.reduction}"
        return shown if self.positives == "each" else f"{shown}, positives={self.positives}"
