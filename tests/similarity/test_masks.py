"""The contract that every similarity keeps for sets of different sizes, in every setting."""

import math

import pytest
import torch
from similarity_cases import EVERY, ONE, TWINS, garbage, make, masked_sets, real, slow_scores

from vse.similarity import SIMILARITIES, chamfer
from vse.similarity.base import compare

every = pytest.mark.parametrize("name", EVERY)


def test_every_similarity_is_here() -> None:
    assert set(TWINS) == set(SIMILARITIES)


@every
def test_it_equals_its_slow_twin_of_the_real_embeddings(name: str) -> None:
    a, b, a_mask, b_mask = masked_sets(name)
    a, b = a.requires_grad_(), b.requires_grad_()
    expected = slow_scores(name, real(a, a_mask), real(b, b_mask))
    found = make(name)(a, b, a_mask, b_mask)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((s * weights).sum(), (a, b)) for s in (found, expected)]
    torch.testing.assert_close(*gradients)


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6, 0.0])
def test_garbage_in_masked_places_changes_nothing(name: str, value: float) -> None:
    a, b, a_mask, b_mask = masked_sets(name)
    clean = make(name)(a, b, a_mask, b_mask)
    assert torch.equal(make(name)(garbage(a, a_mask, value), garbage(b, b_mask, value), a_mask, b_mask), clean)


@every
def test_masked_embeddings_get_no_gradient(name: str) -> None:
    a, b, a_mask, b_mask = masked_sets(name)
    a, b = garbage(a, a_mask).requires_grad_(), garbage(b, b_mask).requires_grad_()
    make(name)(a, b, a_mask, b_mask).square().sum().backward()
    for side, mask in ((a, a_mask), (b, b_mask)):
        assert side.grad is not None and side.grad.isfinite().all() and (side.grad[~mask] == 0).all()
        assert side.grad[mask].any()


@every
def test_more_padding_changes_nothing(name: str) -> None:
    if name in ONE:
        pytest.skip("compares single embeddings")
    a, b, a_mask, b_mask = masked_sets(name)
    wide = [torch.cat([side, torch.full((len(side), 3, 6), math.nan)], 1) for side in (a, b)]
    masks = [torch.cat([mask, torch.zeros(len(mask), 3, dtype=torch.bool)], 1) for mask in (a_mask, b_mask)]
    torch.testing.assert_close(make(name)(*wide, *masks), make(name)(a, b, a_mask, b_mask))


@every
@pytest.mark.parametrize("side", [0, 1])
def test_one_side_may_have_no_mask(name: str, side: int) -> None:
    a, b, *masks = masked_sets(name)
    whole = [torch.ones_like(mask) for mask in masks]
    both = [masks[0], whole[1]] if side == 0 else [whole[0], masks[1]]
    one = [masks[0], None] if side == 0 else [None, masks[1]]
    torch.testing.assert_close(make(name)(a, b, *one), make(name)(a, b, *both))
    torch.testing.assert_close(make(name)(a, b), make(name)(a, b, *whole))


@every
def test_the_order_of_a_sets_embeddings_does_not_matter(name: str) -> None:
    a, b, a_mask, b_mask = masked_sets(name)
    k, size = torch.randperm(a.shape[1]), torch.randperm(b.shape[1])
    moved = make(name)(a[:, k], b[:, size], a_mask[:, k], b_mask[:, size])
    torch.testing.assert_close(moved, make(name)(a, b, a_mask, b_mask))


@every
def test_gradcheck(name: str) -> None:
    a, b, a_mask, b_mask = masked_sets(name)
    similarity = make(name)
    assert torch.autograd.gradcheck(
        lambda x, y: similarity(x, y, a_mask, b_mask), (a.requires_grad_(), b.requires_grad_())
    )


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    a, b, a_mask, b_mask = masked_sets(name, dtype)
    a, b = (x.double().div(x.double().norm(dim=-1, keepdim=True)).to(dtype).requires_grad_() for x in (a, b))
    found = make(name, dtype)(garbage(a, a_mask), garbage(b, b_mask), a_mask, b_mask)
    expected = make(name)(a.double(), b.double(), a_mask, b_mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0.03)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), (a, b)))


@every
def test_bad_masks(name: str) -> None:
    a, b, a_mask, b_mask = masked_sets(name)
    similarity = make(name)
    with pytest.raises(ValueError, match=r"mask must have shape \(4, \d\) like the set it masks, got \(3, \d\)"):
        similarity(a, b, a_mask[:3], b_mask)
    with pytest.raises(ValueError, match="mask must be bool .*, got torch.int64"):
        similarity(a, b, a_mask, b_mask.long())
    empty = b_mask.clone()
    empty[1] = False
    with pytest.raises(ValueError, match="sample 1 of the batch has no element"):
        similarity(a, b, a_mask, empty)
    with pytest.raises(ValueError, match="b_mask must be a bool tensor or None, got 3"):
        similarity(a, b, a_mask, 3)


@pytest.mark.parametrize("masked", ["neither", "images", "captions", "both"])
def test_masks_are_handed_on_where_there_is_one(masked: str) -> None:
    a, b, a_mask, b_mask = masked_sets("chamfer")
    masks = (a_mask if masked in ("images", "both") else None, b_mask if masked in ("captions", "both") else None)
    assert torch.equal(compare(chamfer, a, b, *masks), chamfer(a, b, *masks))
    if masked == "neither":
        assert compare(lambda x, y: chamfer(x, y), a, b).shape == (4, 3)  # a similarity that knows no masks
