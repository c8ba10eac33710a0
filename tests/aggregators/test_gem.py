import pytest
import torch
from aggregator_cases import sets, valid
from torch import Tensor

from vse.aggregators import GeM, MaxPool


def slow_gem(elements: Tensor, power: float, eps: float) -> Tensor:
    """Generalized mean of one set, straight from the formula."""
    means = [sum(max(float(x), eps) ** power for x in column) / len(column) for column in elements.T]
    return torch.tensor([mean ** (1 / power) for mean in means], dtype=elements.dtype)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_it_equals_its_definition(power: float) -> None:
    features, mask = sets()
    expected = torch.stack([slow_gem(x, power, 0.01) for x in valid(features, mask)])
    found = GeM(power, eps=0.01).double()(features, mask).embeddings[:, 0]
    torch.testing.assert_close(found, expected)


def test_large_powers_tend_to_the_maximum_without_underflow() -> None:
    features, mask = sets(torch.float32)
    pool = GeM(power=200.0)
    pooled = pool(features, mask).embeddings
    maxima = MaxPool()(features, mask).embeddings.clamp(min=1e-6)
    torch.testing.assert_close(pooled, maxima, rtol=0.02, atol=0)
    pooled.sum().backward()
    assert pool.power.grad is not None and pool.power.grad.isfinite() and pool.power.grad != 0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="power must be positive, got 0.0"):
        GeM(power=0.0)
    with pytest.raises(ValueError, match="eps must be positive, got -1.0"):
        GeM(eps=-1.0)
