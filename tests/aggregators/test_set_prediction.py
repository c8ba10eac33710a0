import math
from typing import Any

import pytest
import torch
from aggregator_cases import DIM, make, sets, valid
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vse.aggregators import MeanPool, SetPrediction
from vse.aggregators.set_prediction import SlotBlock


def slow_self_attention(block: SlotBlock, slots: Tensor) -> Tensor:
    """What the slots read of each other, head by head."""
    assert block.self_attention is not None and block.self_norm is not None
    projected = [block.self_norm(slots) @ w.T for w in block.self_attention.to_qkv.weight.chunk(3)]
    read = []
    for q, k, v in zip(*(x.chunk(block.heads, 1) for x in projected), strict=True):
        read.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), 1) @ v)
    return block.self_attention.out(torch.cat(read, 1))


def slow_set_prediction(net: SetPrediction, elements: Tensor, context: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Set prediction of one set, with keys and values, head by head: embeddings and attention."""
    slots: Tensor = net.slots
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
        if block.self_attention is not None:
            slots = slots + slow_self_attention(block, slots)
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
@pytest.mark.parametrize("self_attention", [True, False])
def test_it_equals_its_definition(share_weights: bool, position: Any, attention: Any, self_attention: bool) -> None:
    torch.manual_seed(0)
    options = {"position": position, "share_weights": share_weights, "attention": attention}
    options["self_attention"] = self_attention
    net = SetPrediction(DIM, 5, num_embeddings=3, depth=3, heads=2, head_dim=4, ff_mult=2, **options).double()
    assert len(net.blocks) == (1 if share_weights else 3)
    features, mask = sets()
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


def test_context_widths() -> None:
    features, mask = sets()
    narrow = SetPrediction(DIM, 5, 2).double()
    with pytest.raises(ValueError, match=r"the masked mean, which .* must be \(4, 5\), got shape \(4, 6\)"):
        narrow(features, mask)
    with pytest.raises(ValueError, match=r"context must be \(4, 5\), got shape \(4, 6\)"):
        narrow(features, mask, torch.randn(4, DIM))
    mean = MeanPool()(features, mask).embeddings[:, 0]
    for net in (make("set_prediction"), make("set_prediction, projected context")):
        torch.testing.assert_close(net(features, mask).embeddings, net(features, mask, mean).embeddings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"position": "sin"}, "position must be one of .*, got 'sin'"),
        ({"attention": "keys"}, "attention must be one of .*, got 'keys'"),
        ({"position": "sine_2d"}, "position 'sine_2d', got position 'sine_2d' and grid None"),
        ({"grid": (2, 3)}, r"position 'sine_2d', got position 'none' and grid \(2, 3\)"),
        ({"position": "sine_2d", "grid": (0, 3)}, "grid must be two sizes"),
        ({"position": "sine_2d", "grid": (2, 3), "in_dim": 5}, "in_dim must be even .*, got 5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("set_prediction", **arguments)


@pytest.mark.parametrize("position", ["none", "sine"])
def test_mixed_precision_converts_the_inputs_once(position: Any) -> None:
    """However many rounds read them: once for the keys and once for the values."""
    features, context = torch.randn(3, 7, 8), torch.randn(3, 6)
    sizes: list[int] = []

    class Conversions(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operation.name() == "aten::_to_copy":
                sizes.append(args[0].numel())
            return operation(*args, **(kwargs or {}))

    for depth in (1, 4):
        sizes.clear()
        slots = SetPrediction(8, 6, 2, depth, heads=2, head_dim=5, position=position)
        with Conversions(), torch.autocast("cpu", torch.bfloat16):
            slots(features, context=context)
        assert sizes.count(features.numel()) == 2
