"""Losses and similarities in the cases where a plausible mistake would go unseen."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vse.losses import LOSSES, AdaptiveContrastiveLoss
from vse.similarity import cosine, max_cosine, smooth_chamfer


def slow_count(scores: Tensor, positives: Tensor, gamma: float) -> int:
    """VSE-2AD's number of negatives, pair by pair; a positive counts as a score of 0 in the uniformity."""
    matches, potentials = [], []
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            score = float(scores[i, j])
            if positives[i, j]:
                matches.append(score)
            potentials.append(1.0 if positives[i, j] else math.exp(-score))
    state = sum(matches) / len(matches) + sum(potentials) / len(potentials)
    size = scores.shape[1]
    return max(1, min(size - 1, math.floor(size * math.cos(state**gamma)) + 1))


def test_positives_count_as_zero_in_the_adaptive_number() -> None:
    """Four pairs at 0.3: counting e^-0.3 for them would give two negatives instead of one."""
    eye = torch.eye(4, dtype=torch.bool)
    assert math.floor(4 * math.cos((0.3 + 1.0) ** 1.25)) + 1 == 1
    assert math.floor(4 * math.cos((0.3 + (12 + 4 * math.exp(-0.3)) / 16) ** 1.25)) + 1 == 2
    assert int(AdaptiveContrastiveLoss(gamma=1.25).count_negatives(eye * 0.3, eye)) == 1


@pytest.mark.parametrize("shape", [(5, 5), (8, 8), (4, 12)])
def test_the_adaptive_number_equals_its_slow_twin_in_many_batches(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    positives = torch.arange(shape[0])[:, None] == torch.arange(shape[1]) * shape[0] // shape[1]
    for _ in range(60):
        scores = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 - 0.2
        for s, p in ((scores, positives), (scores.T, positives.T)):
            assert int(AdaptiveContrastiveLoss(gamma=1.25).count_negatives(s, p)) == slow_count(s, p, 1.25)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_compute_in_full_precision(name: str, dtype: torch.dtype) -> None:
    """Only the scores themselves are rounded, nothing that is computed from them."""
    torch.manual_seed(0)
    scores, positives = torch.randn(16, 16).to(dtype), torch.eye(16, dtype=torch.bool)
    half, full = (LOSSES[name]()(x, positives) for x in (scores, scores.float()))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [16.0, 41.0, 60.0, 100.0, 1000.0])
def test_smooth_chamfer_of_opposite_vectors(temperature: float) -> None:
    """All cosines are -1: the score is -1 + log(K) / temperature, finite, with a finite gradient."""
    torch.manual_seed(0)
    a = F.normalize(torch.randn(1, 1, 6), dim=-1).expand(1, 3, 6).clone().requires_grad_()
    score = smooth_chamfer(a, -a.detach(), temperature)
    assert float(score.detach()) == pytest.approx(-1 + math.log(3) / temperature, abs=1e-5)
    gradient = torch.autograd.grad(score.sum(), a)[0]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("similarity", [cosine, max_cosine])
def test_what_is_nearly_of_length_one_is_normalised_all_the_same(similarity: object) -> None:
    """Only rounding, up to 1e-5, is left alone; a length that is off by more changes no score."""
    assert callable(similarity)
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 1, 6, dtype=torch.float64), dim=-1) for n in (4, 5))
    exact = a[:, 0] @ b[:, 0].T
    for length in (1 + 2e-5, 1 - 2e-5, 1.001, 0.5):
        torch.testing.assert_close(similarity(a * length, b), exact, rtol=0, atol=1e-12)
        torch.testing.assert_close(similarity(a, b * length), exact, rtol=0, atol=1e-12)
    for length in (1 + 5e-6, 1 - 5e-6):
        torch.testing.assert_close(similarity(a * length, b), exact * length, rtol=0, atol=1e-12)
