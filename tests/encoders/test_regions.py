"""The encoder of region features."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributions import Start, check_module, linear, xavier
from torch import Tensor, nn

from vse.encoders import Regions
from vse.encoders.regions import drop_elements


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Three sets of up to four regions, 5 wide, with holes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.5
    mask[:, 1] = True
    assert not mask.all()
    return inputs, mask


@pytest.mark.parametrize("mlp", ["input", "projection", None])
@pytest.mark.parametrize("features", ["projected", "raw"])
@pytest.mark.parametrize("context", ["max", "mean", None])
def test_choices_equal_their_definitions(mlp: Any, features: Any, context: Any, batch: tuple[Tensor, Tensor]) -> None:
    """Sample by sample, with garbage in the padding."""
    torch.manual_seed(0)
    inputs, mask = batch
    encoder = Regions(5, 8, mlp, features, context).double().eval()
    result = encoder(inputs.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert result.features.shape == (3, 4, encoder.dim) and torch.equal(result.mask, mask)
    assert (result.context is None) == (context is None)
    for row in range(3):
        x = inputs[row, mask[row]]
        if features == "raw":
            assert torch.equal(result.features[row, mask[row]], x)
            if context is None:
                continue
        v = encoder.fc(x)
        if mlp is not None:
            hidden = encoder.hidden(x if mlp == "input" else v)
            v = v + encoder.out(nn.BatchNorm1d.forward(encoder.norm, hidden).relu())
        if features == "projected":
            torch.testing.assert_close(result.features[row, mask[row]], v)
        if context is not None:
            torch.testing.assert_close(result.context[row], v.amax(0) if context == "max" else v.mean(0))


@pytest.mark.parametrize("mlp", ["input", "projection", None])
@pytest.mark.parametrize("features", ["projected", "raw"])
@pytest.mark.parametrize("context", ["max", "mean", None])
def test_no_parameter_is_unused(mlp: Any, features: Any, context: Any, batch: tuple[Tensor, Tensor]) -> None:
    encoder = Regions(5, 8, mlp, features, context).double().train()
    assert bool(list(encoder.parameters())) == (features == "projected" or context is not None)
    result = encoder(*batch)
    total = sum(part.sum() for part in (result.features, result.context) if part is not None and part.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_raw_regions_without_a_context_are_the_inputs(batch: tuple[Tensor, Tensor]) -> None:
    """An ablation: nothing is projected, so there is nothing to learn."""
    inputs, mask = batch
    encoder = Regions(5, 8, features="raw")
    assert (encoder.dim, encoder.context_dim) == (5, None) and not encoder.state_dict()
    result = encoder.train()(inputs.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert result.context is None and torch.equal(result.features[mask], inputs[mask])
    assert not result.features[~mask].any()
    dropped = Regions(5, 8, features="raw", drop=0.5).train()(torch.randn(50, 8, 5)).mask
    assert dropped is not None and 0.4 < dropped.float().mean() < 0.6


def test_padding_reaches_neither_gradients_nor_statistics(batch: tuple[Tensor, Tensor]) -> None:
    inputs, mask = batch
    states = []
    for garbage in (0.0, torch.nan):
        torch.manual_seed(1)
        encoder = Regions(in_dim=5, dim=8).double().train()
        out = encoder(inputs.masked_fill(~mask.unsqueeze(-1), garbage), mask)
        out.features[mask].square().sum().backward()
        states.append([*(p.grad for p in encoder.parameters()), encoder.norm.running_mean, encoder.norm.running_var])
    for clean, dirty in zip(*states, strict=True):
        assert dirty is not None and torch.equal(clean, dirty)


def slow_regions(encoder: Regions, inputs: Tensor, mask: Tensor, norm: nn.BatchNorm1d) -> list[Tensor]:
    """The features of the real regions, from one flat list of them."""
    flat = torch.stack([inputs[row, place] for row, place in mask.nonzero().tolist()])
    projected = encoder.fc(flat)
    read = flat if encoder.mlp == "input" else projected
    features = projected + encoder.out(norm(encoder.hidden(read)).relu())
    return list(features.split([int(count) for count in mask.sum(1)]))


@pytest.mark.parametrize("mlp", ["input", "projection"])
def test_padding_does_not_enter_the_batch_statistics(mlp: str) -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8, mlp=mlp).double().train()  # type: ignore[arg-type]
    norm = nn.BatchNorm1d(4).double().train()
    inputs, mask = torch.randn(3, 6, 5, dtype=torch.float64) + 2, torch.rand(3, 6) < 0.5
    mask[:, 1] = True
    assert not mask.all()
    result = encoder(inputs, mask)
    for row, expected in enumerate(slow_regions(encoder, inputs, mask, norm)):
        torch.testing.assert_close(result.features[row, mask[row]], expected)
    torch.testing.assert_close(encoder.norm.running_mean, norm.running_mean)
    torch.testing.assert_close(encoder.norm.running_var, norm.running_var)


def test_dropped_regions_do_not_enter_the_batch_statistics() -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8, drop=0.5).double().train()
    norm = nn.BatchNorm1d(4).double().train()
    inputs = torch.randn(3, 6, 5, dtype=torch.float64) + 2
    result = encoder(inputs)
    assert result.mask is not None and not result.mask.all()
    for row, expected in enumerate(slow_regions(encoder, inputs, result.mask, norm)):
        torch.testing.assert_close(result.features[row, result.mask[row]], expected)
    torch.testing.assert_close(encoder.norm.running_mean, norm.running_mean)


FC: dict[str, dict[str, Start]] = {
    "xavier": {"fc.weight": xavier(400, 300), "fc.bias": ("constant", 0.0)},
    "torch": {"fc.weight": linear(400), "fc.bias": linear(400)},
}


def mlp_starts(reads: int) -> dict[str, Start]:
    return {
        **{"hidden.weight": linear(reads), "hidden.bias": linear(reads)},
        **{"norm.weight": ("constant", 1.0), "norm.bias": ("constant", 0.0)},
        **{"out.weight": linear(150), "out.bias": linear(150)},
    }


@pytest.mark.parametrize("init", FC)
@pytest.mark.parametrize(("mlp", "reads"), [("input", 400), ("projection", 300), (None, 0)])
def test_initialisation(init: Any, mlp: Any, reads: int) -> None:
    """VSE∞ and VSE-2AD give fc Xavier's bounds; in DivE and PVSE everything starts as torch has it."""
    torch.manual_seed(0)
    check_module(Regions(400, 300, mlp, init=init), {**FC[init], **(mlp_starts(reads) if mlp else {})})


def test_the_default_initialisation_is_xaviers() -> None:
    torch.manual_seed(0)
    check_module(Regions(400, 300), {**FC["xavier"], **mlp_starts(400)})


def test_the_two_initialisations_differ() -> None:
    """Else the tests of them could not fail."""
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="fc.weight is not"):
        check_module(Regions(400, 300, None, init="torch"), FC["xavier"])
    with pytest.raises(AssertionError, match="fc.weight is not"):
        check_module(Regions(400, 300, None, init="xavier"), FC["torch"])


def test_regions_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8, drop=0.3)
    inputs = torch.randn(500, 20, 5)
    result = encoder.train()(inputs)
    assert result.mask is not None and 0.68 < result.mask.float().mean() < 0.72
    assert encoder.eval()(inputs).mask is None


def test_dropping_keeps_real_elements_and_at_least_one() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(1000, 6, dtype=torch.bool)
    mask[:, [1, 4]] = True
    kept = drop_elements(mask.shape, mask, 0.9, mask.device)
    assert not (kept & ~mask).any() and kept.any(1).all()
    assert 0.15 < (kept.sum(1) == 2).float().mean() * 20 < 0.35  # both stay with probability 0.01


def test_a_probability_for_each_sample() -> None:
    torch.manual_seed(0)
    probabilities = torch.tensor([[0.0], [0.25], [0.75]])
    kept = drop_elements(torch.Size([3, 4000]), None, probabilities, probabilities.device).float().mean(1)
    assert kept[0] == 1 and (kept - (1 - probabilities[:, 0])).abs().max() < 0.04


def test_dropout_acts_where_the_papers_have_it() -> None:
    torch.manual_seed(0)
    regions = torch.ones(2, 3, 5)
    raw = Regions(5, 64, None, "raw", "mean", dropout=0.5)(regions)
    assert torch.equal(raw.features, regions)
    assert raw.context is not None and (raw.context == 0).float().mean() > 0.3
    projected = Regions(5, 64, None, "projected", "mean", dropout=0.5)(regions)
    assert projected.context is not None and (projected.features == 0).float().mean() > 0.3
    torch.testing.assert_close(projected.context, projected.features.mean(1))


def test_the_mean_of_raw_regions_is_projected_once() -> None:
    """PVSE's context, written as N projections; the mask and the gradient of fc count."""
    torch.manual_seed(0)
    encoder = Regions(5, 8, None, "raw", "mean").double()
    inputs, mask = torch.randn(2, 4, 5, dtype=torch.float64), torch.tensor([[True] * 4, [True, False, True, False]])
    context = encoder(inputs, mask).context
    slow = torch.stack([encoder.fc(x[m]).mean(0) for x, m in zip(inputs, mask, strict=True)])
    torch.testing.assert_close(context, slow)
    found, expected = (torch.autograd.grad(c.square().sum(), encoder.fc.weight)[0] for c in (context, slow))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regions(5, 8, "both"), "mlp must be one of 'input' or 'projection' or None, got 'both'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, features="fc"), "features must be one of .*, got 'fc'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, context="last"), "context must be one of .*, got 'last'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, init="normal"), "init must be one of 'xavier' or 'torch', got 'normal'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Regions(5, 8, drop=1.0), r"drop must be in \[0, 1\), got 1.0"),
        (lambda: Regions(5, 8, features="raw", dropout=0.1), "raw features without a context, got 0.1"),
        (lambda: Regions(5, 1), "dim must be at least 2, got 1"),
        (lambda: Regions(0, 4), "in_dim must be at least 1, got 0"),
        (lambda: Regions(5, 8)(torch.randn(2, 3, 4)), "features must be 5 wide, got 4"),
        (lambda: Regions(5, 8)(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)), "sample 0 .* no element"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_regions_attend_to_each_other(batch: tuple[Tensor, Tensor]) -> None:
    """V + MHA(LayerNorm(V)), head by head and region by region, over the real regions alone."""
    torch.manual_seed(0)
    inputs, mask = batch
    encoder = Regions(5, 8, None, context="max", self_attention=True, heads=2).double()
    attention = encoder.attention
    assert attention is not None
    nn.init.normal_(attention.in_proj_bias)
    for setting in (torch.enable_grad(), torch.inference_mode()):
        with setting:
            found = encoder.eval()(inputs.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
            for row in range(3):
                v = encoder.fc(inputs[row, mask[row]])
                q, k, x = torch.nn.functional.linear(
                    encoder.attention_norm(v), attention.in_proj_weight, attention.in_proj_bias
                ).chunk(3, dim=1)
                heads = []
                for head in (slice(0, 4), slice(4, 8)):
                    weights = torch.softmax(q[:, head] @ k[:, head].T / 2, dim=1)
                    heads.append(weights @ x[:, head])
                expected = v + attention.out_proj(torch.cat(heads, 1))
                torch.testing.assert_close(found.features[row, mask[row]], expected)
                torch.testing.assert_close(found.context[row], expected.amax(0))
    full = encoder(inputs, torch.ones_like(mask))
    torch.testing.assert_close(encoder(inputs).features, full.features)


def test_nan_in_masked_regions_reaches_no_gradient_of_the_attention(batch: tuple[Tensor, Tensor]) -> None:
    inputs, mask = batch
    encoder = Regions(5, 8, self_attention=True).double()
    encoder(inputs.masked_fill(~mask.unsqueeze(-1), torch.nan), mask).features[mask].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("features", ["projected", "raw"])
def test_regions_can_be_dropped_after_the_encoding(features: Any) -> None:
    """BatchNorm and the layers see all regions; the context and whoever reads the mask only those that are kept."""
    torch.manual_seed(0)
    inputs = torch.randn(6, 5, 7)
    whole = Regions(7, 8, features=features, context="mean").train()
    dropping = Regions(7, 8, features=features, context="mean", drop=0.5, drop_after=True).train()
    dropping.load_state_dict(whole.state_dict())
    expected, found = whole(inputs), dropping(inputs)
    assert expected.mask is None and found.mask is not None and not found.mask.all() and found.mask.any(1).all()
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(dropping.norm.running_mean, whole.norm.running_mean)
    if features == "projected":
        kept = [row[own].mean(0) for row, own in zip(expected.features, found.mask, strict=True)]
        torch.testing.assert_close(found.context, torch.stack(kept))
    assert dropping.eval()(inputs).mask is None


def test_bad_self_attention() -> None:
    with pytest.raises(ValueError, match="self_attention needs projected features, got raw ones"):
        Regions(5, 8, features="raw", context="mean", self_attention=True)
    with pytest.raises(ValueError, match="heads must divide the width of the features, 8, got 3"):
        Regions(5, 8, self_attention=True, heads=3)
    Regions(5, 8, heads=3)
