"""Set health and warnings."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.losses import AdaptiveContrastiveLoss, Criterion, InfoNCELoss, TripletLoss
from vse.set_health import set_health
from vse.sets import Aggregated
from vse.training.watch import Watch, training_health


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
    monkeypatch.setattr("vse.set_health._ROWS", 6)
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


RANKINGS = {
    "hardest": TripletLoss(),
    "all": TripletLoss(mining="all"),
    "mean": TripletLoss(0.1, "hardest", "mean"),
    "info_nce": InfoNCELoss(),
    "adaptive": AdaptiveContrastiveLoss(),
    "constant": AdaptiveContrastiveLoss(negatives=3),
}


def step(ranking: nn.Module, embeddings: Tensor, captions: int) -> dict[str, float]:
    """What a training step logs, for images (8, 1, H) and as many captions each, with the same embeddings."""
    image_of_caption = torch.arange(len(embeddings)).repeat_interleave(captions)
    positives = torch.arange(len(embeddings))[:, None] == image_of_caption
    image, text = Aggregated(embeddings), Aggregated(embeddings[image_of_caption])
    scores = image.embeddings[:, 0] @ text.embeddings[:, 0].T
    logged = {
        "ranking": ranking(scores, positives),
        **training_health(Criterion(ranking), scores, positives, image, text),
    }
    return {name: value.item() for name, value in logged.items()}


@pytest.mark.parametrize("name", RANKINGS)
def test_the_plateau(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that stays where all scores are equal is said once, after a while; one that falls is not."""
    ranking = RANKINGS[name]
    watch = Watch(nn.Linear(1, 1), Criterion(ranking))
    apart, equal = torch.eye(8).unsqueeze(1), torch.eye(8)[:1].expand(8, 8).unsqueeze(1)  # one point: all scores are 1
    for steps, embeddings, expected in ((500, apart, 0), (50, equal, 0), (60, equal, 1), (60, equal, 0)):
        logged = [step(ranking, embeddings, captions) for captions in (1, 2, 5) * 4]  # batches of different sizes
        watch.training({key: sum(s[key] for s in logged) / len(logged) for key in logged[0]}, steps)
        assert capsys.readouterr().err.count("as if all scores were equal") == expected


def test_the_plateau_is_found_without_a_trace() -> None:
    random = Criterion(AdaptiveContrastiveLoss(negatives="random"))
    state = torch.get_rng_state()
    side = Aggregated(torch.eye(8).unsqueeze(1))
    training_health(random, torch.eye(8), torch.eye(8, dtype=torch.bool), side, side)
    assert torch.equal(torch.get_rng_state(), state)


def test_hints_fit_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    for name, ranking in RANKINGS.items():
        Watch(nn.Linear(1, 1), Criterion(ranking)).training({"ranking": 1.0, "plateau": 1.0}, 100)
        assert ("warmup_epochs" in capsys.readouterr().err) == (name in ("hardest", "all", "mean"))


def test_collapsed_sets(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(nn.Linear(1, 1), Criterion(TripletLoss()))
    means = {"ranking": 0.1, "plateau": 0.4, "image_log_variance": -2.0, "text_log_variance": -12.0}
    for _ in range(5):
        watch.training(means, 50)
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert "the embeddings of each text are nearly equal (log within-set variance -12.0)" in err
