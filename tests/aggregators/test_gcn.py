import math

import pytest
import torch
from aggregator_cases import DIM, sets, valid
from torch import Tensor

from vse.aggregators import GCN
from vse.aggregators.gcn import GraphLayer


def slow_layer(layer: GraphLayer, elements: Tensor) -> Tensor:
    """A graph convolution of one set, element by element."""
    rows = []
    for x in elements:
        affinities = torch.stack([layer.query(x) @ layer.key(y) for y in elements]) / math.sqrt(len(x))
        weights = affinities.exp() / affinities.exp().sum()
        read = sum(weight * layer.graph(y) for weight, y in zip(weights, elements, strict=True))
        rows.append(x + layer.out(read))
    return torch.stack(rows)


@pytest.mark.parametrize("depth", [1, 3])
def test_it_equals_its_definition(depth: int) -> None:
    torch.manual_seed(0)
    net = GCN(DIM, depth).double()
    features, mask = sets()
    found = net(features, mask).embeddings[:, 0]
    for row, elements in enumerate(valid(features, mask)):
        for layer in net.layers:
            assert isinstance(layer, GraphLayer)
            elements = slow_layer(layer, elements)
        torch.testing.assert_close(found[row], elements.mean(0))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        GCN(0)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        GCN(DIM, depth=0)
