import math
from typing import Any

import pytest
import torch
from aggregator_cases import DIM, sets, valid
from torch import Tensor, nn
from torch.nn import functional as F

from vse.aggregators import GPO
from vse.aggregators.gpo import position_codes
from vse.sequences import read_both_ways

DESIGNS: dict[str, dict[str, Any]] = {
    "paper": {},
    "transformer": {"decoder": "transformer"},
    "mlp": {"decoder": "mlp"},
    "per dimension": {"per_dimension": True, "in_dim": DIM},
    "conditioned": {"conditioned": True, "in_dim": DIM},
    "all": {"decoder": "transformer", "per_dimension": True, "conditioned": True, "in_dim": DIM},
}


def slow_transformer(layer: nn.TransformerEncoderLayer, codes: Tensor) -> Tensor:
    """One post-norm transformer layer with one head, for one sequence."""
    weight, bias = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    queries, keys, values = (codes @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    read = torch.softmax(queries @ keys.T / math.sqrt(codes.shape[1]), 1) @ values
    states = layer.norm1(codes + layer.self_attn.out_proj(read))
    return layer.norm2(states + layer.linear2(F.relu(layer.linear1(states))))


def slow_gpo(gpo: GPO, elements: Tensor) -> Tensor:
    """GPO of one set, straight from the paper: one sequence, one loop over dimensions."""
    ranked = torch.stack([column.sort(descending=True).values for column in elements.T], dim=1)
    codes = position_codes(len(elements), gpo.position_dim).to(elements)
    if gpo.condition is not None:
        codes = codes + ranked @ gpo.condition.weight.T
    if gpo.decoder == "gru":
        gru = nn.GRU(gpo.position_dim, gpo.gru.hidden_size, bidirectional=True).to(elements)
        gru.load_state_dict(gpo.gru.state_dict())
        states = gru(codes)[0]
        half = states.shape[1] // 2
        states = (states[:, :half] + states[:, half:]) / 2
    elif gpo.decoder == "transformer":
        states = slow_transformer(gpo.transformer, codes)
    else:
        states = torch.relu(codes @ gpo.mlp[0].weight.T + gpo.mlp[0].bias)  # type: ignore[operator]
    scores = gpo.linear(states)
    pooled = []
    for d in range(elements.shape[1]):
        theta = torch.softmax(scores[:, d if gpo.per_dimension else 0] / 0.1, 0)
        pooled.append((theta * ranked[:, d]).sum())
    return torch.stack(pooled)


@pytest.mark.parametrize("design", DESIGNS)
def test_it_equals_its_definition(design: str) -> None:
    torch.manual_seed(0)
    gpo = GPO(position_dim=8, hidden_dim=5, **DESIGNS[design]).double()
    features, mask = sets()
    expected = torch.stack([slow_gpo(gpo, x) for x in valid(features, mask)])
    torch.testing.assert_close(gpo(features, mask).embeddings[:, 0], expected)
    with torch.no_grad():
        torch.testing.assert_close(gpo.eval()(features, mask).embeddings[:, 0], expected)


@pytest.mark.parametrize("design", DESIGNS)
def test_weights_sum_to_one_over_the_ranks(design: str) -> None:
    features, mask = sets()
    weights = GPO(**DESIGNS[design]).double().rank_weights(features, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))


def test_only_conditioned_weights_depend_on_the_features() -> None:
    features, _ = sets()
    for design, arguments in DESIGNS.items():
        weights = GPO(**arguments).double().rank_weights(features, None)
        assert len(weights) == (4 if arguments.get("conditioned") else 1), design


def test_position_codes() -> None:
    codes = position_codes(5, 4)
    for k in range(5):
        expected = [f(k / 10000 ** (i / 4)) for i in (0, 2) for f in (math.sin, math.cos)]
        torch.testing.assert_close(codes[k], torch.tensor(expected))


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each call of a GPO's GRU: by the number of sequences that it reads."""
    calls: list[int] = []

    def read(gru: nn.GRU, codes: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        calls.append(len(codes))
        return read_both_ways(gru, codes, mask)

    monkeypatch.setattr("vse.aggregators.gpo.read_both_ways", read)
    return calls


def test_it_computes_its_weights_once_per_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch takes them from a table of all counts, a small one has a row of its own for each sample."""
    gpo = GPO()
    rows = counted_calls(monkeypatch)
    features = torch.randn(64, 5, DIM)
    mask = torch.arange(5) < torch.tensor([2, 5]).repeat(32)[:, None]
    gpo(features, mask)
    gpo(features[:4], mask[:4])
    gpo(features)
    assert rows == [5, 4, 1]


@pytest.mark.parametrize("design", [name for name in DESIGNS if not DESIGNS[name].get("conditioned")])
def test_the_table_of_all_counts_gives_the_weights_of_each_sample(design: str) -> None:
    """Values and gradients are those of one set after the other."""
    torch.manual_seed(0)
    gpo = GPO(position_dim=8, hidden_dim=5, **DESIGNS[design]).double()
    features = torch.randn(12, 5, DIM, dtype=torch.float64)
    mask = torch.arange(5) < torch.randint(1, 6, (12, 1))
    results = []
    one_by_one = [gpo(features[i : i + 1], mask[i : i + 1]).embeddings for i in range(12)]
    for found in (gpo(features, mask).embeddings, torch.cat(one_by_one)):
        gpo.zero_grad()
        found.square().sum().backward()
        results.append([found.detach(), *(parameter.grad for parameter in gpo.parameters())])
    torch.testing.assert_close(*results)


def test_its_table_is_kept_in_evaluation_until_a_parameter_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpo = GPO().eval()
    calls = counted_calls(monkeypatch)
    features, mask = sets(torch.float32)
    with torch.no_grad():
        first = gpo(features, mask).embeddings
        gpo(features), gpo(features[:, :3])
        assert len(calls) == 1
        gpo.linear.weight.mul_(-3.0)
        changed = gpo(features, mask).embeddings
        assert len(calls) == 2 and not torch.allclose(first, changed)
        gpo.load_state_dict(GPO().state_dict())
        gpo(features, mask)
        assert len(calls) == 3
        gpo.linear.weight.data += 1.0  # raises no version
        gpo(features, mask)
        assert len(calls) == 4
        long = gpo(torch.randn(1, 100, DIM)).embeddings  # longer than the table: it grows
        assert long.isfinite().all() and len(calls) == 5
    assert gpo(features.requires_grad_(), mask).embeddings.requires_grad  # with gradients, no cached table
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_dim": 3}, "position_dim must be even and positive, got 3"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        ({"decoder": "lstm"}, "decoder must be one of 'gru' or 'transformer' or 'mlp', got 'lstm'"),
        ({"per_dimension": True}, "in_dim, the width of the features, is needed"),
        ({"conditioned": True}, "in_dim, the width of the features, is needed"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPO(**arguments)
