import pytest
import torch
from loss_cases import batch, random_batch

from vse.losses import LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_at_the_ends(name: str) -> None:
    """Perfect scores, hopeless scores, no negative at all, a query without a positive."""
    eye = torch.eye(4, dtype=torch.bool)
    lonely = eye.clone()
    lonely[3, 3] = False
    cases = [(eye * 2 - 1.0, eye), (1.0 - eye * 2, eye), (torch.ones(4, 4), torch.ones_like(eye)), (eye * 1.0, lonely)]
    for scores, positives in cases:
        s = scores.clone().requires_grad_()
        loss = LOSSES[name]()(s, positives)
        loss.backward()
        assert loss.isfinite() and s.grad is not None and s.grad.isfinite().all()
    if name != "sigmoid":  # it asks a positive pair to be above a bias, not above the negatives
        assert LOSSES[name]()(torch.ones(4, 4), torch.ones_like(eye)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_treats_images_and_captions_alike(name: str) -> None:
    scores, positives = batch("ragged")
    torch.testing.assert_close(LOSSES[name]()(scores, positives), LOSSES[name]()(scores.T, positives.T))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_judged_in_float32(name: str, dtype: torch.dtype) -> None:
    """Only the scores are rounded: the loss is that of the same scores in float32, to the last bit."""
    for seed in range(5):
        scores, positives = random_batch(seed)
        half = scores.to(dtype).requires_grad_()
        found, expected = (LOSSES[name]()(x, positives) for x in (half, half.detach().float()))
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert torch.autograd.grad(found, half)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_bad_inputs(name: str) -> None:
    scores, positives = batch("pairs")
    loss = LOSSES[name]()
    with pytest.raises(ValueError, match=r"must be \(A, C\) alike, got \(7, 7\) and \(7, 6\)"):
        loss(scores, positives[:, :6])
    with pytest.raises(ValueError, match="positives must be bool, got torch.int64"):
        loss(scores, positives.long())
    with pytest.raises(ValueError, match="the batch has no positive pair"):
        loss(scores, torch.zeros_like(positives))
