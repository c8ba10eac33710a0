import math

import pytest
import torch
from loss_cases import batch, slow_contrastive
from torch.nn import functional as F

from vse.losses import InfoNCELoss


def test_info_nce_equals_cross_entropy_on_pairs_and_its_twin_elsewhere() -> None:
    scores, positives = batch("pairs")
    labels = torch.arange(7)
    expected = (F.cross_entropy(scores / 0.07, labels) + F.cross_entropy(scores.T / 0.07, labels)) / 2
    torch.testing.assert_close(InfoNCELoss()(scores, positives).double(), expected, atol=1e-5, rtol=1e-5)
    for case in ("ragged", "many"):
        scores, positives = batch(case)
        directions = ((scores, positives), (scores.T, positives.T))
        expected = sum(slow_contrastive(x, y, 0.0, 0.07, lambda size: size, False) for x, y in directions) / 2  # type: ignore[assignment]
        torch.testing.assert_close(InfoNCELoss()(scores, positives).double(), expected, atol=1e-5, rtol=1e-5)


def test_the_temperature_is_learned_within_its_limit() -> None:
    scores, positives = batch("pairs")
    loss = InfoNCELoss(0.05)
    loss(scores, positives).backward()
    assert loss.log_temperature.grad is not None and loss.log_temperature.grad != 0
    with torch.no_grad():
        loss.log_temperature.fill_(-9.0)
    loss.zero_grad()
    loss(scores.requires_grad_(), positives).backward()
    assert loss.log_temperature.exp().item() == pytest.approx(0.01) and loss.log_temperature.grad != 0
    assert not InfoNCELoss(learnable=False).log_temperature.requires_grad


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="temperature must be finite, got inf"):
        InfoNCELoss(math.inf)
    with pytest.raises(ValueError, match="temperature must be at least 0.01, got 0.001"):
        InfoNCELoss(0.001)
