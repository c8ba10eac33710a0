import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from loss_cases import batch, random_batch, slow_contrastive
from torch import Tensor

from vse.losses import AdaptiveContrastiveLoss


def slow_count(scores: Tensor, positives: Tensor, gamma: float) -> Callable[[int], int]:
    pairs = [(i, j) for i in range(scores.shape[0]) for j in range(scores.shape[1])]
    matches = [float(scores[p].detach()) for p in pairs if positives[p]]
    a = sum(matches) / len(matches)
    u = sum(math.exp(0.0 if positives[p] else -float(scores[p].detach())) for p in pairs) / len(pairs)
    return lambda size: max(1, min(size - 1, math.floor(size * math.cos((a + u) ** gamma)) + 1))


@pytest.mark.parametrize("case", ["pairs", "ragged", "many"])
@pytest.mark.parametrize("negatives", ["adaptive", 1, 3, 10**30])
@pytest.mark.parametrize("released", [True, False])
def test_adaptive_contrastive_equals_its_slow_twin(
    case: str, negatives: int | Literal["adaptive"], released: bool
) -> None:
    scores, positives = batch(case)
    results = []
    for slow in (False, True):
        s = scores.clone().requires_grad_()
        if slow:
            count = slow_count(s, positives, 1.1) if negatives == "adaptive" else lambda size: negatives  # type: ignore[return-value]
            parts = [slow_contrastive(x, y, 0.1, 0.2, count, released) for x, y in ((s, positives), (s.T, positives.T))]
            loss = (parts[0] + parts[1]) / 2
        else:
            loss = AdaptiveContrastiveLoss(1.1, 0.1, 0.2, negatives, released)(s, positives)
        results.append((loss.detach(), torch.autograd.grad(loss, s)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_the_number_of_negatives_shrinks_as_the_space_improves() -> None:
    """Near chance about half of the batch, one in the end, all but the positive in a reversed space."""
    eye = torch.eye(100, dtype=torch.bool)
    loss = AdaptiveContrastiveLoss()
    at_chance = int(loss.count_negatives(torch.zeros(100, 100), eye))
    assert at_chance == math.floor(100 * math.cos(1)) + 1
    counts = [int(loss.count_negatives(eye * s, eye)) for s in (0.0, 0.2, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 1
    assert int(loss.count_negatives(torch.where(eye, -1.0, 1.0), eye)) == 99  # alignment + uniformity below 0: no NaN


def test_the_random_variant_draws_a_number_per_direction() -> None:
    torch.manual_seed(0)
    scores, positives = batch("pairs")
    loss = AdaptiveContrastiveLoss(negatives="random")
    assert {int(loss.count_negatives(scores, positives)) for _ in range(200)} == set(range(1, 7))
    constant = [float(AdaptiveContrastiveLoss(negatives=n)(scores, positives)) for n in range(1, 7)]
    drawn = {round(float(loss(scores, positives)), 6) for _ in range(200)}
    assert drawn - {round(c, 6) for c in constant}  # two directions with different numbers


def test_positives_count_as_zero_in_the_adaptive_number() -> None:
    """Four pairs at 0.3: counting e^-0.3 for them would give two negatives instead of one."""
    eye = torch.eye(4, dtype=torch.bool)
    assert math.floor(4 * math.cos((0.3 + 1.0) ** 1.25)) + 1 == 1
    assert math.floor(4 * math.cos((0.3 + (12 + 4 * math.exp(-0.3)) / 16) ** 1.25)) + 1 == 2
    assert int(AdaptiveContrastiveLoss(gamma=1.25).count_negatives(eye * 0.3, eye)) == 1


def test_the_number_of_negatives_in_many_batches() -> None:
    """Counting positives as 0 in the uniformity changes n in about every sixth batch."""
    for seed in range(100):
        scores, positives = random_batch(seed)
        for table, right in ((scores, positives), (scores.T, positives.T)):
            expected = slow_count(table.double(), right, 1.25)(table.shape[1])
            assert int(AdaptiveContrastiveLoss(gamma=1.25).count_negatives(table.double(), right)) == expected


def test_the_released_variant_is_off_by_default() -> None:
    positives = torch.eye(4, dtype=torch.bool)
    scores = torch.full((4, 4), -0.5).masked_fill(positives, 0.3)
    loss = AdaptiveContrastiveLoss(negatives=2)(scores, positives)
    assert loss == AdaptiveContrastiveLoss(negatives=2, released=False)(scores, positives)
    assert loss != AdaptiveContrastiveLoss(negatives=2, released=True)(scores, positives)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "gamma must be positive, got 0.0"),
        ({"gamma": math.nan}, "gamma must be positive, got nan"),
        ({"gamma": math.inf}, "gamma must be finite, got inf"),
        ({"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"margin": -0.1}, "margin must be at least 0, got -0.1"),
        ({"negatives": 0}, "negatives must be 'adaptive', 'random' or .*, got 0"),
        ({"negatives": "all"}, "negatives must be .*, got 'all'"),
        ({"negatives": True}, "negatives must be .*, got True"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveContrastiveLoss(**arguments)
