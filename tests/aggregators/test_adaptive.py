import math

import pytest
import torch
from aggregator_cases import sets, valid
from torch import Tensor

from vse.aggregators import AdaptivePool


def slow_adaptive(pool: AdaptivePool, elements: Tensor) -> Tensor:
    """Adaptive pooling of one set, rank by rank."""
    ranked = torch.stack([column.sort(descending=True).values for column in elements.T], dim=1)
    token_scores = torch.stack([torch.relu(pool.linear.weight @ row + pool.linear.bias) for row in ranked])
    sums = []
    for scores in (token_scores, ranked):
        weights = torch.stack([column.exp() / column.exp().sum() for column in scores.T], dim=1)
        sums.append((weights * ranked).sum(0))
    token, embedding = sums
    w = torch.softmax(torch.stack([pool.balance(token)[0], pool.balance(embedding)[0]]), 0)
    return w[0] * token + w[1] * embedding


def test_it_equals_its_definition() -> None:
    torch.manual_seed(0)
    pool = AdaptivePool(6).double()
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    features, mask = sets()
    expected = torch.stack([slow_adaptive(pool, x) for x in valid(features, mask)])
    torch.testing.assert_close(pool(features, mask).embeddings[:, 0], expected)


def test_it_starts_as_in_the_released_code() -> None:
    """Its init_weights is about the token level's map alone: Xavier uniform, and a bias of zero."""
    torch.manual_seed(0)
    pool = AdaptivePool(200)
    for layer, bound in ((pool.linear, math.sqrt(6 / (200 + 200))), (pool.balance, 1 / math.sqrt(200))):
        largest = float(layer.weight.detach().abs().max())
        assert 0.95 * bound < largest <= bound
    assert (pool.linear.bias == 0).all() and (pool.balance.bias != 0).all()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        AdaptivePool(0)
