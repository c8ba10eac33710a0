import pytest
import torch
from aggregator_cases import DIM, sets, valid
from distributions import check_module
from torch import Tensor

from vse.aggregators import FSPool


def slow_fspool(weight: Tensor, elements: Tensor) -> Tensor:
    """FSPool of one set, rank by rank."""
    pieces = weight.shape[1] - 1
    pooled = []
    for row, column in zip(weight, elements.T, strict=True):
        total = torch.zeros((), dtype=elements.dtype)
        for k, value in enumerate(sorted(column.tolist(), reverse=True)):
            position = pieces * (k / (len(column) - 1) if len(column) > 1 else 0.0)
            left = int(position)
            right = min(left + 1, pieces)
            total += ((1 - position + left) * row[left] + (position - left) * row[right]) * value
        pooled.append(total)
    return torch.stack(pooled)


@pytest.mark.parametrize("pieces", [1, 4, 20])
def test_it_equals_its_definition(pieces: int) -> None:
    torch.manual_seed(0)
    pool = FSPool(DIM, pieces).double()
    features, mask = sets()
    expected = torch.stack([slow_fspool(pool.weight.detach(), x) for x in valid(features, mask)])
    torch.testing.assert_close(pool(features, mask).embeddings[:, 0], expected)


def test_one_element_gets_the_first_weight() -> None:
    """The released code also counts a row of padding there, with the last weight."""
    pool = FSPool(DIM).double()
    features, _ = sets()
    mask = torch.tensor([[True] + [False] * 6] * 4)
    torch.testing.assert_close(pool(features, mask).embeddings[:, 0], pool.weight[:, 0] * features[:, 0])


def test_it_starts_as_published() -> None:
    check_module(FSPool(64), {"weight": ("normal", 1.0)})


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        FSPool(0)
    with pytest.raises(ValueError, match="pieces must be at least 1, got 0"):
        FSPool(DIM, pieces=0)
