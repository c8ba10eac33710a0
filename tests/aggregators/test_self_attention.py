import math
from typing import Any

import pytest
import torch
from aggregator_cases import DIM, sets, valid
from torch import Tensor, nn
from torch.nn import functional as F

from vse.aggregators import SelfAttention


def slow_layer(layer: nn.TransformerEncoderLayer, elements: Tensor, heads: int) -> Tensor:
    """A transformer layer of one set, head by head and element by element."""
    weight, bias = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    projected = [elements @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True)]
    read = []
    for q, k, v in zip(*(x.chunk(heads, 1) for x in projected), strict=True):
        rows = [torch.softmax(torch.stack([q_i @ k_j for k_j in k]) / math.sqrt(k.shape[1]), 0) @ v for q_i in q]
        read.append(torch.stack(rows))
    states = layer.norm1(elements + layer.self_attn.out_proj(torch.cat(read, 1)))
    return layer.norm2(states + layer.linear2(F.relu(layer.linear1(states))))


@pytest.mark.parametrize("depth", [1, 2])
def test_it_equals_its_definition(depth: int) -> None:
    torch.manual_seed(0)
    net = SelfAttention(DIM, depth=depth, heads=2, ff_mult=3).double()
    features, mask = sets()
    found = net(features, mask).embeddings[:, 0]
    for row, elements in enumerate(valid(features, mask)):
        for layer in net.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            elements = slow_layer(layer, elements, heads=2)
        torch.testing.assert_close(found[row], elements.mean(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 4}, "heads must divide the width of the features, 6, got 4"),
        ({"heads": 2, "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfAttention(DIM, **arguments)
