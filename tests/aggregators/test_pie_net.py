from typing import Any

import pytest
import torch
from aggregator_cases import DIM, make, sets, valid
from torch import Tensor

from vse.aggregators import MeanPool, PIENet

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "no global": {"use_global": False},
    "no residual": {"use_residual": False},
    "concatenated": {"combine": "concatenate"},
    "concatenated, no residual": {"combine": "concatenate", "use_residual": False},
}


def slow_pie_net(net: PIENet, elements: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PIE-Net of one set: embeddings, attention, residual, one map at a time."""
    rows = []
    for k in range(net.maps.out_features):
        scores = torch.stack([net.maps.weight[k] @ torch.tanh(net.hidden.weight @ x) for x in elements])
        alpha = scores.exp() / scores.exp().sum()
        residual = torch.sigmoid(net.fc(sum(a * x for a, x in zip(alpha, elements, strict=True))))
        if not net.use_global:
            joined = residual
        elif net.join is not None:
            joined = net.join(torch.cat([context, residual]))
        else:
            joined = context + residual
        rows.append((net.norm(joined), alpha, residual))
    embeddings, attention, residuals = (torch.stack(part) for part in zip(*rows, strict=True))
    return embeddings, attention, residuals


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("num_embeddings", [1, 3])
def test_it_equals_its_definition(num_embeddings: int, setting: str) -> None:
    torch.manual_seed(0)
    concatenated = setting.startswith("concatenated")
    out_dim = 5 * num_embeddings if concatenated else 5
    net = PIENet(DIM, out_dim, num_embeddings, hidden_dim=4, **SETTINGS[setting]).double()
    features, mask = sets()
    context = torch.randn(4, 5, dtype=torch.float64)
    result = net(features, mask, context)
    for row, elements in enumerate(valid(features, mask)):
        embeddings, attention, residual = slow_pie_net(net, elements, context[row])
        if concatenated:
            embeddings = torch.cat(list(embeddings)).unsqueeze(0)
        torch.testing.assert_close(result.embeddings[row], embeddings)
        torch.testing.assert_close(result.attention[row][:, mask[row]], attention)
        torch.testing.assert_close(result.residual[row], residual)


def test_without_the_global_part_the_context_is_not_read() -> None:
    features, mask = sets()
    net = PIENet(DIM, 5, 2, use_global=False).double()
    alone = net(features, mask).embeddings
    assert torch.equal(net(features, mask, torch.full((4, 3), torch.nan)).embeddings, alone)


def test_context_widths() -> None:
    features, mask = sets()
    narrow = PIENet(DIM, 5, 2).double()
    with pytest.raises(ValueError, match=r"the masked mean, which .* must be \(4, 5\), got shape \(4, 6\)"):
        narrow(features, mask)
    with pytest.raises(ValueError, match=r"context must be \(4, 5\), got shape \(4, 6\)"):
        narrow(features, mask, torch.randn(4, DIM))
    mean = MeanPool()(features, mask).embeddings[:, 0]
    for net in (make("pie_net"), make("pie_net, projected context")):
        torch.testing.assert_close(net(features, mask).embeddings, net(features, mask, mean).embeddings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_dim": 0}, "^in_dim must be at least 1, got 0"),
        ({"out_dim": 0}, "^out_dim must be at least 1, got 0"),
        ({"hidden_dim": 0}, "^hidden_dim must be at least 1, got 0"),
        ({"num_embeddings": 0}, "^num_embeddings must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"combine": "sum"}, "combine must be one of 'set' or 'concatenate', got 'sum'"),
        ({"use_global": False, "use_residual": False}, "need the context, but use_global is False"),
        ({"use_global": False, "project_context": True}, "need the context, but use_global is False"),
        ({"combine": "concatenate", "out_dim": 5}, "num_embeddings must divide out_dim to concatenate, got 2 and 5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("pie_net", **arguments)
