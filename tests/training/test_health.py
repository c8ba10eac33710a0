"""Warnings: what is said, when, and how often."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, Outcome, read_jsonl, same_weights, small_config, weights_of, without_word_vectors
from torch import Tensor, nn
from torch.nn import functional as F

from vse.build import build_criterion, build_model, read_config
from vse.checkpoints.native import load_checkpoint
from vse.config import Config
from vse.config_files import shipped_configs
from vse.data.vocabulary import MissingVocabulary
from vse.evaluation.json_file import rounded
from vse.losses import AdaptiveContrastiveLoss, Criterion, InfoNCELoss, TripletLoss
from vse.set_health import constant_share, set_health
from vse.sets import Aggregated, lengths_to_mask
from vse.similarity import max_cosine
from vse.training.health import HealthMonitor, batch_health, plateau_loss
from vse.training.run import Training

Cli = Callable[..., Outcome]
GOOD = {"ranking": 0.1, "plateau": 0.4}
STUCK = {"ranking": 0.4, "plateau": 0.4}


def monitor(start: dict[str, float] | None = None) -> HealthMonitor:
    monitor = HealthMonitor(nn.Linear(1, 1), Criterion(TripletLoss()))
    monitor.start = {"image_log_variance": -2.0, "text_log_variance": -2.0} if start is None else start
    return monitor


def collapsed(side: str, variance: float = -12.0) -> dict[str, float]:
    return {**GOOD, "image_log_variance": -2.0, "text_log_variance": -2.0, f"{side}_log_variance": variance}


# --- Collapsed sets ------------------------------------------------------------------------------------------------


def test_a_collapsed_set_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    watching = monitor()
    for _ in range(300):
        watching.check(collapsed("text"), 50)
    assert capsys.readouterr().err == (
        "warning: the embeddings of each text are nearly equal (log within-set variance -12.0, -2.0 at the start): "
        "the set has collapsed\n"
    )


@pytest.mark.parametrize(("variance", "lines"), [(-7.35, 0), (-9.9, 0), (-10.1, 1)])
def test_what_counts_as_collapsed(variance: float, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    """PIE-Net's sets, at -7.35 in the paper, still tell their embeddings apart."""
    for side in ("image", "text"):
        watching = monitor()
        for _ in range(2):
            watching.check(collapsed(side, variance), 50)
        err = capsys.readouterr().err
        assert err.count("warning: ") == err.count(f"embeddings of each {side} ") == lines


@pytest.mark.parametrize(("start", "lines"), [(-10.9, 0), (-10.1, 0), (-9.9, 1), (None, 0)])
def test_a_set_collapses_from_where_it_started(
    start: float | None, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not when it began nearly equal, nor when nobody knows where it began: in a run of an older version."""
    watching = monitor({} if start is None else {"text_log_variance": start})
    for _ in range(99):
        watching.check(collapsed("text"), 50)
    assert capsys.readouterr().err.count("the set has collapsed") == lines


def test_sets_that_training_never_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained PIE-Net for text is at -10.9; after 100 logged steps that is worth a line."""
    watching = monitor({"text_log_variance": -10.9})
    for _ in range(99):
        watching.check(collapsed("text", -10.8), 50)
    assert capsys.readouterr().err == ""
    for _ in range(99):
        watching.check(collapsed("text", -10.8), 50)
    expected = "warning: the embeddings of each text are nearly equal (log within-set variance -10.8): training has not"
    assert capsys.readouterr().err == f"{expected} parted them\n"


def shrink(name: str, tiny_bert: Path) -> Config:
    """A shipped config whose parts are small, without files of weights; the sets' sizes are kept."""
    settings = ["model.embed_dim=64", *without_word_vectors(ROOT / "configs" / name)]
    content = read_config(ROOT / "configs" / name)
    if content.model.image.encoder.name != "regions":
        settings += ["model.image.encoder.backbone=resnet18", "model.image.encoder.weights=null"]
        settings += ["model.image.encoder.train_norm=true"]
    if content.model.text.encoder.name == "bert":
        settings.append(f"model.text.encoder.model={tiny_bert}")
    for side in ("image", "text"):
        aggregator = getattr(content.model, side).aggregator
        if aggregator.name == "set_prediction":
            settings.append(f"model.{side}.aggregator.head_dim=16")
        if aggregator.arguments.get("grid"):
            settings.append(f"model.{side}.aggregator.grid=[2, 2]")
    return read_config(ROOT / "configs" / name, settings)


def with_sets() -> list[str]:
    """The shipped configs with more than one embedding a side."""
    names = sorted(f"{name}.yaml" for name in shipped_configs() if "/" in name)
    contents = {name: read_config(ROOT / "configs" / name) for name in names}
    towers = {name: (content.model.image, content.model.text) for name, content in contents.items()}
    sets = [n for n, sides in towers.items() if any("num_embeddings" in t.aggregator.arguments for t in sides)]
    assert len(sets) >= 8
    return sets


def first_step(config: Config) -> tuple[dict[str, float], nn.Module]:
    """Health and ranking loss of an untrained model on random inputs, and the model."""
    torch.manual_seed(0)
    encoder = config.model.image.encoder.name
    words = MissingVocabulary(35, "none")  # of whichever kind the text encoder reads
    model = build_model(config, 32 if encoder == "regions" else None, words).train()
    frames = {"video": (3,)}.get(encoder, ())
    images = torch.randn(8, 9, 32) if encoder == "regions" else torch.randn(8, *frames, 3, 64, 64)
    lengths = torch.randint(4, 9, (8,))
    image, text = model.image(images), model.text(torch.randint(5, 35, (8, 8)), lengths_to_mask(lengths, 8))
    scores, positives = model.similarity(image.embeddings, text.embeddings), torch.eye(8, dtype=torch.bool)
    criterion = build_criterion(config)
    health = batch_health(model.similarity, positives, image, text)
    health |= {"plateau": plateau_loss(criterion, scores, positives), "ranking": criterion.ranking(scores, positives)}
    return {name: value.item() for name, value in health.items()}, model


@pytest.mark.parametrize("name", with_sets())
def test_no_untrained_model_of_a_shipped_config_has_collapsed(
    name: str, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged, model = first_step(shrink(name, tiny_bert))
    assert {f"{side}_{what}" for side in ("image", "text") for what in ("log_variance", "constant_share")} < set(logged)
    criterion = Criterion(TripletLoss())
    for start in (logged, {}):  # in a run that knows its start, and in one that does not
        watching = HealthMonitor(model, criterion)
        watching.start = dict(start)
        for _ in range(20):
            watching.check({**logged, "ranking": 0.1, "plateau": 0.4}, 50)
        assert "nearly equal" not in capsys.readouterr().err
    for side in ("image", "text"):  # and when it does collapse, it is said
        watching = HealthMonitor(model, criterion)
        watching.start = logged
        for _ in range(2):
            watching.check({**logged, f"{side}_log_variance": -17.0, "ranking": 0.1, "plateau": 0.4}, 50)
        assert capsys.readouterr().err.count(f"embeddings of each {side} are nearly equal") == 1


def test_the_start_is_logged_and_remembered(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    config = small_config("dive/f30k_region_bigru.yaml", tiny)
    for epochs in (1, 2):  # the second time the run goes on
        assert cli("train", *config, f"train.epochs={epochs}").code == 0
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    starts = [record for record in records if "start" in record]
    assert len(starts) == 1 and (starts[0]["epoch"], starts[0]["step"]) == (1, 0)
    names = {"log_variance", "slots_used", "embeddings_used", "constant_share"}
    assert set(starts[0]["start"]) == {f"{side}_{name}" for side in ("image", "text") for name in names}
    assert set(starts[0]["start"]) < set(next(record["train"] for record in records if "train" in record))
    for name in ("best.pt", "last.pt"):
        assert load_checkpoint(tmp_path / "run" / name)["start"] == starts[0]["start"]
    variance, used = (starts[0]["start"][f"text_{name}"] for name in ("log_variance", "embeddings_used"))
    table = cli("eval", tmp_path / "run").out
    line = next(line for line in table.splitlines() if line.startswith("Text sets"))
    assert f"(at the start {variance:.2f})" in line and f"(at the start {used:.1f})" in line
    assert json.loads((tmp_path / "run" / "test.json").read_text())["sets"]["start"] == rounded(starts[0]["start"])


def test_a_set_that_collapses_in_a_run(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step all slots of the images are equal; a resumed run still knows where they began."""
    step = Training.train_step

    def collapsing(self: Training, batch: Any) -> Any:
        losses = step(self, batch)
        with torch.no_grad():
            slots: Any = self.model.image.aggregator.slots
            slots.copy_(slots[:1].expand_as(slots))
        return losses

    monkeypatch.setattr(Training, "train_step", collapsing)
    monkeypatch.setattr("vse.training.health._PATIENCE", 6)
    config = small_config("dive/f30k_region_bigru.yaml", tiny)
    settings = ["run.precision=fp32", "run.log_steps=6", "data.sampling=pair"]
    err = cli("train", *config, *settings, "train.epochs=1").err
    assert err.count("warning: ") == err.count("embeddings of each image are nearly equal") == 1
    assert "the set has collapsed" in cli("train", *config, *settings, "train.epochs=2").err


# --- The plateau ---------------------------------------------------------------------------------------------------

RANKINGS = {
    "hardest": TripletLoss(),
    "all": TripletLoss(mining="all"),
    "mean": TripletLoss(0.1, "hardest", "mean"),
    "info_nce": InfoNCELoss(),
    "adaptive": AdaptiveContrastiveLoss(),
    "constant": AdaptiveContrastiveLoss(negatives=3),
}


def step(ranking: nn.Module, embeddings: Tensor, captions: int) -> dict[str, float]:
    """What a step gives for images (8, H) and as many captions each, with the same embeddings."""
    image_of_caption = torch.arange(len(embeddings)).repeat_interleave(captions)
    positives = torch.arange(len(embeddings))[:, None] == image_of_caption
    scores = embeddings @ embeddings[image_of_caption].T
    plateau = plateau_loss(Criterion(ranking), scores, positives)
    return {"ranking": ranking(scores, positives).item(), "plateau": plateau.item()}


@pytest.mark.parametrize("name", RANKINGS)
def test_the_plateau(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that stays where all scores are equal is said once, after a while; one that falls is not."""
    ranking = RANKINGS[name]
    watching = HealthMonitor(nn.Linear(1, 1), Criterion(ranking))
    apart, equal = torch.eye(8), torch.eye(8)[:1].expand(8, 8)  # one point: all scores are 1
    for steps, embeddings, captions, expected in (
        (500, apart, 1, 0),
        (50, equal, 2, 0),
        (60, equal, 5, 1),
        (60, equal, 1, 0),
    ):
        watching.check(step(ranking, embeddings, captions), steps)
        assert capsys.readouterr().err.count("as if all scores were equal") == expected


@pytest.mark.parametrize(("ratio", "lines"), [(0.98, 0), (0.995, 1), (1.0, 1), (1.005, 1), (1.02, 0)])
@pytest.mark.parametrize("plateau", [0.02, 400.0])
def test_what_counts_as_the_plateau(
    plateau: float, ratio: float, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within one hundredth of it, whatever the loss's size; a loss above it is not at it either."""
    watching = monitor()
    for _ in range(2):
        watching.check({"ranking": ratio * plateau, "plateau": plateau}, 100)
    assert capsys.readouterr().err.count("as if all scores were equal") == lines


def test_one_logged_step_may_be_chance(capsys: pytest.CaptureFixture[str]) -> None:
    watching = monitor()
    for _ in range(5):
        watching.check(STUCK, 1000)
        watching.check(GOOD, 1000)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bad", [STUCK, collapsed("image"), collapsed("text")], ids=["plateau", "image", "text"])
def test_good_steps_make_bad_ones_forgotten(bad: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred bad steps in a row are worth a line; 120 with good ones between them are not."""
    watching = monitor()
    for logged, steps in ((bad, 60), (GOOD, 10), (bad, 60), (GOOD, 1), (bad, 99)):
        watching.check(logged, steps)
        assert capsys.readouterr().err == ""
    watching.check(bad, 1)
    assert capsys.readouterr().err.count("warning: ") == 1


def test_each_bad_state_has_its_own_count(capsys: pytest.CaptureFixture[str]) -> None:
    watching = monitor()
    for logged in (collapsed("image"), collapsed("text"), STUCK, collapsed("image"), STUCK):
        watching.check(logged, 60)
    assert capsys.readouterr().err == ""
    both = {**STUCK, "image_log_variance": -12.0, "text_log_variance": -13.0}
    watching.check(both, 40)
    assert "as if all scores were equal" in capsys.readouterr().err
    watching.check(both, 60)
    err = capsys.readouterr().err
    assert "embeddings of each image" in err and "variance -12.0" in err
    assert "embeddings of each text" in err and "variance -13.0" in err
    assert err.count("warning: ") == 2


def example() -> tuple[Tensor, Tensor]:
    """Scores whose positives stand far above the rest, of images with unequally many captions in no order."""
    torch.manual_seed(0)
    image_of_caption = torch.tensor([2, 0, 0, 3, 1, 2, 2, 0, 3, 1, 2, 4])
    positives = torch.arange(5)[:, None] == image_of_caption
    return torch.randn(5, 12) * 0.1 + 0.7 * positives, positives


def test_the_plateau_is_the_loss_of_the_mean_of_all_scores() -> None:
    """Of all scores, not of the positives': AdOpt's number of negatives, and with it its loss, depends on that."""
    scores, positives = example()
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
    found = plateau_loss(Criterion(ranking), scores, positives)
    assert found.item() == pytest.approx(sum(directions) / 2, rel=1e-5)
    at_positives = ranking(torch.full_like(scores, scores[positives].mean().item()), positives)
    assert abs(at_positives.item() - found.item()) > 0.05


@pytest.mark.parametrize("ranking", [TripletLoss(), TripletLoss(mining="all", reduction="mean"), InfoNCELoss()])
def test_the_plateau_has_neither_terms_nor_gradient(ranking: nn.Module) -> None:
    """It stands beside the ranking loss alone, without the regularisers and the ramp."""
    scores, positives = example()
    criterion = Criterion(ranking, {"more": (3.0, lambda image, text: torch.ones(()))}, ramp_epoch=0)
    criterion.set_time(0.5)
    found = plateau_loss(criterion, scores.requires_grad_(), positives)
    torch.testing.assert_close(found, ranking(torch.zeros(5, 12), positives).detach())
    assert not found.requires_grad


def test_the_plateau_is_found_without_a_trace() -> None:
    state = torch.get_rng_state()
    random = Criterion(AdaptiveContrastiveLoss(negatives="random"))
    plateau_loss(random, torch.eye(8), torch.eye(8, dtype=torch.bool))
    assert torch.equal(torch.get_rng_state(), state)


def test_hints_fit_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    for name, ranking in RANKINGS.items():
        watching = HealthMonitor(nn.Linear(1, 1), Criterion(ranking))
        for _ in range(2):
            watching.check({"ranking": 1.0, "plateau": 1.0}, 100)
        assert ("warmup_epochs" in capsys.readouterr().err) == (name in ("hardest", "all", "mean"))


# --- What is measured ----------------------------------------------------------------------------------------------


def test_the_sets_of_a_step_are_paired_by_its_positives() -> None:
    _, positives = example()
    image, text = (F.normalize(torch.randn(n, k, 4), dim=-1) for n, k in ((5, 3), (12, 2)))
    residual = torch.randn(5, 3, 7)
    found = batch_health(max_cosine, positives, Aggregated(image, residual=residual), Aggregated(text))
    expected = set_health(image, text, torch.tensor([2, 0, 0, 3, 1, 2, 2, 0, 3, 1, 2, 4]), max_cosine)
    expected["image_constant_share"] = constant_share(residual)
    assert found.keys() == expected.keys() and len(expected) == 7
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_what_is_not_logged_is_not_measured(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Health and plateau cost time: they are computed at the first step and where the log shows them."""
    calls: list[int] = []
    measure = Training.set_health

    def counting(self: Training, batch: Any) -> Any:
        calls.append(self.step)
        return measure(self, batch)

    monkeypatch.setattr(Training, "set_health", counting)
    path, *settings = small_config("pvse/f30k_region_bigru.yaml", tiny)
    training = Training(read_config(path, settings))
    training.start_epoch()
    for batch in training.batches():
        losses = training.train_step(batch)
        training.step += 1
    assert calls == [0, 2, 5, 6]  # of seven steps: the first, every third, the last
    assert set(losses) == {"total", "ranking", "diversity", "mmd", "gradient_norm"}


def test_measuring_leaves_no_trace(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """With dropout, batch statistics and random negatives, a run that logs every step ends as one that logs none."""
    config = small_config("dive/f30k_region_bigru.yaml", tiny)
    settings = ["loss.ranking={name: adaptive_contrastive, negatives: random}", "data.sampling=pair", "train.epochs=1"]
    for steps in (1, 100):
        run = tmp_path / str(steps)
        assert cli("train", *config, *settings, f"run.dir={run}", f"run.log_steps={steps}").code == 0
    assert same_weights(weights_of(tmp_path / "1"), weights_of(tmp_path / "100"))


def test_unused_parameters_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "spare": nn.Linear(2, 2, bias=False), "other": nn.Linear(2, 2)})
    model["other"].requires_grad_(False)
    model["used"](torch.ones(1, 2)).sum().backward()
    watching = HealthMonitor(model, Criterion(TripletLoss()))
    watching.check_parameters()
    line = "warning: spare.weight: nothing in the model uses these parameters, they are not trained\n"
    assert capsys.readouterr().err == line
    watching.check_parameters()
    assert capsys.readouterr().err == ""
    model["other"].requires_grad_(True)
    HealthMonitor(model, Criterion(TripletLoss())).check_parameters()
    assert "spare.weight and 2 more: nothing in the model uses" in capsys.readouterr().err
    model.requires_grad_(False)
    HealthMonitor(model, Criterion(TripletLoss())).check_parameters()
    assert capsys.readouterr().err == ""
