import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.losses import (
    LOSSES,
    AdaptiveContrastiveLoss,
    Criterion,
    InfoNCELoss,
    Mining,
    Reduction,
    TripletLoss,
    diversity_loss,
    mmd_loss,
    uniformity_loss,
)
from vse.sets import Aggregated

MARGIN = 0.2


def slow_direction(scores: Tensor, positives: Tensor, mining: str, reduction: str) -> Tensor:
    """One direction of the triplet loss, triplet by triplet."""
    costs = []
    pairs = 0
    for query in range(scores.shape[0]):
        for match in range(scores.shape[1]):
            if not positives[query, match]:
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


def batch(case: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    if case == "pairs":
        return torch.randn(7, 7, dtype=torch.float64) * 0.3, torch.eye(7, dtype=torch.bool)
    if case == "ragged":  # one to four captions per image
        images = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3])
        return torch.randn(4, 9, dtype=torch.float64) * 0.3, torch.arange(4)[:, None] == images
    positives = torch.rand(6, 8) < 0.3  # many to many; some captions or images may have none
    return torch.randn(6, 8, dtype=torch.float64) * 0.3, positives


@pytest.mark.parametrize("case", ["pairs", "ragged", "many"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_pairs"])
@pytest.mark.parametrize("mining", ["hardest", "all", "semihard"])
def test_triplet_equals_its_slow_twin(case: str, mining: Mining, reduction: Reduction) -> None:
    scores, positives = batch(case)
    results = []
    for slow in (False, True):
        s = scores.clone().requires_grad_()
        if slow:
            loss = slow_direction(s, positives, mining, reduction) + slow_direction(s.T, positives.T, mining, reduction)
        else:
            loss = TripletLoss(MARGIN, mining, reduction)(s, positives)
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


def test_half_precision_scores_are_judged_in_float32() -> None:
    scores, positives = batch("pairs")
    assert TripletLoss()(scores.bfloat16(), positives).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0.0}, "margin must be positive, got 0.0"),
        ({"margin": math.nan}, "margin must be positive, got nan"),
        ({"mining": "hard"}, "mining must be one of .*, got 'hard'"),
        ({"reduction": "avg"}, "reduction must be one of .*, got 'avg'"),
        ({"warmup_epochs": -1}, "warmup_epochs must not be negative, got -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TripletLoss(**arguments)  # type: ignore[arg-type]


def test_bad_inputs() -> None:
    scores, positives = batch("pairs")
    with pytest.raises(ValueError, match=r"must be \(A, C\) alike, got \(7, 7\) and \(7, 6\)"):
        TripletLoss()(scores, positives[:, :6])
    with pytest.raises(ValueError, match="positives must be bool, got torch.int64"):
        TripletLoss()(scores, positives.long())
    with pytest.raises(ValueError, match="the batch has no positive pair"):
        TripletLoss()(scores, torch.zeros_like(positives))


def test_the_ramp_rises_over_one_epoch() -> None:
    scores, positives = batch("pairs")
    image, text = Aggregated(torch.ones(7, 1, 3)), Aggregated(torch.ones(7, 1, 3))
    criterion = Criterion(TripletLoss(), ramp_epoch=2)
    full = TripletLoss()(scores, positives)
    for time, factor in ((0.0, 1), (1.75, 1), (2.0, 0), (2.25, 0.25), (2.75, 0.75), (3.0, 1), (3.5, 1)):
        criterion.set_time(time)
        parts = criterion(scores, positives, image, text)
        torch.testing.assert_close(parts["total"], factor * full)
        assert parts["ranking"] == full  # the log keeps what the loss is
    plain = Criterion(TripletLoss())
    plain.set_time(0.5)
    assert plain(scores, positives, image, text)["total"] == full


class Spread(nn.Module):
    """A regulariser with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Aggregated, text: Aggregated) -> Tensor:
        return self.scale * (image.embeddings.mean() + text.embeddings.mean())


def test_criterion_adds_weighted_terms_and_names_them() -> None:
    scores, positives = batch("pairs")
    image, text = Aggregated(torch.ones(7, 1, 3)), Aggregated(torch.ones(7, 1, 3) * 2)
    criterion = Criterion(TripletLoss(), {"spread": (0.5, Spread()), "constant": (2.0, lambda i, t: torch.ones(()))})
    parts = criterion(scores, positives, image, text)
    assert set(parts) == {"total", "ranking", "spread", "constant"}
    assert parts["spread"].item() == 6 and parts["ranking"] == TripletLoss()(scores, positives)
    torch.testing.assert_close(parts["total"], parts["ranking"] + 0.5 * 6 + 2)
    assert len(list(criterion.parameters())) == 1


def slow_contrastive(
    scores: Tensor, positives: Tensor, margin: float, temperature: float, count: Callable[[int], int], enters: bool
) -> Tensor:
    """Cross-entropy of each positive against its query's hardest negatives, query by query; rows are queries."""
    costs = []
    size = scores.shape[1]
    for query in range(len(scores)):
        candidates = [c for c in range(size) if enters or not positives[query, c]]
        candidates.sort(key=lambda c: -float(scores[query, c].detach()) if not positives[query, c] else 0.0)
        hardest = candidates[: count(size)]
        for match in range(size):
            if positives[query, match]:
                logits = [scores[query, match], *(scores[query, c] + margin for c in hardest)]
                costs.append(-torch.log_softmax(torch.stack(logits) / temperature, 0)[0])
    return torch.stack(costs).mean()


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
    assert LOSSES[name]()(torch.ones(4, 4), torch.ones_like(eye)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_treats_images_and_captions_alike(name: str) -> None:
    scores, positives = batch("ragged")
    torch.testing.assert_close(LOSSES[name]()(scores, positives), LOSSES[name]()(scores.T, positives.T))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveContrastiveLoss(gamma=0.0), "gamma must be positive, got 0.0"),
        (lambda: AdaptiveContrastiveLoss(temperature=-1.0), "temperature must be positive, got -1.0"),
        (lambda: AdaptiveContrastiveLoss(margin=-0.1), "margin must not be negative, got -0.1"),
        (lambda: AdaptiveContrastiveLoss(negatives=0), "negatives must be 'adaptive', 'random' or .*, got 0"),
        (lambda: AdaptiveContrastiveLoss(negatives="all"), "negatives must be .*, got 'all'"),  # type: ignore[arg-type]
        (lambda: AdaptiveContrastiveLoss(gamma=math.nan), "gamma must be positive, got nan"),
        (lambda: AdaptiveContrastiveLoss(negatives=True), "negatives must be .*, got True"),
        (lambda: InfoNCELoss(math.inf), "temperature must be at least 0.01, got inf"),
        (lambda: InfoNCELoss(0.001), "temperature must be at least 0.01, got 0.001"),
        (lambda: mmd_loss(*sides(), kernel="gauss"), "kernel must be 'rbf' or 'exponential', got 'gauss'"),  # type: ignore[arg-type]
        (lambda: mmd_loss(*sides(), gamma=0.0), "gamma must be positive, got 0.0"),
        (lambda: mmd_loss(sides()[0], Aggregated(torch.ones(2, 1, 3))), "equally wide, got 5 and 3"),
        (lambda: diversity_loss(Aggregated(torch.ones(2, 1, 3)), sides()[1]), "the image aggregator gives no residual"),
        (lambda: uniformity_loss(sides()[0], Aggregated(torch.ones(2, 1, 3))), "the text aggregator gives no residual"),
    ],
)
def test_bad_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def sides(image_size: int = 3, text_size: int = 2) -> tuple[Aggregated, Aggregated]:
    torch.manual_seed(2)
    make = lambda count, size: torch.randn(count, size, 5, dtype=torch.float64)  # noqa: E731
    image = Aggregated(make(4, image_size), residual=make(4, image_size))
    return image, Aggregated(make(6, text_size), residual=make(6, text_size))


def slow_diversity(residuals: Tensor) -> Tensor:
    total = []
    for sample in residuals:
        size = len(sample)
        entries = [
            (sample[i] @ sample[j] / (sample[i].norm() * sample[j].norm()) - float(i == j)) ** 2
            for i in range(size)
            for j in range(size)
        ]
        total.append(torch.stack(entries).sum().sqrt() / size**2)
    return torch.stack(total).mean()


def slow_uniformity(residuals: Tensor) -> Tensor:
    total = []
    for sample in residuals:
        r = [x / x.norm() for x in sample]
        pairs = [torch.exp(-2 * (r[i] - r[j]).square().sum()) for i in range(len(r)) for j in range(i + 1, len(r))]
        total.append(torch.stack(pairs).mean())
    return torch.stack(total).mean()


def slow_mmd(x: Tensor, y: Tensor, kernel: str, gamma: float) -> Tensor:
    def k(a: Tensor, b: Tensor) -> Tensor:
        squared = (a - b).square().sum()
        return torch.exp(-gamma * (squared if kernel == "rbf" else squared.sqrt()))

    def mean(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([k(a, b) for a in left for b in right]).mean()

    return mean(x, x) - 2 * mean(x, y) + mean(y, y)


def test_regularisers_equal_their_slow_twins() -> None:
    image, text = sides()
    assert image.residual is not None and text.residual is not None
    torch.testing.assert_close(
        diversity_loss(image, text), slow_diversity(image.residual) + slow_diversity(text.residual)
    )
    torch.testing.assert_close(
        uniformity_loss(image, text), slow_uniformity(image.residual) + slow_uniformity(text.residual)
    )
    x, y = image.embeddings.flatten(0, 1), text.embeddings.flatten(0, 1)
    kernels: list[Literal["rbf", "exponential"]] = ["rbf", "exponential"]
    for kernel in kernels:
        expected = slow_mmd(x, y, kernel, 0.3)
        torch.testing.assert_close(mmd_loss(image, text, kernel, 0.3), expected, atol=1e-6, rtol=1e-6)


def test_one_embedding_has_nothing_to_spread() -> None:
    image, text = sides(1, 1)
    assert uniformity_loss(image, text) == 0
    assert diversity_loss(image, text).abs() < 1e-12


@pytest.mark.parametrize("kernel", ["rbf", "exponential"])
def test_mmd_of_equal_sets_is_zero_with_a_zero_gradient(kernel: Literal["rbf", "exponential"]) -> None:
    points = torch.randn(3, 2, 5, dtype=torch.float64).requires_grad_()
    same = Aggregated(points), Aggregated(points)
    loss = mmd_loss(*same, kernel)
    assert abs(loss.item()) < 1e-6
    collapsed = torch.ones(3, 2, 5, requires_grad=True)
    for x in (points, collapsed):
        gradient = torch.autograd.grad(mmd_loss(Aggregated(x), Aggregated(x.detach()), kernel), x)[0]
        assert gradient.isfinite().all() and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("term", [diversity_loss, uniformity_loss, mmd_loss])
def test_regularisers_have_right_gradients(term: Callable[..., Tensor]) -> None:
    image, text = sides()
    assert image.residual is not None
    inputs = (image.embeddings.requires_grad_(), image.residual.requires_grad_())

    def both(e: Tensor, r: Tensor) -> Tensor:
        return term(Aggregated(e, residual=r), text) + 0 * (e.sum() + r.sum())

    assert torch.autograd.gradcheck(both, inputs)


def test_regularisers_judge_half_precision_in_float32() -> None:
    image, text = (Aggregated(s.embeddings.bfloat16(), residual=s.residual.bfloat16()) for s in sides())  # type: ignore[union-attr]
    for term in (diversity_loss, uniformity_loss, mmd_loss):
        assert term(image, text).dtype == torch.float32  # type: ignore[operator]
