"""The contract that every aggregator keeps, and what is special about each."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vse.aggregators import (
    AGGREGATORS,
    GPO,
    AdaptivePool,
    GlobalContext,
    KMaxPool,
    MaxPool,
    MeanPool,
    PIENet,
    SetPrediction,
)
from vse.aggregators.gpo import position_codes
from vse.aggregators.set_prediction import SlotBlock

DIM = 6
NEEDED = {"k": 3, "dim": DIM, "in_dim": DIM, "out_dim": DIM, "num_embeddings": 2}  # by argument name
VARIANTS: dict[str, dict[str, Any]] = {  # "name, what is special": arguments
    "pie_net, projected context": {"out_dim": 5, "project_context": True},
    "set_prediction, projected context": {"out_dim": 5, "project_context": True, "head_dim": 8},
    "set_prediction, inputs": {"attention": "inputs", "head_dim": 8},
    "set_prediction, own blocks": {"share_weights": False, "depth": 2, "heads": 2, "head_dim": 8},
    "set_prediction, sine": {"position": "sine", "head_dim": 8},
}
POSITIONAL = {"set_prediction, sine"}  # codes its elements' positions: prefix masks, not permutation invariant

every = pytest.mark.parametrize("name", [*AGGREGATORS, *VARIANTS])


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    aggregator = AGGREGATORS[name.split(",")[0]]
    parameters = inspect.signature(aggregator).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return aggregator(**{**{name: NEEDED[name] for name in needed}, **VARIANTS.get(name, {})}).to(dtype)


def sets(name: str = "", dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Four sets of 7 places with 7, 3, 1 and 4 real elements, in any places or the first ones, as the name needs."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 7, DIM, generator=generator, dtype=dtype)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    for row, count in enumerate((7, 3, 1, 4)):
        places = torch.arange(7) if name in POSITIONAL else torch.randperm(7, generator=generator)
        mask[row, places[:count]] = True
    if dtype == torch.float64:
        return features, mask
    return features.to(dtype), mask


@every
def test_shapes(name: str) -> None:
    features, mask = sets(name)
    result = make(name)(features, mask)
    assert result.embeddings.dim() == 3 and result.embeddings.shape[0] == 4
    assert result.embeddings.dtype == torch.float64
    if result.attention is not None:
        assert result.attention.shape == (*result.embeddings.shape[:2], 7)
        assert (result.attention[~mask.unsqueeze(1).expand_as(result.attention)] == 0).all()
    if result.residual is not None:
        assert result.residual.shape == result.embeddings.shape


@every
@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grad", [True, False])
def test_garbage_in_masked_places_changes_nothing(name: str, garbage: float, grad: bool) -> None:
    aggregator = make(name).train(grad)
    features, mask = sets(name)
    with torch.set_grad_enabled(grad):
        clean = aggregator(features, mask).embeddings
        dirty = aggregator(features.masked_fill(~mask.unsqueeze(-1), garbage), mask).embeddings
    assert torch.equal(clean, dirty)


@every
@pytest.mark.parametrize("grad", [True, False])
def test_alone_equals_in_a_batch(name: str, grad: bool) -> None:
    aggregator = make(name).eval()
    features, mask = sets(name)
    with torch.set_grad_enabled(grad):
        together = aggregator(features, mask).embeddings
        for row in range(4):
            alone = aggregator(features[row : row + 1, mask[row]]).embeddings
            torch.testing.assert_close(alone[0], together[row])


@every
def test_more_padding_changes_nothing(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets(name)
    prefix = mask.sort(dim=1, descending=True, stable=True)
    moved = features.gather(1, prefix.indices.unsqueeze(-1).expand_as(features))
    longer = torch.cat([moved, torch.full((4, 5, DIM), torch.nan, dtype=moved.dtype)], 1)
    longer_mask = torch.cat([prefix.values, torch.zeros(4, 5, dtype=torch.bool)], 1)
    torch.testing.assert_close(aggregator(longer, longer_mask).embeddings, aggregator(moved, prefix.values).embeddings)


@every
def test_permutation_invariance(name: str) -> None:
    if name in POSITIONAL:
        pytest.skip("codes positions")
    aggregator = make(name).eval()
    features, mask = sets(name)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    torch.testing.assert_close(
        aggregator(features[:, order], mask[:, order]).embeddings, aggregator(features, mask).embeddings
    )


@every
def test_all_real_mask_equals_none(name: str) -> None:
    features, mask = sets(name)
    aggregator = make(name).eval()
    full = aggregator(features, torch.ones_like(mask)).embeddings
    torch.testing.assert_close(full, aggregator(features).embeddings)


@every
def test_gradients(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets(name)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: aggregator(x, mask).embeddings, (features,))
    aggregator(features, mask).embeddings.square().sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert (features.grad[~mask] == 0).all()
    assert (features.grad[mask].abs().sum(-1) > 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aggregator.parameters())


@every
def test_nan_in_masked_places_does_not_reach_a_gradient(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets(name)
    features[~mask] = torch.nan
    features.requires_grad_()
    aggregator(features, mask).embeddings.square().sum().backward()
    assert features.grad is not None and (features.grad[~mask] == 0).all() and features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aggregator.parameters())


@every
@pytest.mark.parametrize("how", ["module", "autocast"])
def test_bfloat16(name: str, how: str) -> None:
    features, mask = sets(name, dtype=torch.float32)
    features = features.bfloat16()
    expected = make(name, torch.float32).eval()(features.float(), mask).embeddings
    if how == "module":
        result = make(name, torch.bfloat16).eval()(features, mask).embeddings
    else:
        with torch.autocast("cpu", torch.bfloat16):
            result = make(name, torch.float32).eval()(features, mask).embeddings
    torch.testing.assert_close(result.float(), expected, atol=0.05, rtol=0.05)


@every
def test_input_is_left_untouched(name: str) -> None:
    features, mask = sets(name)
    features_before, mask_before = features.clone(), mask.clone()
    make(name)(features, mask)
    assert torch.equal(features, features_before) and torch.equal(mask, mask_before)


@every
def test_single_element(name: str) -> None:
    features, _ = sets(name)
    assert make(name).eval()(features[:, :1]).embeddings.isfinite().all()


@every
def test_bad_sets(name: str) -> None:
    aggregator = make(name)
    features, mask = sets(name)
    empty = mask.clone()
    empty[2] = False
    with pytest.raises(ValueError, match="sample 2 of the batch has no element"):
        aggregator(features, empty)
    with pytest.raises(ValueError, match=r"features must be a non-empty \(B, N, D\) tensor, got shape \(4, 6\)"):
        aggregator(features[:, 0])
    with pytest.raises(ValueError, match=r"features must be a non-empty \(B, N, D\) tensor, got shape \(4, 0, 6\)"):
        aggregator(features[:, :0])
    with pytest.raises(ValueError, match=r"mask must have shape \(4, 7\) like the set it masks, got \(4, 6\)"):
        aggregator(features, mask[:, :6])
    with pytest.raises(ValueError, match="mask must be bool .*, got torch.int64"):
        aggregator(features, mask.long())


def valid(features: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[real] for row, real in zip(features, mask, strict=True)]


def test_poolings_equal_their_definitions() -> None:
    features, mask = sets()
    means = torch.stack([x.sum(0) / len(x) for x in valid(features, mask)])
    torch.testing.assert_close(MeanPool()(features, mask).embeddings[:, 0], means)
    maxima = torch.stack([torch.stack([column.max() for column in x.T]) for x in valid(features, mask)])
    torch.testing.assert_close(MaxPool()(features, mask).embeddings[:, 0], maxima)
    largest = [torch.stack([column.sort().values[-3:].mean() for column in x.T]) for x in valid(features, mask)]
    torch.testing.assert_close(KMaxPool(3)(features, mask).embeddings[:, 0], torch.stack(largest))


def test_k_max_limits() -> None:
    features, mask = sets()
    torch.testing.assert_close(KMaxPool(1)(features, mask).embeddings, MaxPool()(features, mask).embeddings)
    torch.testing.assert_close(KMaxPool(99)(features, mask).embeddings, MeanPool()(features, mask).embeddings)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        KMaxPool(0)


def test_global_context() -> None:
    features, mask = sets()
    context = torch.randn(4, 9, dtype=torch.float64)
    assert torch.equal(GlobalContext()(features, mask, context).embeddings[:, 0], context)
    mean = MeanPool()(features, mask).embeddings
    assert torch.equal(GlobalContext()(features, mask).embeddings, mean)
    with pytest.raises(ValueError, match=r"context must be \(4, C\), got shape \(3, 9\)"):
        GlobalContext()(features, mask, context[:3])


def slow_gpo(gpo: GPO, elements: Tensor) -> Tensor:
    """GPO of one set, straight from the paper: one sequence, one loop over dimensions."""
    count = len(elements)
    states = gpo.gru(position_codes(count, gpo.position_dim).to(elements).unsqueeze(0))[0][0]
    half = states.shape[1] // 2
    scores = gpo.linear((states[:, :half] + states[:, half:]) / 2)[:, 0]
    theta = torch.softmax(scores / 0.1, 0)
    return torch.stack([(theta * column.sort(descending=True).values).sum() for column in elements.T])


def test_gpo_equals_its_definition() -> None:
    gpo = GPO().double()
    features, mask = sets()
    expected = torch.stack([slow_gpo(gpo, x) for x in valid(features, mask)])
    torch.testing.assert_close(gpo(features, mask).embeddings[:, 0], expected)
    with torch.no_grad():
        torch.testing.assert_close(gpo.eval()(features, mask).embeddings[:, 0], expected)


def test_gpo_position_codes() -> None:
    codes = position_codes(5, 4)
    for k in range(5):
        expected = [f(k / 10000 ** (i / 4)) for i in (0, 2) for f in (math.sin, math.cos)]
        torch.testing.assert_close(codes[k], torch.tensor(expected))


def test_gpo_computes_its_weights_once_per_distinct_count() -> None:
    gpo = GPO()
    rows = []
    gpo.gru.register_forward_pre_hook(lambda _, inputs: rows.append(int(inputs[0].batch_sizes[0])))
    features = torch.randn(64, 5, DIM)
    mask = torch.arange(5) < torch.tensor([2, 5]).repeat(32)[:, None]
    gpo(features, mask)
    gpo(features)
    assert rows == [2, 1]


def test_gpo_table_is_kept_in_evaluation_until_a_parameter_changes() -> None:
    gpo = GPO().eval()
    calls = []
    gpo.gru.register_forward_pre_hook(lambda *_: calls.append(1))
    features, mask = sets(dtype=torch.float32)
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


def test_gpo_constructor() -> None:
    with pytest.raises(ValueError, match="position_dim must be even and positive, got 3"):
        GPO(position_dim=3)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        GPO(hidden_dim=0)


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


def test_adaptive_pooling_equals_its_definition() -> None:
    pool = make("adaptive")
    assert isinstance(pool, AdaptivePool)
    features, mask = sets()
    expected = torch.stack([slow_adaptive(pool, x) for x in valid(features, mask)])
    torch.testing.assert_close(pool(features, mask).embeddings[:, 0], expected)


def slow_pie_net(net: PIENet, elements: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PIE-Net of one set: embeddings, attention, residual, one map at a time."""
    rows = []
    for k in range(net.maps.out_features):
        scores = torch.stack([net.maps.weight[k] @ torch.tanh(net.hidden.weight @ x) for x in elements])
        alpha = scores.exp() / scores.exp().sum()
        residual = torch.sigmoid(net.fc(sum(a * x for a, x in zip(alpha, elements, strict=True))))
        rows.append((net.norm(context + residual), alpha, residual))
    embeddings, attention, residuals = (torch.stack(part) for part in zip(*rows, strict=True))
    return embeddings, attention, residuals


@pytest.mark.parametrize("num_embeddings", [1, 3])
def test_pie_net_equals_its_definition(num_embeddings: int) -> None:
    torch.manual_seed(0)
    net = PIENet(DIM, 5, num_embeddings, hidden_dim=4).double()
    features, mask = sets()
    context = torch.randn(4, 5, dtype=torch.float64)
    result = net(features, mask, context)
    for row, elements in enumerate(valid(features, mask)):
        embeddings, attention, residual = slow_pie_net(net, elements, context[row])
        torch.testing.assert_close(result.embeddings[row], embeddings)
        torch.testing.assert_close(result.attention[row][:, mask[row]], attention)
        torch.testing.assert_close(result.residual[row], residual)


def slow_set_prediction(net: SetPrediction, elements: Tensor, context: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Set prediction of one set, with keys and values, head by head: embeddings and attention."""
    slots = net.slots
    count = len(elements)
    for layer in range(depth):
        block = net.blocks[layer % len(net.blocks)]
        assert isinstance(block, SlotBlock)
        inputs = block.input_norm(elements)
        keyed = inputs
        if net.position == "sine":
            codes = torch.zeros_like(inputs)
            for p in range(count):
                for i in range(DIM):
                    angle = 2 * math.pi * (p + 1) / (count + 1e-6) / 10000 ** (2 * (i // 2) / DIM)
                    codes[p, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
            keyed = inputs + codes
        queries, keys, values = block.query(block.norm(slots)), block.key(keyed), block.value(inputs)
        read, maps = [], []
        for q, k, v in zip(queries.chunk(block.heads, 1), keys.chunk(block.heads, 1), values.chunk(block.heads, 1)):  # noqa: B905
            logits = q @ k.T / math.sqrt(q.shape[1])
            if block.attention == "slots":
                weights = torch.softmax(logits, 0)
                weights = weights / (weights.sum(1, keepdim=True) + 1e-7)
            else:
                weights = torch.softmax(logits, 1)
            read.append(weights @ v)
            maps.append(weights)
        slots = slots + block.out(torch.cat(read, 1))
        slots = slots + block.ff(block.ff_norm(slots))
    return net.context_norm(context) + net.slot_norm(slots), torch.stack(maps).mean(0)


@pytest.mark.parametrize("share_weights", [True, False])
@pytest.mark.parametrize("position", ["none", "sine"])
@pytest.mark.parametrize("attention", ["slots", "inputs"])
def test_set_prediction_equals_its_definition(share_weights: bool, position: Any, attention: Any) -> None:
    torch.manual_seed(0)
    options = {"position": position, "share_weights": share_weights, "attention": attention}
    net = SetPrediction(DIM, 5, num_embeddings=3, depth=3, heads=2, head_dim=4, ff_mult=2, **options).double()
    assert len(net.blocks) == (1 if share_weights else 3)
    features, mask = sets("set_prediction, sine" if position == "sine" else "")
    context = torch.randn(4, 5, dtype=torch.float64)
    result = net(features, mask, context)
    for row, elements in enumerate(valid(features, mask)):
        embeddings, attention = slow_set_prediction(net, elements, context[row], depth=3)
        torch.testing.assert_close(result.embeddings[row], embeddings, atol=1e-6, rtol=1e-6)  # codes are float32
        torch.testing.assert_close(result.attention[row][:, mask[row]], attention, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(result.residual, result.embeddings - net.context_norm(context).unsqueeze(1))


@pytest.mark.parametrize(("share_weights", "expected"), [(True, 1), (False, 3)])
def test_a_shared_block_does_its_work_on_the_inputs_once(
    share_weights: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = SetPrediction(DIM, DIM, depth=3, heads=1, head_dim=4, share_weights=share_weights)
    calls, norms = [], []
    products = SlotBlock.products

    def counted(block: SlotBlock) -> tuple[Tensor, Tensor]:
        calls.append(block)
        return products(block)

    monkeypatch.setattr(SlotBlock, "products", counted)
    for block in net.blocks:
        assert isinstance(block, SlotBlock)
        block.input_norm.register_forward_pre_hook(lambda *_: norms.append(1))
    net(torch.randn(2, 5, DIM))
    assert len(calls) == len(norms) == expected


def test_attention_and_feed_forward_have_dropout() -> None:
    for silenced in ("out", "ff"):
        net = SetPrediction(DIM, DIM, depth=1, heads=1, head_dim=4, dropout=0.5)
        block = net.blocks[0]
        assert isinstance(block, SlotBlock)
        layer = block.out if silenced == "out" else block.ff[3]
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        features = torch.randn(2, 5, DIM)
        assert not torch.equal(net(features).embeddings, net(features).embeddings)


def test_grid_positions() -> None:
    """Row codes in the first half of the channels, column codes in the second; dropped cells change nothing."""
    net = SetPrediction(8, 5, depth=1, heads=1, head_dim=4, position="sine_2d", grid=(2, 3)).double()
    codes = net.position_codes(torch.zeros(1, 6, 8), None)
    assert codes is not None
    for row in range(2):
        for column in range(3):
            expected = []
            for place, size in ((row + 1, 2), (column + 1, 3)):
                for i in range(4):
                    angle = 2 * math.pi * place / (size + 1e-6) / 10000 ** (2 * (i // 2) / 4)
                    expected.append(math.sin(angle) if i % 2 == 0 else math.cos(angle))
            torch.testing.assert_close(codes[0, row * 3 + column], torch.tensor(expected))
    cells, mask = torch.randn(1, 6, 8, dtype=torch.float64), torch.tensor([[True, False, True, True, False, True]])
    context = torch.randn(1, 5, dtype=torch.float64)
    clean = net(cells, mask, context).embeddings
    assert torch.equal(net(cells.masked_fill(~mask.unsqueeze(-1), torch.nan), mask, context).embeddings, clean)
    with pytest.raises(ValueError, match="grid is 2 x 3 = 6 cells, but there are 5 features"):
        net(cells[:, :5], context=context)


@pytest.mark.parametrize("name", ["pie_net", "set_prediction"])
def test_attention_sums_to_one(name: str) -> None:
    features, mask = sets()
    attention = make(name)(features, mask).attention
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pie_net", "set_prediction"])
def test_context_widths(name: str) -> None:
    aggregator = AGGREGATORS[name]
    features, mask = sets(dtype=torch.float32)
    narrow = aggregator(in_dim=DIM, out_dim=5, num_embeddings=2)
    with pytest.raises(ValueError, match=r"without a context the masked mean .* must be \(4, 5\), got shape \(4, 6\)"):
        narrow(features, mask)
    with pytest.raises(ValueError, match=r"context must be \(4, 5\), got shape \(4, 6\)"):
        narrow(features, mask, torch.randn(4, DIM))
    with pytest.raises(ValueError, match="features must be 6 wide, got 4"):
        narrow(features[..., :4], mask)
    mean = MeanPool()(features, mask).embeddings[:, 0]
    for net in (aggregator(in_dim=DIM, out_dim=DIM, num_embeddings=2), make(f"{name}, projected context").float()):
        torch.testing.assert_close(net(features, mask).embeddings, net(features, mask, mean).embeddings)


@pytest.mark.parametrize("name", ["pie_net", "set_prediction"])
def test_dropout_is_for_training(name: str) -> None:
    torch.manual_seed(0)
    net = AGGREGATORS[name](in_dim=DIM, out_dim=DIM, num_embeddings=2, dropout=0.5)
    features, _ = sets(dtype=torch.float32)
    assert not torch.equal(net(features).embeddings, net(features).embeddings)
    net.eval()
    assert torch.equal(net(features).embeddings, net(features).embeddings)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adaptive", {"dim": 0}, "dim must be at least 1, got 0"),
        ("pie_net", {"num_embeddings": 0}, "num_embeddings must be at least 1, got 0"),
        ("pie_net", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ("set_prediction", {"heads": 0}, "heads must be at least 1, got 0"),
        ("set_prediction", {"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ("set_prediction", {"position": "sin"}, "position must be one of .*, got 'sin'"),
        ("set_prediction", {"attention": "keys"}, "attention must be one of .*, got 'keys'"),
        ("set_prediction", {"position": "sine_2d"}, "position 'sine_2d', got position 'sine_2d' and grid None"),
        ("set_prediction", {"grid": (2, 3)}, r"position 'sine_2d', got position 'none' and grid \(2, 3\)"),
        ("set_prediction", {"position": "sine_2d", "grid": (0, 3)}, "grid must be two sizes"),
        ("set_prediction", {"position": "sine_2d", "grid": (2, 3), "in_dim": 5}, "in_dim must be even .*, got 5"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    needed = {"adaptive": {}, "pie_net": NEEDED, "set_prediction": NEEDED}[name]
    wanted = inspect.signature(AGGREGATORS[name]).parameters
    with pytest.raises(ValueError, match=message):
        AGGREGATORS[name](**{**{k: v for k, v in needed.items() if k in wanted}, **arguments})


def test_positions_are_counted_over_real_elements() -> None:
    """Dropped elements leave no gap: a set with holes equals the same set closed up."""
    features, mask = sets()
    net = make("set_prediction, sine").eval()
    together = net(features, mask).embeddings
    for row, elements in enumerate(valid(features, mask)):
        torch.testing.assert_close(net(elements.unsqueeze(0)).embeddings[0], together[row])
