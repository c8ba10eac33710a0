"""The weights by rank of GPO and adaptive pooling, and the share of each element that follows from them."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vse.aggregators import GPO, AdaptivePool
from vse.aggregators.softmax_pool import SoftmaxPool
from vse.pages.charts import Chart, Line
from vse.sets import masked_softmax, masked_sort

TOGETHER = "together"


@torch.no_grad()
def rank_weights(aggregator: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Compute the weights that an aggregator gives to the ranks of each dimension's sorted values.

    Args:
        aggregator: A GPO or an AdaptivePool; others have no such weights.
        features: What it aggregates (B, N, D), without padding.

    Returns:
        Weights (B, N, D) by name. Those named "together" give the embedding: the sum over the ranks of weight times
        value. AdaptivePool also has its "token level" and "embedding level". Empty for other aggregators.

    >>> rank_weights(GPO(), torch.randn(2, 36, 8))["together"].shape
    torch.Size([2, 36, 8])
    """
    ranked, _ = masked_sort(features)
    if isinstance(aggregator, GPO):
        weights = aggregator.rank_weights(ranked, None)
        weights = weights if aggregator.per_dimension else weights.unsqueeze(-1)
        return {TOGETHER: weights.expand_as(ranked)}
    if isinstance(aggregator, AdaptivePool):
        token = masked_softmax(aggregator.linear(ranked).relu(), None, dim=1)
        embedding = masked_softmax(ranked, None, dim=1)
        balance = aggregator.levels(features, None)[1][:, :, None, None]
        together = balance[:, 0] * token + balance[:, 1] * embedding
        return {TOGETHER: together, "token level": token, "embedding level": embedding}
    return {}


@torch.no_grad()
def element_shares(aggregator: nn.Module, features: Tensor) -> Tensor | None:
    """Compute which share of the embedding comes from each element, as the mean weight over the dimensions.

    For weights w_kd on the values x_(k)d, sorted by rank k, element n has the share mean_d w_kd with the k that is its
    rank in dimension d. The shares add up to 1.

    Args:
        aggregator: A GPO, an AdaptivePool or a SoftmaxPool.
        features: What it aggregates (B, N, D), without padding.

    Returns:
        Shares (B, N), or None for other aggregators.

    >>> element_shares(GPO(), torch.randn(2, 36, 8)).sum(1)
    tensor([1.0000, 1.0000])
    """
    if isinstance(aggregator, SoftmaxPool):
        return aggregator.weigh(features, None).mean(-1)
    weights = rank_weights(aggregator, features).get(TOGETHER)
    if weights is None:
        return None
    order = features.argsort(dim=1, descending=True)
    return torch.zeros_like(weights).scatter(1, order, weights).mean(-1)


def weight_chart(side: str, what: str, aggregator: nn.Module, samples: Sequence[Tensor]) -> Chart | None:
    """Draw the weights by rank of one side's aggregator.

    Args:
        side: "image" or "text", for the chart's name.
        what: What an element is, for its title, such as "regions".
        aggregator: The side's aggregator.
        samples: The features (N, D) of some samples, at least one.

    Returns:
        For GPO a line for each of up to four sizes of sets: of the samples where they differ in size, and else the
        samples' size, half and a quarter of it. For adaptive pooling both levels and what they give together, as means
        over the samples of the most common size. None for other aggregators.
    """
    if isinstance(aggregator, GPO):
        title = f"GPO: weights by rank, {side} side"
        lines = [_mean_line(f"{len(group[0])} {what}", aggregator, group) for group in _sizes(aggregator, samples)]
    elif isinstance(aggregator, AdaptivePool):
        size = Counter(map(len, samples)).most_common(1)[0][0]
        group = torch.stack([features for features in samples if len(features) == size])
        balance = float(aggregator.levels(group, None)[1].mean(0)[0].detach())
        title = f"Adaptive pooling: weights by rank, {side} side, {size} {what} (token level counts {balance:.0%})"
        lines = [_line(name, weights) for name, weights in rank_weights(aggregator, group).items()]
    else:
        return None
    return Chart(f"weights_{side}", title, "rank", "mean weight", tuple(lines), zero=True)


def _sizes(aggregator: GPO, samples: Sequence[Tensor]) -> list[list[Tensor]]:
    """Samples of up to four sizes."""
    sizes = sorted({len(features) for features in samples})
    if len(sizes) == 1 and aggregator.condition is None:  # the values do not matter: any part of a set will do
        return [[samples[0][:size]] for size in sorted({-(-sizes[0] // 4), -(-sizes[0] // 2), sizes[0]})]
    chosen = sorted({sizes[round(place * (len(sizes) - 1) / 3)] for place in range(4)})
    return [[features for features in samples if len(features) == size] for size in chosen]


def _mean_line(name: str, aggregator: GPO, samples: Sequence[Tensor]) -> Line:
    return _line(name, rank_weights(aggregator, torch.stack(list(samples)))[TOGETHER])


def _line(name: str, weights: Tensor) -> Line:
    """The mean weight of each rank, of weights (B, N, D)."""
    means = weights.float().mean((0, 2)).tolist()
    return Line(name, range(1, len(means) + 1), means)
