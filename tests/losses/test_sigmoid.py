import math

import pytest
import torch
from loss_cases import batch
from torch import Tensor

from vse.losses import SigmoidLoss


def slow_sigmoid(scores: Tensor, positives: Tensor, temperature: float, bias: float) -> float:
    """The sum over pairs of log(1 + exp(z (-s / t - b))), as equation (1) writes it."""
    total = 0.0
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            z = 1.0 if positives[i, j] else -1.0
            total += math.log(1 + math.exp(z * (-scores[i, j].item() / temperature - bias)))
    return total


@pytest.mark.parametrize("case", ["pairs", "ragged", "many"])
def test_sigmoid_equals_its_twin(case: str) -> None:
    scores, positives = batch(case)
    for temperature, bias in ((0.1, -10.0), (0.5, 1.0)):
        total = slow_sigmoid(scores, positives, temperature, bias)
        for reduction, count in (("batch", max(scores.shape)), ("pairs", scores.numel())):
            loss = SigmoidLoss(temperature, bias, reduction=reduction)  # type: ignore[arg-type]
            assert loss(scores, positives).item() == pytest.approx(total / count, rel=1e-5)


def test_sigmoid_is_the_librarys_for_a_batch_of_pairs() -> None:
    """As transformers' SiglipModel computes it from logits."""
    scores, positives = batch("pairs")
    logits = scores.T / 0.1 - 10.0
    m1_diag1 = 2 * torch.eye(7, dtype=torch.float64) - 1
    expected = -torch.nn.functional.logsigmoid(m1_diag1 * logits).sum(-1).mean()
    torch.testing.assert_close(SigmoidLoss()(scores, positives).double(), expected, atol=1e-5, rtol=1e-5)


def test_temperature_and_bias_are_learned() -> None:
    scores, positives = batch("ragged")
    loss = SigmoidLoss()
    loss(scores, positives).backward()
    assert {name for name, p in loss.named_parameters() if p.grad} == {"log_temperature", "bias"}
    assert not any(p.requires_grad for p in SigmoidLoss(learnable=False).parameters())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="temperature must be positive|temperature must be above 0"):
        SigmoidLoss(0.0)
    with pytest.raises(ValueError, match="bias must be finite, got inf"):
        SigmoidLoss(bias=math.inf)
    with pytest.raises(ValueError, match="reduction"):
        SigmoidLoss(reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be a number where there is no pretrained model"):
        SigmoidLoss("pretrained")
