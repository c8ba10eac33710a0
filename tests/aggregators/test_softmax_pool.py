import pytest
import torch
from aggregator_cases import DIM, make, sets, valid
from distributions import check_module, linear, xavier

from vse.aggregators import SoftmaxPool


def test_it_equals_its_slow_twin() -> None:
    pool = make("softmax_pool")
    assert isinstance(pool, SoftmaxPool)
    features, mask = sets()
    found, weight = pool(features, mask).embeddings, pool.linear.weight
    for row, elements in enumerate(valid(features, mask)):
        for d in range(DIM):
            logits = [weight[d] @ x for x in elements]
            total = sum(torch.exp(a) for a in logits)
            expected = sum(torch.exp(a) / total * x[d] for a, x in zip(logits, elements, strict=True))
            torch.testing.assert_close(found[row, 0, d], expected)


def test_it_lies_between_the_mean_and_the_maximum() -> None:
    pool, features = make("softmax_pool"), sets()[0]
    assert isinstance(pool, SoftmaxPool)
    pool.linear.weight.data.zero_()
    torch.testing.assert_close(pool(features).embeddings[:, 0], features.mean(1))
    pool.linear.weight.data.copy_(1e4 * torch.eye(DIM))
    torch.testing.assert_close(pool(features).embeddings[:, 0], features.amax(1))


def test_weights_are_those_of_the_real_elements() -> None:
    pool = make("softmax_pool")
    assert isinstance(pool, SoftmaxPool)
    features, mask = sets()
    weights = pool.weigh(features, mask)
    assert not weights[~mask].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(4, DIM).double())


def test_initialisation() -> None:
    check_module(SoftmaxPool(64), {"linear.weight": xavier(64, 64)})
    check_module(SoftmaxPool(64, init="torch"), {"linear.weight": linear(64)})


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        SoftmaxPool(0)
    with pytest.raises(ValueError, match="init must be one of 'xavier' or 'torch', got 'normal'"):
        SoftmaxPool(4, init="normal")  # type: ignore[arg-type]
