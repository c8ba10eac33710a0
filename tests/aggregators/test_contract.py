"""The contract that every aggregator keeps, in every setting that matters."""

import pytest
import torch
from aggregator_cases import ANY_WIDTH, DIM, EVERY, KEEPS_ELEMENTS, POSITIONAL, embed, make, sets, valid
from torch import nn

from vse.aggregators import AGGREGATORS, AggregatorTraits, traits_of

every = pytest.mark.parametrize("name", EVERY)


@every
def test_shapes(name: str) -> None:
    features, mask = sets()
    result = make(name)(features, mask)
    assert result.embeddings.dim() == 3 and result.embeddings.shape[0] == 4
    assert result.embeddings.dtype == torch.float64
    size, width = result.embeddings.shape[1:]
    if name == "pie_net, concatenated":  # one embedding of two parts, whose attention and residuals stay apart
        size, width = 2, width // 2
    if result.attention is not None:
        assert result.attention.shape == (4, size, 7)
        assert (result.attention[~mask.unsqueeze(1).expand_as(result.attention)] == 0).all()
        torch.testing.assert_close(result.attention.sum(-1), torch.ones(4, size).double(), atol=1e-5, rtol=0)
    if result.residual is not None:
        assert result.residual.shape == (4, size, width)
    if result.context is not None:
        assert result.context.shape == (4, width)
    assert (result.mask is not None) == (name in KEEPS_ELEMENTS)
    if result.mask is not None:
        assert torch.equal(result.mask, mask) and not result.embeddings[~mask].any()
        assert make(name)(features).mask is None


@every
def test_it_says_how_wide_its_embeddings_are(name: str) -> None:
    features, mask = sets()
    aggregator = make(name)
    assert aggregator(features, mask).embeddings.shape[2] == (traits_of(aggregator).out_dim or DIM)


def test_traits_have_defaults() -> None:
    assert traits_of(nn.Identity()) == AggregatorTraits(None, False, False, None)
    assert traits_of(AGGREGATORS["global"]()).returns_context
    slots = AGGREGATORS["set_prediction"](8, 5, position="sine_2d", grid=(2, 3))
    assert traits_of(slots) == AggregatorTraits(out_dim=5, grid=(2, 3))


@every
@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grad", [True, False])
def test_garbage_in_masked_places_changes_nothing(name: str, garbage: float, grad: bool) -> None:
    aggregator = make(name).train(grad)
    features, mask = sets()
    with torch.set_grad_enabled(grad):
        clean = aggregator(features, mask).embeddings
        dirty = aggregator(features.masked_fill(~mask.unsqueeze(-1), garbage), mask).embeddings
    assert torch.equal(clean, dirty)


@every
@pytest.mark.parametrize("grad", [True, False])
def test_alone_equals_in_a_batch(name: str, grad: bool) -> None:
    """This is also how positional aggregators count: masked elements take no place."""
    aggregator = make(name).eval()
    features, mask = sets()
    with torch.set_grad_enabled(grad):
        together = embed(aggregator, features, mask)
        for row, elements in enumerate(valid(features, mask)):
            torch.testing.assert_close(embed(aggregator, elements.unsqueeze(0))[0], together[row])


@every
def test_more_padding_changes_nothing(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets()
    prefix = mask.sort(dim=1, descending=True, stable=True)
    moved = features.gather(1, prefix.indices.unsqueeze(-1).expand_as(features))
    longer = torch.cat([moved, torch.full((4, 5, DIM), torch.nan, dtype=moved.dtype)], 1)
    longer_mask = torch.cat([prefix.values, torch.zeros(4, 5, dtype=torch.bool)], 1)
    torch.testing.assert_close(embed(aggregator, longer, longer_mask), embed(aggregator, moved, prefix.values))


@every
def test_the_order_of_elements_matters_only_where_positions_count(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets()
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    moved = aggregator(features[:, order], mask[:, order]).embeddings
    if name in KEEPS_ELEMENTS:
        torch.testing.assert_close(moved, aggregator(features, mask).embeddings[:, order])
        return
    assert torch.allclose(moved, aggregator(features, mask).embeddings) == (name not in POSITIONAL)


@every
def test_all_real_mask_equals_none(name: str) -> None:
    features, mask = sets()
    aggregator = make(name).eval()
    full = aggregator(features, torch.ones_like(mask)).embeddings
    torch.testing.assert_close(full, aggregator(features).embeddings)


@every
def test_gradients(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets()
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: aggregator(x, mask).embeddings, (features,), fast_mode=True)
    aggregator(features, mask).embeddings.square().sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert (features.grad[~mask] == 0).all()
    assert (features.grad[mask].abs().sum(-1) > 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aggregator.parameters())


@every
def test_nan_in_masked_places_does_not_reach_a_gradient(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets()
    features[~mask] = torch.nan
    features.requires_grad_()
    aggregator(features, mask).embeddings.square().sum().backward()
    assert features.grad is not None and (features.grad[~mask] == 0).all() and features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aggregator.parameters())


@every
@pytest.mark.parametrize("how", ["module", "autocast"])
def test_bfloat16(name: str, how: str) -> None:
    features, mask = sets(torch.float32)
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
    features, mask = sets()
    features_before, mask_before = features.clone(), mask.clone()
    make(name)(features, mask)
    assert torch.equal(features, features_before) and torch.equal(mask, mask_before)


@every
def test_single_element(name: str) -> None:
    features, _ = sets()
    assert make(name).eval()(features[:, :1]).embeddings.isfinite().all()


@every
def test_bad_sets(name: str) -> None:
    aggregator = make(name)
    features, mask = sets()
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


@every
def test_features_of_another_width_are_refused_where_the_width_counts(name: str) -> None:
    features, mask = sets()
    if name in ANY_WIDTH:
        assert make(name)(features[..., :4], mask).embeddings.shape[2] == 4
        return
    with pytest.raises(ValueError, match="features must be 6 wide, got 4"):
        make(name)(features[..., :4], mask)


@pytest.mark.parametrize("name", ["self_attention", "pie_net", "set_prediction"])
def test_dropout_is_for_training(name: str) -> None:
    features, _ = sets()
    aggregator = make(name, dropout=0.5)
    assert not torch.equal(aggregator(features).embeddings, aggregator(features).embeddings)
    aggregator.eval()
    assert torch.equal(aggregator(features).embeddings, aggregator(features).embeddings)
