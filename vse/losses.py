"""Ranking losses on a score matrix, and the criterion that joins one with weighted regularisers.

A loss is ``loss(scores (A, C), positives (A, C) bool) -> scalar``: rows are images, columns captions, and
``positives`` says which pairs belong together; it comes from ids, so a row may have any number of positives.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        if not 0 < margin < math.inf:
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
        rows, columns = positive_pairs(scores, positives)
        scores = _full_precision(scores)
        return self._direction(scores, positives, rows, columns) + self._direction(scores.T, positives.T, columns, rows)

    def _direction(self, scores: Tensor, positives: Tensor, query: Tensor, match: Tensor) -> Tensor:
        """Loss of the rows' queries against the columns; pair p is (query[p], match[p])."""
        mining = "all" if self.warming_up else self.mining
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


class AdaptiveContrastiveLoss(nn.Module):
    """Contrastive loss against the n hardest negatives, n chosen by the state of the embedding space (AdOpt).

    VSE-2AD, Zhang et al. 2023 (EACL), its adaptive objective. With a the mean score of the positive pairs, u the
    mean over all scores of exp(-s), the positives counting as s = 0 (both without gradient), B candidates of a query:
    n = clip(floor(B cos((a + u)^gamma)) + 1, 1, B - 1). Each positive pair costs the cross-entropy, at the
    ``temperature``, of its score against the query's n hardest negatives, whose scores get ``margin`` added; mean over
    the positive pairs, averaged over both directions.

    ``negatives``: "adaptive", "random" (n uniform in 1..B-1, one draw per direction and batch) or a constant n.
    ``released`` reproduces the published code, which takes the n largest scores with the positive as 0: when fewer than
    n negatives score above 0, the positive enters among its own negatives.

    Shapes: scores (A, C), positives (A, C) bool -> scalar. Raises ValueError for a gamma or temperature that is not
    positive, a negative margin, a constant n below 1, wrong shapes, or a batch without a positive pair.

    >>> AdaptiveContrastiveLoss()(torch.randn(4, 4), torch.eye(4, dtype=torch.bool))
    """

    def __init__(
        self,
        gamma: float = 1.25,
        margin: float = 0.2,
        temperature: float = 0.05,
        negatives: int | Literal["adaptive", "random"] = "adaptive",
        released: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin must not be negative, got {margin}")
        if negatives not in ("adaptive", "random") and (type(negatives) is not int or negatives < 1):
            raise ValueError(f"negatives must be 'adaptive', 'random' or a number of at least 1, got {negatives!r}")
        self.gamma, self.margin, self.temperature = gamma, margin, temperature
        self.negatives, self.released = negatives, released

    def forward(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of one batch."""
        rows, columns = positive_pairs(scores, positives)
        scores = _full_precision(scores)
        left = self._direction(scores, positives, rows, columns)
        return (left + self._direction(scores.T, positives.T, columns, rows)) / 2

    @torch.no_grad()
    def count_negatives(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Return n, the number of negatives of the rows' queries among the columns: an integer tensor without shape."""
        size = scores.shape[1]
        if self.negatives == "random":
            return torch.randint(1, max(2, size), ()).to(scores.device)
        if self.negatives != "adaptive":
            return torch.full((), min(int(self.negatives), size), device=scores.device)
        alignment = scores.masked_fill(~positives, 0.0).sum() / positives.sum()
        uniformity = (-scores.masked_fill(positives, 0.0)).exp().mean()
        share = (alignment + uniformity).clamp(min=0.0).pow(self.gamma).cos()
        return (share * size).floor().long().add(1).clamp(max=size - 1).clamp(min=1)

    def _direction(self, scores: Tensor, positives: Tensor, query: Tensor, match: Tensor) -> Tensor:
        """Loss of the rows' queries against the columns; pair p is (query[p], match[p])."""
        ranking = scores.detach().masked_fill(positives, 0.0 if self.released else float("-inf"))
        value, index = ranking.sort(dim=1, descending=True)
        chosen = torch.arange(scores.shape[1], device=scores.device) < self.count_negatives(scores, positives)
        negatives = (scores.gather(1, index) + self.margin) / self.temperature
        negatives = negatives.masked_fill(~chosen | (value == float("-inf")), float("-inf"))
        return _cross_entropy(scores[query, match] / self.temperature, negatives, query)

    def extra_repr(self) -> str:  # noqa: D102
        return f"gamma={self.gamma}, margin={self.margin}, temperature={self.temperature}, negatives={self.negatives}"


class InfoNCELoss(nn.Module):
    """Cross-entropy of each positive against all of its query's negatives, at a learned temperature.

    InfoNCE, van den Oord et al. 2018, in both directions as in CLIP (Radford et al. 2021):
    -log(exp(s+ / t) / (exp(s+ / t) + sum over negatives of exp(s- / t))), mean over the positive pairs, averaged over
    the directions. A query's other positives are left out. ``learnable``: log t is a parameter, kept above log 0.01.

    Shapes: scores (A, C), positives (A, C) bool -> scalar. Raises ValueError for a temperature below 0.01, wrong
    shapes, or a batch without a positive pair.

    >>> InfoNCELoss()(torch.randn(4, 4), torch.eye(4, dtype=torch.bool))
    """

    lowest = 0.01  # CLIP's limit: a sharper softmax makes training unstable

    def __init__(self, temperature: float = 0.07, learnable: bool = True) -> None:
        super().__init__()
        if not self.lowest <= temperature < math.inf:
            raise ValueError(f"temperature must be at least {self.lowest}, got {temperature}")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learnable)

    def forward(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of one batch."""
        rows, columns = positive_pairs(scores, positives)
        with torch.no_grad():  # on the parameter itself: a clamp in the graph would leave it without a gradient there
            self.log_temperature.clamp_(min=math.log(self.lowest))
        scaled = _full_precision(scores) / self.log_temperature.exp()
        negatives = scaled.masked_fill(positives, float("-inf"))
        matches = scaled[rows, columns]
        return (_cross_entropy(matches, negatives, rows) + _cross_entropy(matches, negatives.T, columns)) / 2


def _cross_entropy(matches: Tensor, negatives: Tensor, query: Tensor) -> Tensor:
    """Mean over pairs of log(1 + sum exp(negatives[query]) / exp(match)); -inf is no negative."""
    lowest = torch.finfo(negatives.dtype).min / 2  # finite: the gradient of an all -inf row's logsumexp is NaN
    against = negatives.clamp(min=lowest).logsumexp(1)
    return F.softplus(against[query] - matches).mean()


def _full_precision(scores: Tensor) -> Tensor:
    """Scores in float32, unless they are in float64."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


class Criterion(nn.Module):
    """A ranking loss plus weighted regularisers: total = ramp * (ranking + sum_t weight_t * term_t(image, text)).

    Returns every part by name beside "total", for the logs. The ramp is 1, but in the epoch ``ramp_epoch``, counted
    from 0, it rises linearly from 0: the first epoch in which VSE∞ trains its backbone.

    >>> criterion = Criterion(TripletLoss())
    >>> criterion(scores, positives, image, text)["total"].backward()
    """

    def __init__(
        self,
        ranking: Callable[[Tensor, Tensor], Tensor],
        terms: dict[str, tuple[float, Callable[[Aggregated, Aggregated], Tensor]]] | None = None,
        ramp_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.ranking = ranking
        self.ramp_epoch = ramp_epoch
        self.ramp = 1.0
        self.terms = dict(terms or {})
        self.term_modules = nn.ModuleList(t for _, t in self.terms.values() if isinstance(t, nn.Module))

    def set_time(self, time: float) -> None:
        """Set the ramp for a time in epochs, a real number."""
        rising = self.ramp_epoch is not None and self.ramp_epoch <= time < self.ramp_epoch + 1
        self.ramp = time % 1 if rising else 1.0

    def forward(self, scores: Tensor, positives: Tensor, image: Aggregated, text: Aggregated) -> dict[str, Tensor]:
        """Return {"total": ..., "ranking": ..., and each term unweighted}."""
        parts = {"ranking": self.ranking(scores, positives)}
        total = parts["ranking"]
        for name, (weight, term) in self.terms.items():
            parts[name] = term(image, text)
            total = total + weight * parts[name]
        return {"total": self.ramp * total, **parts}


def positive_pairs(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P,) and columns (P,) of the positive pairs.

    Raises ValueError unless scores and positives are (A, C), ``positives`` is bool and some pair is positive.
    """
    if scores.dim() != 2 or scores.shape != positives.shape:
        raise ValueError(
            f"scores and positives must be (A, C) alike, got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    if positives.dtype != torch.bool:
        raise ValueError(f"positives must be bool, got {positives.dtype}")
    rows, columns = positives.nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("the batch has no positive pair")
    return rows, columns


def diversity_loss(image: Aggregated, text: Aggregated) -> Tensor:
    """Diversity of the K residuals r of a sample (the diversity loss of PVSE, Song & Soleymani 2019).

    |G - I|_F / K^2 with G the Gram matrix of the L2-normalised residuals; mean over the batch, image side + text side.
    Shapes: residuals (A, K, H) and (C, L, H) -> scalar. Raises ValueError when an aggregator gives no residual.

    >>> diversity_loss(image, text)
    """

    def side(residual: Tensor) -> Tensor:
        identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
        excess = residual @ residual.transpose(1, 2) - identity
        return torch.linalg.matrix_norm(excess).mean() / residual.shape[1] ** 2

    return side(_residuals(image, "image")) + side(_residuals(text, "text"))


def uniformity_loss(image: Aggregated, text: Aggregated) -> Tensor:
    """Uniformity of the K residuals r of a sample (DivE, Kim et al. 2023, section 3.4).

    Mean over the pairs i < j of exp(-2 |r_i - r_j|^2) for L2-normalised residuals; mean over the batch, image side +
    text side; 0 for a side with K = 1.
    Shapes: residuals (A, K, H) and (C, L, H) -> scalar. Raises ValueError when an aggregator gives no residual.

    >>> uniformity_loss(image, text)
    """

    def side(residual: Tensor) -> Tensor:
        size = residual.shape[1]
        pairs = torch.ones(size, size, dtype=torch.bool, device=residual.device).triu(1)
        squared = 2 - 2 * (residual @ residual.transpose(1, 2))
        potentials = (-2 * squared).exp().masked_fill(~pairs, 0.0)
        return potentials.sum((1, 2)).mean() / max(1, size * (size - 1) // 2)

    return side(_residuals(image, "image")) + side(_residuals(text, "text"))


def mmd_loss(
    image: Aggregated, text: Aggregated, kernel: Literal["rbf", "exponential"] = "rbf", gamma: float = 0.5
) -> Tensor:
    """Maximum mean discrepancy between all image and all text embeddings (PVSE, Song & Soleymani 2019).

    mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), self-pairs included, with k = exp(-gamma |x - y|^2) ("rbf", the
    paper) or exp(-gamma |x - y|) ("exponential", the released codes of PVSE and DivE).
    Shapes: embeddings (A, K, H) and (C, L, H) -> scalar. Raises ValueError for an unknown kernel, a gamma that is not
    positive, embeddings of different widths.

    >>> mmd_loss(image, text, kernel="exponential")
    """
    if kernel not in ("rbf", "exponential"):
        raise ValueError(f"kernel must be 'rbf' or 'exponential', got {kernel!r}")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be positive, got {gamma}")
    x, y = (_full_precision(side.embeddings).flatten(0, 1) for side in (image, text))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings must be equally wide, got {x.shape[1]} and {y.shape[1]}")

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        if a is b:  # no rounding, and no gradient, where the distance is exactly 0
            squared = squared.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0.0)
        distance = squared.clamp(min=0.0) if kernel == "rbf" else squared.clamp(min=1e-12).sqrt()
        return (-gamma * distance).exp().mean()

    return mean_kernel(x, x) - 2 * mean_kernel(x, y) + mean_kernel(y, y)


def _residuals(side: Aggregated, name: str) -> Tensor:
    """L2-normalised residuals (B, K, H) of one side."""
    if side.residual is None:
        raise ValueError(f"the {name} aggregator gives no residual; pie_net and set_prediction do")
    return F.normalize(_full_precision(side.residual), dim=-1)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "triplet": TripletLoss,
    "adaptive_contrastive": AdaptiveContrastiveLoss,
    "info_nce": InfoNCELoss,
}
REGULARISERS: dict[str, Callable[..., Tensor | nn.Module]] = {
    "diversity": diversity_loss,
    "uniformity": uniformity_loss,
    "mmd": mmd_loss,
}
