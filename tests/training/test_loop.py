"""What the training loop does at each step and epoch, in small real runs."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, read_jsonl
from torch import Tensor, nn

from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.similarity import cosine
from vse.training import trainer

Cli = Callable[..., Outcome]
STEPS = 7  # of an epoch of the tiny corpus
EVERY_STEP = "run.log_steps=1"
SMALL_LOSS = "loss.ranking.reduction=mean"  # fp16's first scale, 65,536, overflows on the sum


def without_schedule(tiny: list[str]) -> list[str]:
    """The tiny run without the arguments of its own schedule."""
    return [setting for setting in tiny if not setting.startswith("optim.schedule")]


def train(cli: Cli, *settings: object) -> None:
    outcome = cli("train", *settings)
    assert outcome.code == 0, outcome.err


def logged(run: Path) -> list[dict[str, float]]:
    """What a run logged of its training, a record per logged step."""
    return [record["train"] for record in read_jsonl(run / "metrics.jsonl") if "train" in record]


def dev_rsums(run: Path) -> list[float]:
    return [record["dev"]["rsum"] for record in read_jsonl(run / "metrics.jsonl") if "dev" in record]


class BlindSimilarity(nn.Module):
    """Cosine, but evaluation sees equal scores except after the epochs ``sees``, counted from 0.

    Ties count against the model, so RSUM is at its lowest after every other epoch.
    """

    def __init__(self, sees: list[int] | None = None) -> None:
        super().__init__()
        self.sees, self.epoch = sees or [], 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scores = cosine(a, b)
        return scores if a.requires_grad or self.epoch in self.sees else torch.zeros_like(scores)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], str]:
    """The override that takes a :class:`BlindSimilarity`: blind([1])."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return lambda sees: f"model.similarity={{name: '{__name__}:BlindSimilarity', sees: {sees}}}"


# --- A step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("clip_norm", [0.01, None])
def test_the_gradient_is_clipped(tiny: list[str], precision: str, clip_norm: float | None) -> None:
    """A step of plain SGD is as long as the learning rate times the clipped norm; the log has the norm before."""
    settings = ["optim.name=sgd", "optim.lr=0.5", "optim.weight_decay=0", f"run.precision={precision}"]
    settings.append(SMALL_LOSS)
    clip = "null" if clip_norm is None else clip_norm
    training = trainer.Training(read_config(tiny[0], [*tiny[1:], *settings, f"train.clip_norm={clip}"]))
    training.start_epoch()
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    norm = float(training.train_step(next(training.batches()))["gradient_norm"])
    moves = [p.detach() - old for p, old in zip(training.model.parameters(), before, strict=True)]
    moved = torch.cat([move.flatten() for move in moves]).norm()
    assert 0.02 < norm < 10
    assert float(moved) == pytest.approx(0.5 * (norm if clip_norm is None else clip_norm), rel=1e-3)


def test_the_logged_norm_is_the_gradients_own_in_fp16(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """The scaler multiplies the loss by 65,536; nothing of that is left in the norm, nor in what is clipped."""
    for precision in ("fp32", "fp16"):
        settings = ["train.epochs=1", f"run.precision={precision}", f"run.dir={tmp_path / precision}"]
        train(cli, *tiny, EVERY_STEP, SMALL_LOSS, *settings)
    norms = [[record["gradient_norm"] for record in logged(tmp_path / name)] for name in ("fp32", "fp16")]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    assert load_checkpoint(tmp_path / "fp16" / "last.pt")["scaler"]["scale"] > 1


def test_each_record_names_its_epoch_and_step(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """Also those of evaluations within an epoch, after one, and of one that a stopped run had left."""
    train(cli, *tiny, EVERY_STEP, "eval.every=5 steps")
    found = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    epoch_of = {step: (step - 1) // STEPS + 1 for step in range(1, 2 * STEPS + 1)}
    assert [(r["epoch"], r["step"]) for r in found if "train" in r] == [(epoch_of[step], step) for step in epoch_of]
    assert [(r["epoch"], r["step"]) for r in found if "dev" in r] == [(epoch_of[step], step) for step in (5, 10, 14)]


def test_a_loss_that_is_not_finite_ends_a_run_at_once(cli: Cli, tiny: list[str]) -> None:
    """On a CPU also between two steps that are logged."""
    outcome = cli("train", *tiny, "optim.lr=1e30", "optim.name=sgd", "train.clip_norm=null", "run.log_steps=1000")
    assert outcome.code == 2 and outcome.error.startswith("error: epoch 1, step 2: ")


# --- What depends on the time --------------------------------------------------------------------------------------


def test_the_rate_changes_within_an_epoch(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    schedule = "optim.schedule={name: cosine, warmup_epochs: 0.5}"
    train(cli, *without_schedule(tiny), schedule, EVERY_STEP)
    expected = []
    for step in range(2 * STEPS):
        time = step / STEPS
        warm = min(1.0, (step + 1) / STEPS / 0.5)
        expected.append(5e-4 * warm * (1 + math.cos(math.pi * max(0.0, time - 0.5) / 1.5)) / 2)
    rates = [record["lr"] for record in logged(tmp_path / "run")]
    assert rates == pytest.approx(expected)
    assert len(set(rates[:STEPS])) > STEPS / 2
    longer = cli("train", *without_schedule(tiny), schedule, EVERY_STEP, "train.epochs=3")
    assert "run: with 3 epochs instead of 2 the learning rate is 0.00017 now, not 0" in longer.out
    again = cli("train", *without_schedule(tiny), schedule, EVERY_STEP, "train.epochs=3", "run.log_steps=2")
    assert "the learning rate is" not in again.out


def test_the_loss_rises_along_the_ramp(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    train(cli, *tiny, EVERY_STEP, "loss.ramp_epoch=1", "train.epochs=3", "loss.ranking.mining=all")
    ramps = [record["total"] / record["ranking"] for record in logged(tmp_path / "run")]
    expected = [*([1.0] * STEPS), *(step / STEPS for step in range(STEPS)), *([1.0] * STEPS)]
    assert ramps == pytest.approx(expected, abs=1e-6)


def test_the_warm_up_of_all_negatives_ends(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """Runs with one and with two epochs of it are alike in the first epoch, and not in the second."""
    for epochs in (1, 2):
        settings = [f"loss.ranking.warmup_epochs={epochs}", f"run.dir={tmp_path / str(epochs)}", EVERY_STEP]
        train(cli, *tiny, *settings)
    short, long = ([record["ranking"] for record in logged(tmp_path / name)] for name in ("1", "2"))
    assert short[:STEPS] == long[:STEPS]
    assert max(short[STEPS:]) < min(long[STEPS:]) / 2  # a sum over one negative a query, and over all of them


# --- What a run remembers ------------------------------------------------------------------------------------------


def test_an_interruption_in_mid_run_loses_no_state(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the second epoch, in fp16 and with a learned temperature: all ends as if nothing had happened."""
    settings = ["run.precision=fp16", "loss.ranking={name: info_nce, temperature: 0.07}", "optim.lr=0.01"]
    train(cli, *tiny, *settings, f"run.dir={tmp_path / 'whole'}")
    step = trainer.Training.train_step

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        if self.total_steps == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "train_step", interrupted)
        assert cli("train", *tiny, *settings).code == 128 + signal.SIGTERM
    train(cli, *tiny, *settings)
    found, expected = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "whole"))
    assert found["criterion"]["ranking.log_temperature"] != pytest.approx(math.log(0.07), abs=1e-3)
    assert expected["scaler"]["_growth_tracker"] > 0
    assert found["scaler"] == expected["scaler"]
    for part in ("criterion", "model"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    torch.testing.assert_close(found["optimiser"]["state"], expected["optimiser"]["state"], rtol=0, atol=0)


def test_the_best_epoch_is_kept_when_later_ones_are_worse(
    cli: Cli, tiny: list[str], tmp_path: Path, blind: Callable[[list[int]], str]
) -> None:
    """The second of four epochs is the best; the run is resumed after the third."""
    for epochs in (3, 4):
        train(cli, *tiny, blind([1]), f"train.epochs={epochs}")
    run = tmp_path / "run"
    first, second, third, fourth = dev_rsums(run)
    assert first == third == fourth < second
    best, last = load_checkpoint(run / "best.pt"), load_checkpoint(run / "last.pt")
    assert best["epoch"] == 2 and best["dev"]["rsum"] == second
    assert last["best"] == {"rsum": second, "epoch": 2}
    two = [f"run.dir={tmp_path / 'two'}", "train.epochs=2"]
    train(cli, *tiny, blind([1]), *two)
    expected = load_checkpoint(tmp_path / "two" / "last.pt")["model"]
    torch.testing.assert_close(best["model"], expected, rtol=0, atol=0)


def test_an_equal_epoch_is_not_better(
    cli: Cli, tiny: list[str], tmp_path: Path, blind: Callable[[list[int]], str]
) -> None:
    train(cli, *tiny, blind([]))
    rsums = dev_rsums(tmp_path / "run")
    assert len(rsums) == 2 and len(set(rsums)) == 1
    assert load_checkpoint(tmp_path / "run" / "best.pt")["epoch"] == 1


def test_a_plateau_is_remembered(cli: Cli, tiny: list[str], tmp_path: Path, blind: Callable[[list[int]], str]) -> None:
    """RSUM never rises after the first epoch; the rate depends on every validation so far, resumed or not."""
    settings = ["optim.schedule={name: plateau, patience: 0, factor: 0.5}", blind([]), "run.log_steps=100"]
    tiny = without_schedule(tiny)
    train(cli, *tiny, *settings, f"run.dir={tmp_path / 'whole'}", "train.epochs=5")
    for epochs in (3, 5):
        train(cli, *tiny, *settings, f"run.dir={tmp_path / 'parts'}", f"train.epochs={epochs}")
    for name in ("whole", "parts"):
        rates = [record["lr"] for record in logged(tmp_path / name)]
        assert rates == pytest.approx([5e-4, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5])
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    torch.testing.assert_close(whole["model"], parts["model"], rtol=0, atol=0)


def test_what_a_resumed_run_may_not_change(cli: Cli, tiny: list[str]) -> None:
    """Whatever decides the weights stays as it was."""
    train(cli, *tiny, "train.epochs=1")
    changes = ["train.batch_size=8", "train.clip_norm=1.0", "run.seed=2", "run.precision=bf16", "data.sampling=image"]
    changes += ["loss.ranking.margin=0.1", "optim.weight_decay=0.5", "model.text.encoder.drop=0.1"]
    changes += ["data.vocabulary.min_count=2", "optim.factors={text.encoder: 0.1}", "loss.ramp_epoch=1"]
    for change in changes:
        outcome = cli("train", *tiny, "train.epochs=2", change)
        assert outcome.code == 2
        assert "cannot go on under another config: " + change.split("={")[0].split("=")[0] in outcome.error
