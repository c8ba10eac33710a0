"""How long a training may be in a bad state before it is said, and what the state is measured by."""

import math

import pytest
import torch
from torch import Tensor, nn

from vse.losses import AdaptiveContrastiveLoss, Criterion, InfoNCELoss, TripletLoss
from vse.set_health import set_health
from vse.sets import Aggregated
from vse.training.watch import Watch, training_health

GOOD = {"ranking": 0.1, "plateau": 0.4}
STUCK = {"ranking": 0.4, "plateau": 0.4}


def watch() -> Watch:
    return Watch(nn.Linear(1, 1), Criterion(TripletLoss()))


def collapsed(side: str, variance: float = -12.0) -> dict[str, float]:
    return {**GOOD, "image_log_variance": -2.0, "text_log_variance": -2.0, f"{side}_log_variance": variance}


@pytest.mark.parametrize("bad", [STUCK, collapsed("image"), collapsed("text")], ids=["plateau", "image", "text"])
def test_good_steps_make_bad_ones_forgotten(bad: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred bad steps in a row are worth a line; 120 with good ones between them are not."""
    watching = watch()
    for means, steps in ((bad, 60), (GOOD, 10), (bad, 60), (GOOD, 1), (bad, 99)):
        watching.training(means, steps)
        assert capsys.readouterr().err == ""
    watching.training(bad, 1)
    assert capsys.readouterr().err.count("warning: ") == 1
    watching.training(GOOD, 1)
    watching.training(bad, 500)  # it is said once
    assert capsys.readouterr().err == ""


def test_each_bad_state_has_its_own_count(capsys: pytest.CaptureFixture[str]) -> None:
    watching = watch()
    for means in (collapsed("image"), collapsed("text"), STUCK, collapsed("image"), STUCK):
        watching.training(means, 60)
    assert capsys.readouterr().err == ""
    both = {**STUCK, "image_log_variance": -12.0, "text_log_variance": -13.0}
    watching.training(both, 40)
    assert "as if all scores were equal" in capsys.readouterr().err
    watching.training(both, 60)
    err = capsys.readouterr().err
    assert "embeddings of each image are nearly equal (log within-set variance -12.0)" in err
    assert "embeddings of each text are nearly equal (log within-set variance -13.0)" in err
    assert err.count("warning: ") == 2


@pytest.mark.parametrize(("variance", "lines"), [(-7.35, 0), (-9.9, 0), (-10.1, 1)])
def test_what_counts_as_collapsed(variance: float, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    """PIE-Net's sets, at -7.35, still tell their embeddings apart."""
    for side in ("image", "text"):
        watch().training(collapsed(side, variance), 100)
        err = capsys.readouterr().err
        assert err.count("warning: ") == lines and err.count(f"embeddings of each {side} ") == lines


@pytest.mark.parametrize(("ratio", "lines"), [(0.98, 0), (0.995, 1), (1.0, 1), (1.005, 1), (1.02, 0)])
@pytest.mark.parametrize("plateau", [0.02, 400.0])
def test_what_counts_as_the_plateau(
    plateau: float, ratio: float, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within one hundredth of it, whatever the loss's size; a loss above it is not at it either."""
    watch().training({"ranking": ratio * plateau, "plateau": plateau}, 100)
    assert capsys.readouterr().err.count("as if all scores were equal") == lines


def example() -> tuple[Tensor, Tensor]:
    """Scores whose positives stand far above the rest, of images with unequally many captions in no order."""
    torch.manual_seed(0)
    image_of_caption = torch.tensor([2, 0, 0, 3, 1, 2, 2, 0, 3, 1, 2, 4])
    positives = torch.arange(5)[:, None] == image_of_caption
    return torch.randn(5, 12) * 0.1 + 0.7 * positives, positives


def test_the_plateau_is_the_loss_of_the_mean_of_all_scores() -> None:
    """Of all scores, not of the positives': AdOpt's number of negatives, and with it its loss, depends on that."""
    scores, positives = example()
    nothing = Aggregated(torch.zeros(5, 1, 2)), Aggregated(torch.zeros(12, 1, 2))
    mean = scores.mean().item()
    directions = []
    for queries, candidates in ((5, 12), (12, 5)):
        share = math.cos((mean + (60 - 12) / 60 * math.exp(-mean) + 12 / 60) ** 1.25)
        count = min(max(math.floor(candidates * share) + 1, 1), candidates - 1)
        table = positives if queries == 5 else positives.T
        costs = []
        for query in range(queries):
            own = int(table[query].sum())
            costs += [math.log(1 + min(count, candidates - own) * math.exp(0.2 / 0.05))] * own
        directions.append(sum(costs) / len(costs))
    ranking = AdaptiveContrastiveLoss()
    found = training_health(Criterion(ranking), scores, positives, *nothing)
    assert set(found) == {"plateau"}
    assert found["plateau"].item() == pytest.approx(sum(directions) / 2, rel=1e-5)
    at_positives = ranking(torch.full_like(scores, scores[positives].mean().item()), positives)
    assert abs(at_positives.item() - found["plateau"].item()) > 0.05


@pytest.mark.parametrize("ranking", [TripletLoss(), TripletLoss(mining="all", reduction="mean"), InfoNCELoss()])
def test_the_plateau_has_neither_terms_nor_gradient(ranking: nn.Module) -> None:
    """It stands beside the ranking loss alone, without the regularisers and the ramp."""
    scores, positives = example()
    criterion = Criterion(ranking, {"more": (3.0, lambda image, text: torch.ones(()))}, ramp_epoch=0)
    criterion.set_time(0.5)
    nothing = Aggregated(torch.zeros(5, 1, 2)), Aggregated(torch.zeros(12, 1, 2))
    found = training_health(criterion, scores.requires_grad_(), positives, *nothing)["plateau"]
    torch.testing.assert_close(found, ranking(torch.zeros(5, 12), positives).detach())
    assert not found.requires_grad


def test_the_sets_of_a_step_are_paired_by_its_positives() -> None:
    scores, positives = example()
    image, text = (nn.functional.normalize(torch.randn(n, k, 4), dim=-1) for n, k in ((5, 3), (12, 2)))
    found = training_health(Criterion(TripletLoss()), scores, positives, Aggregated(image), Aggregated(text))
    expected = set_health(image, text, torch.tensor([2, 0, 0, 3, 1, 2, 2, 0, 3, 1, 2, 4]))
    assert set(found) == {"plateau", *expected} and len(expected) == 4
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_unused_parameters_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "spare": nn.Linear(2, 2, bias=False), "other": nn.Linear(2, 2)})
    model["other"].requires_grad_(False)
    model["used"](torch.ones(1, 2)).sum().backward()
    watching = Watch(model, Criterion(TripletLoss()))
    watching.unused_parameters()
    line = "warning: spare.weight: nothing in the model uses these parameters, they are not trained\n"
    assert capsys.readouterr().err == line
    watching.unused_parameters()
    assert capsys.readouterr().err == ""
    model["other"].requires_grad_(True)
    Watch(model, Criterion(TripletLoss())).unused_parameters()
    assert "spare.weight and 2 more: nothing in the model uses" in capsys.readouterr().err
    model.requires_grad_(False)
    Watch(model, Criterion(TripletLoss())).unused_parameters()
    assert capsys.readouterr().err == ""
