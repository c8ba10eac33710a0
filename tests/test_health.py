"""Set health and warnings."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vse.health import Watch, set_health
from vse.losses import AdaptiveContrastiveLoss, InfoNCELoss, TripletLoss


def slow_log_variance(embeddings: Tensor) -> float:
    lengths = [float((sum(sample) / len(sample)).norm()) for sample in embeddings]
    return math.log(sum(1 - length for length in lengths) / len(lengths))


def slow_slots_used(mine: Tensor, theirs: Tensor) -> float:
    """Perplexity of the winners: mine[i] and theirs[i] are a positive pair."""
    wins = [0] * mine.shape[1]
    for a, b in zip(mine, theirs, strict=True):
        best = [max(float(x @ y) for y in b) for x in a]
        wins[best.index(max(best))] += 1
    shares = [w / len(mine) for w in wins if w]
    return math.exp(-sum(s * math.log(s) for s in shares))


def test_it_equals_its_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(n, k, 6), dim=-1) for n, k in ((7, 4), (20, 3)))
    image_of_caption = torch.randint(0, 7, (20,))
    monkeypatch.setattr("vse.health._ROWS", 6)
    health = set_health(image, text, image_of_caption)
    pairs = image[image_of_caption]
    expected = {
        "image_log_variance": slow_log_variance(image),
        "text_log_variance": slow_log_variance(text),
        "image_slots_used": slow_slots_used(pairs, text),
        "text_slots_used": slow_slots_used(text, pairs),
    }
    assert {name: float(value) for name, value in health.items()} == pytest.approx(expected, rel=1e-5)


def test_single_embeddings_have_no_set() -> None:
    one, four = (F.normalize(torch.randn(5, k, 6), dim=-1) for k in (1, 4))
    assert set_health(one, one, torch.arange(5)) == {}
    assert set(set_health(one, four, torch.arange(5))) == {"text_log_variance", "text_slots_used"}


def test_the_ends_of_the_scale() -> None:
    collapsed = F.normalize(torch.randn(5, 1, 6), dim=-1).expand(5, 4, 6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).expand(5, 2, 2)
    health = set_health(collapsed, collapsed, torch.arange(5))
    assert health["image_log_variance"] < -14 and health["image_slots_used"] == 1
    assert set_health(opposite, opposite, torch.arange(5))["text_log_variance"] == 0


@pytest.mark.parametrize(
    "ranking",
    [
        TripletLoss(),
        TripletLoss(mining="all"),
        TripletLoss(0.1, "hardest", "mean"),
        InfoNCELoss(),
        AdaptiveContrastiveLoss(),
        AdaptiveContrastiveLoss(negatives="random"),
    ],
    ids=lambda loss: f"{type(loss).__name__} {loss.extra_repr()}",
)
def test_the_plateau(ranking: torch.nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that stays where every score is equal is said once, after a while; one that falls is not."""
    eye = torch.eye(8, dtype=torch.bool)
    watch = Watch(torch.nn.Linear(1, 1), ranking)
    state = torch.get_rng_state()
    equal = watch.loss_of_equal_scores(eye)
    assert torch.equal(torch.get_rng_state(), state)  # training does not notice
    if getattr(ranking, "negatives", None) != "random":
        assert equal == pytest.approx(float(ranking(torch.full((8, 8), 0.3), eye).detach()), rel=0.2)
    for _ in range(9):
        watch.training({"ranking": equal * 0.5}, eye, 50)
    assert capsys.readouterr().err == ""
    if getattr(ranking, "negatives", None) == "random":
        return
    watch.training({"ranking": equal}, eye, 50)
    assert capsys.readouterr().err == ""  # once is not enough
    for _ in range(5):
        watch.training({"ranking": equal}, eye, 50)
    assert capsys.readouterr().err.count("where every score is equal") == 1


def test_collapsed_sets(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(torch.nn.Linear(1, 1), TripletLoss())
    means = {"ranking": 0.1, "image_log_variance": -2.0, "text_log_variance": -12.0}
    for _ in range(5):
        watch.training(means, torch.eye(8, dtype=torch.bool), 50)
    err = capsys.readouterr().err
    assert (
        err.count("warning") == 1
        and "the embeddings of each text are nearly equal (log within-set variance -12.0)" in err
    )
