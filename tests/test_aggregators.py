"""The contract that every aggregator keeps, and what is special about each."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from vse.aggregators import AGGREGATORS, GPO, GlobalContext, KMaxPool, MaxPool, MeanPool
from vse.aggregators.gpo import position_codes

DIM = 6
NEEDED = {"k": 3, "dim": DIM, "in_dim": DIM, "out_dim": DIM, "num_embeddings": 2}  # by argument name
POSITIONAL: set[str] = set()  # aggregators that code their elements' positions: not permutation invariant

every = pytest.mark.parametrize("name", AGGREGATORS)


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    parameters = inspect.signature(AGGREGATORS[name]).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    arguments = {name: NEEDED[name] for name in needed}
    return AGGREGATORS[name](**arguments).to(dtype)


def sets(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Four sets of 7 places with 7, 3, 1 and 4 real elements in any places."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(4, 7, DIM, generator=generator, dtype=dtype)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    for row, count in enumerate((7, 3, 1, 4)):
        mask[row, torch.randperm(7, generator=generator)[:count]] = True
    if dtype == torch.float64:
        return features, mask
    return features.to(dtype), mask


@every
def test_shapes(name: str) -> None:
    features, mask = sets()
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
    features, mask = sets()
    with torch.set_grad_enabled(grad):
        clean = aggregator(features, mask).embeddings
        dirty = aggregator(features.masked_fill(~mask.unsqueeze(-1), garbage), mask).embeddings
    assert torch.equal(clean, dirty)


@every
@pytest.mark.parametrize("grad", [True, False])
def test_alone_equals_in_a_batch(name: str, grad: bool) -> None:
    aggregator = make(name).eval()
    features, mask = sets()
    with torch.set_grad_enabled(grad):
        together = aggregator(features, mask).embeddings
        for row in range(4):
            alone = aggregator(features[row : row + 1, mask[row]]).embeddings
            torch.testing.assert_close(alone[0], together[row])


@every
def test_more_padding_changes_nothing(name: str) -> None:
    aggregator = make(name).eval()
    features, mask = sets()
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
    features, mask = sets()
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    torch.testing.assert_close(
        aggregator(features[:, order], mask[:, order]).embeddings, aggregator(features, mask).embeddings
    )


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
    assert torch.autograd.gradcheck(lambda x: aggregator(x, mask).embeddings, (features,))
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
    features, mask = sets(dtype=torch.float32)
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
