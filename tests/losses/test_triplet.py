import math

import pytest
import torch
from loss_cases import batch
from torch import Tensor

from vse.losses import Mining, Positives, Reduction, TripletLoss

MARGIN = 0.2


def slow_direction(scores: Tensor, positives: Tensor, mining: str, reduction: str, kept: str = "each") -> Tensor:
    """One direction of the triplet loss, triplet by triplet."""
    costs = []
    pairs = 0
    for query in range(scores.shape[0]):
        for match in range(scores.shape[1]):
            if not positives[query, match]:
                continue
            own = [c for c in range(scores.shape[1]) if positives[query, c]]
            if kept == "worst" and match != min(own, key=lambda c: scores[query, c].item()):
                continue
            pairs += 1
            mine = [
                torch.clamp(MARGIN + scores[query, negative] - scores[query, match], min=0)
                for negative in range(scores.shape[1])
                if not positives[query, negative]
            ]
            if mining == "hardest":
                mine = [max(mine, key=lambda cost: cost.item())] if mine else []
            costs += mine
    if mining == "semihard":
        costs = [torch.clamp(cost, max=MARGIN) for cost in costs]
    total = sum(costs, torch.zeros((), dtype=scores.dtype))
    if reduction == "sum":
        return total
    if reduction == "mean_pairs":
        return total / scores.numel()
    if mining == "hardest":
        return total / pairs
    if mining == "semihard":
        costs = [cost for cost in costs if cost > 0]
    return total / max(1, len(costs))


@pytest.mark.parametrize("case", ["pairs", "ragged", "many"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_pairs"])
@pytest.mark.parametrize("mining", ["hardest", "all", "semihard"])
@pytest.mark.parametrize("kept", ["each", "worst"])
def test_triplet_equals_its_slow_twin(case: str, mining: Mining, reduction: Reduction, kept: Positives) -> None:
    scores, positives = batch(case)
    results = []
    for slow in (False, True):
        s = scores.clone().requires_grad_()
        if slow:
            loss = slow_direction(s, positives, mining, reduction, kept)
            loss = loss + slow_direction(s.T, positives.T, mining, reduction, kept)
        else:
            loss = TripletLoss(MARGIN, mining, reduction, positives=kept)(s, positives)
        results.append((loss.detach(), torch.autograd.grad(loss, s)[0]))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0] > 0


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_pairs"])
@pytest.mark.parametrize("mining", ["hardest", "all", "semihard"])
@pytest.mark.parametrize("case", ["no violation", "no negative"])
def test_nothing_to_learn_is_zero(case: str, mining: Mining, reduction: Reduction) -> None:
    positives = torch.eye(4, dtype=torch.bool) if case == "no violation" else torch.ones(4, 4, dtype=torch.bool)
    scores = torch.eye(4).requires_grad_()
    loss = TripletLoss(MARGIN, mining, reduction)(scores, positives)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and (scores.grad == 0).all()


def test_gradcheck() -> None:
    scores, positives = batch("ragged")
    for mining in ("hardest", "all"):
        loss = TripletLoss(MARGIN, mining)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, positives), scores.requires_grad_())


def test_the_worst_of_one_positive_is_this_positive() -> None:
    scores, positives = batch("pairs")
    for mining in ("hardest", "all"):
        each, worst = (TripletLoss(MARGIN, mining, positives=kept) for kept in ("each", "worst"))  # type: ignore[arg-type]
        assert torch.equal(each(scores, positives), worst(scores, positives))
    assert "positives=worst" in repr(worst) and "positives" not in repr(each)


def test_the_gradient_of_the_worst_goes_to_one_positive() -> None:
    """Two equal positives: one of them is the worst."""
    scores = torch.tensor([[0.5, 0.5, 0.9], [0.0, 0.0, 0.1]]).requires_grad_()
    positives = torch.tensor([[True, True, False], [False, False, True]])
    TripletLoss(MARGIN, "all", positives="worst")._direction(
        scores, positives, torch.tensor([0]), torch.tensor([0])
    ).backward()
    assert scores.grad is not None and scores.grad[0].tolist() == [-1, 0, 1]


def test_an_image_twice_in_a_batch_is_not_a_negative() -> None:
    """Two rows of the same image: their captions are positives of both."""
    scores = torch.full((2, 2), 0.9)
    assert TripletLoss()(scores, torch.ones(2, 2, dtype=torch.bool)) == 0
    assert TripletLoss()(scores, torch.eye(2, dtype=torch.bool)) > 0


def test_all_negatives_in_the_warm_up() -> None:
    scores, positives = batch("pairs")
    loss = TripletLoss(MARGIN, "hardest", warmup_epochs=1)
    everything = TripletLoss(MARGIN, "all")(scores, positives)
    hardest = TripletLoss(MARGIN, "hardest")(scores, positives)
    for epoch, expected in ((0, everything), (1, hardest), (0, everything), (7, hardest)):
        loss.set_epoch(epoch)
        assert loss(scores, positives) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0.0}, "margin must be positive, got 0.0"),
        ({"margin": math.nan}, "margin must be positive, got nan"),
        ({"mining": "hard"}, "mining must be one of .*, got 'hard'"),
        ({"reduction": "avg"}, "reduction must be one of .*, got 'avg'"),
        ({"positives": "best"}, "positives must be one of 'each' or 'worst', got 'best'"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TripletLoss(**arguments)  # type: ignore[arg-type]
