"""When a run is evaluated, which evaluation is the best, and when a run ends early."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, read_jsonl, same_weights, weights_of
from processes import in_processes
from torch import Tensor, nn

from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.config import EvalConfig
from vse.similarity import cosine
from vse.training import trainer
from vse.training.evaluations import Evaluations, has_waited
from vse.training.log import RunLog

Cli = Callable[..., Outcome]
STEPS = 7  # of an epoch of the tiny corpus


class BlindFrom(nn.Module):
    """Cosine, but from an epoch on evaluation sees equal scores, which count against the model."""

    def __init__(self, start: int = 1) -> None:
        super().__init__()
        self.start, self.epoch = start, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scores = cosine(a, b)
        return torch.zeros_like(scores) if self.epoch >= self.start and not a.requires_grad else scores


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return f"model.similarity={{name: '{__name__}:BlindFrom', start: 1}}"


def train(cli: Cli, *settings: object) -> str:
    outcome = cli("train", *settings)
    assert outcome.code == 0, outcome.err
    return outcome.out


def dev_records(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(run / "metrics.jsonl") if "dev" in record]


def same_state(run: Path, other: Path) -> None:
    """Everything that last.pt remembers is the same, to the bit."""
    found, expected = (load_checkpoint(folder / "last.pt") for folder in (run, other))
    for part in ("model", "criterion", "optimiser", "average", "best", "history", "evaluated", "epoch", "step"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0, msg=part)
    assert torch.equal(found["random"][0]["torch"], expected["random"][0]["torch"])


@pytest.mark.parametrize("every", ["1", "3 steps"])
def test_the_state_is_saved_before_each_evaluation(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    """A run that dies in an evaluation loses no step."""
    saved: list[tuple[int, int]] = []
    validate = trainer.Training.validate

    def watched(self: trainer.Training) -> dict[str, Any]:
        state = load_checkpoint(tmp_path / "run" / "last.pt")
        saved.append((state["epoch"] * STEPS + state["step"], self.total_steps))
        return validate(self)

    monkeypatch.setattr(trainer.Training, "validate", watched)
    train(cli, *tiny, f"eval.every={every}", "train.epochs=2")
    assert saved == [(step, step) for step in ((7, 14) if every == "1" else (3, 6, 9, 12, 14))]


# --- What is due, and what is best ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, [10, 20, 30]), (2, [20, 30]), (5, [30]), ("7 steps", [7, 14, 21, 28, 30]), ("1 step", list(range(1, 31)))],
)
def test_when_an_evaluation_is_due(every: int | str, expected: list[int]) -> None:
    """Once each, and always after the last step."""
    evaluations = Evaluations(EvalConfig(every=every), steps_per_epoch=10, total_steps=30)
    found = []
    for step in range(31):
        if evaluations.is_due(step):
            evaluations.add({"rsum": 0.0}, step)
            assert not evaluations.is_due(step)
            found.append(step)
    assert found == expected


@pytest.mark.parametrize(
    ("best", "values", "expected"),
    [("rsum", [3.0, 5.0, 5.0, 4.0], [True, True, False, False]), ("i2t.medr", [3.0, 5.0, 2.0], [True, False, True])],
)
def test_which_is_the_best(best: Any, values: list[float], expected: list[bool]) -> None:
    """A median rank is better when it is smaller; an equal one is not better."""
    evaluations = Evaluations(EvalConfig(best=best), steps_per_epoch=4, total_steps=100)
    metrics = [{"rsum": value, "i2t": {"medr": value}} for value in values]
    assert [evaluations.add(found, 2 * (i + 1)) for i, found in enumerate(metrics)] == expected
    last = 2 * (len(expected) - 1 - expected[::-1].index(True) + 1)
    assert evaluations.best == {best: (max if best == "rsum" else min)(values), "epoch": last / 4}


def test_patience() -> None:
    scores = [1.0, 3.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    slow = []  # the obvious twin: count what follows the last rise
    for count in range(len(scores) + 1):
        waited, best = 0, float("-inf")
        for score in scores[:count]:
            waited, best = (0, score) if score > best else (waited + 1, best)
        slow.append(waited >= 2)
    assert [has_waited(scores[:count], 2) for count in range(len(scores) + 1)] == slow
    assert not has_waited(scores, None)


# --- In runs -------------------------------------------------------------------------------------------------------


def test_patience_ends_a_run(cli: Cli, tiny: list[str], blind: str, tmp_path: Path) -> None:
    """The first epoch is the best; two worse ones end the run, which then is finished until the patience is raised."""
    settings = [*tiny, blind, "train.epochs=9", "train.patience=2"]
    out = train(cli, *settings)
    assert "epoch 3/9" in out and "epoch 4/9" not in out
    assert "finished: no better dev RSUM in 2 evaluations, best dev RSUM" in out and "at epoch 1\n" in out
    again = train(cli, *settings)
    assert "finished: no better dev RSUM in 2 evaluations" in again and "raise train.patience to go on" in again
    assert "going on with epoch 4, step 1" in train(cli, *settings, "train.patience=3", "train.epochs=4")


def test_another_metric_chooses(cli: Cli, tiny: list[str], blind: str, tmp_path: Path) -> None:
    """By RSUM the first epoch is the best; by a mean rank that is turned round, as a test of the sign, it is, too."""
    out = train(cli, *tiny, blind, "eval.best=t2i.meanr")
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    values = [record["dev"]["t2i"]["meanr"] for record in dev_records(tmp_path / "run")]
    assert values[0] < values[1] and best["epoch"] == 1
    assert load_checkpoint(tmp_path / "run" / "last.pt")["best"] == {"t2i.meanr": values[0], "epoch": 1}
    assert f", t2i.meanr {values[0]:.1f} (best so far)" in out
    assert f"best dev t2i.meanr {values[0]:.1f} at epoch 1" in out
    outcome = cli("train", *tiny, blind, "train.epochs=3")
    assert "eval.best (t2i.meanr in the run, rsum now)" in outcome.error


def test_an_unknown_metric(cli: Cli, tiny: list[str]) -> None:
    error = cli("train", *tiny, "eval.best=r1").error
    assert "eval.best: input should be 'rsum', 'i2t.r1'" in error and "'t2i.meanr', got 'r1'" in error


def test_evaluations_do_not_change_the_training(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """After every other epoch, after each, or every three steps: weights, BatchNorm and random states are the same."""
    settings = [*tiny, "optim.schedule={name: cosine}"]
    settings = [setting for setting in settings if "milestones" not in setting]
    ends = {"1": [7, 14], "2": [14], "3 steps": [3, 6, 9, 12, 14]}
    for every, steps in ends.items():
        out = train(cli, *settings, f"eval.every={every}", f"run.dir={tmp_path / every}")
        records = dev_records(tmp_path / every)
        assert [record["step"] for record in records] == steps
        assert [record["epoch"] for record in records] == [-(-step // STEPS) for step in steps]
    assert "epoch 2/2, step 2/7: dev RSUM" in out
    for every in ("2", "3 steps"):
        assert same_weights(weights_of(tmp_path / every), weights_of(tmp_path / "1"))
        states = [load_checkpoint(tmp_path / name / "last.pt")["random"][0]["torch"] for name in (every, "1")]
        assert torch.equal(*states)
    best = load_checkpoint(tmp_path / "3 steps" / "best.pt")
    rsums = [record["dev"]["rsum"] for record in dev_records(tmp_path / "3 steps")]
    assert best["dev"]["rsum"] == max(rsums)
    cli("eval", tmp_path / "3 steps", "--split", "dev", "--json", tmp_path / "dev.json")
    assert f'"rsum": {max(rsums)}' in (tmp_path / "dev.json").read_text()


CONTROLS = ["eval.every=3 steps", "optim.ema=0.8", "train.patience=3", "train.epochs=9", "eval.best=i2t.meanr"]


def train_and_stop(place: int, when: str, cli: Cli, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is ended at a step, in the evaluation after it, or between that evaluation's writes."""
    step, evaluate, write = trainer.Training.train_step, trainer.Training.validate, RunLog.write

    def stopped_step(self: trainer.Training, batch: Any) -> Any:
        if when == "step" and self.total_steps == place:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch)

    def stopped_evaluation(self: trainer.Training) -> Any:
        if when == "evaluation" and self.total_steps == place:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    def killed_write(self: RunLog, epoch: int, total_steps: int, record: dict[str, Any]) -> None:
        is_last = "dev" in record and total_steps == place
        write(self, epoch, total_steps, record)
        if is_last and when == "logged":
            raise SystemExit(9)  # as kill -9 here: nothing after this line is written

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "train_step", stopped_step)
        patch.setattr(trainer.Training, "validate", stopped_evaluation)
        patch.setattr(RunLog, "write", killed_write)
        assert cli("train", *settings).code in (9, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)


def epoch_losses(run: Path) -> list[str]:
    lines = (run / "train.log").read_text(encoding="utf-8").splitlines()
    return [line.split("loss ")[1].split(",")[0] for line in lines if line.startswith("epoch") and "loss " in line]


def test_interrupted_with_all_controls(
    cli: Cli, tiny: list[str], blind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between evaluations, in one, and between its writes: all ends as if nothing had happened, by patience."""
    tiny, whole = [*tiny, blind, *CONTROLS], tmp_path / "whole"
    train(cli, *tiny, f"run.dir={whole}")
    expected = [(record["step"], record["dev"]) for record in dev_records(whole)]
    assert expected[-1][0] in (12, 15) and epoch_losses(whole)  # the patience ends it
    for place, when in [(10, "step"), (9, "evaluation"), (12, "logged")]:
        run = tmp_path / f"{when} {place}"
        settings = [*tiny, f"run.dir={run}"]
        train_and_stop(place, when, cli, settings, monkeypatch)
        assert "going on with epoch 2, step" in train(cli, *settings)
        same_state(run, whole)
        assert same_weights(weights_of(run, "best.pt"), weights_of(whole, "best.pt"))
        assert [(record["step"], record["dev"]) for record in dev_records(run)] == expected
        assert epoch_losses(run) == epoch_losses(whole)


def test_a_checkpoint_from_before_goes_on(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """Its fields are those that a run without these controls needs."""
    train(cli, *tiny, f"run.dir={tmp_path / 'whole'}", "train.epochs=3")
    train(cli, *tiny)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for key in ("evaluated", "epoch_loss", "average"):
        del state[key]
    for section, key in [
        ("eval", "best"),
        ("eval", "every"),
        ("train", "limit"),
        ("train", "patience"),
        ("optim", "ema"),
    ]:
        del state["config"][section][key]
    torch.save(state, tmp_path / "run" / "last.pt")
    train(cli, *tiny, "train.epochs=3")
    same_state(tmp_path / "run", tmp_path / "whole")
    assert [record["step"] for record in dev_records(tmp_path / "run")] == [7, 14, 21]


def test_two_processes_end_together(tiny: list[str], blind: str, tmp_path: Path, cli: Cli) -> None:
    """After the same evaluation, in mid-epoch; the main process writes, and two processes or one can go on."""
    settings = [*tiny, blind, "eval.every=3 steps", "train.patience=3", "train.epochs=9", "optim.ema=0.9"]
    settings.append("train.limit=20")

    def train_in_two(name: str, *more: str) -> None:
        (tmp_path / name).mkdir()
        in_processes(2, tmp_path / name, lambda: trainer.train(read_config(settings[0], [*settings[1:], *more])))

    train_in_two("first")
    run = tmp_path / "run"
    steps = [record["step"] for record in dev_records(run)]
    state = load_checkpoint(run / "last.pt")
    assert steps == list(range(3, steps[-1] + 1, 3)) and state["evaluated"] == steps[-1]
    assert (state["epoch"], state["step"]) == divmod(steps[-1], 6) and len(state["random"]) == 2
    assert (run / "train.log").read_text().count("finished: no better dev RSUM in 3 evaluations") == 1
    assert "raise train.patience to go on" in train(cli, *settings)
    train_in_two("second", "train.patience=4")
    log = (run / "train.log").read_text()
    assert log.count("going on with epoch") == log.count("no better dev RSUM in 4 evaluations") == 1
    assert "2 processes saved it and 1 go on" in train(cli, *settings, "train.patience=5")


# --- What it trains on, and what it prints -------------------------------------------------------------------------


def test_training_on_a_part(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    out = train(cli, *tiny, "train.limit=0.5", "train.epochs=1")
    assert "train 12 images, 60 captions; dev 10 images" in out
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["train_captions"] == 60 and state["config"]["train"]["limit"] == 0.5
    assert "train.limit (0.5 in the run, 6 now)" in cli("train", *tiny, "train.limit=6").error
    error = cli("train", *tiny, "train.limit=25", f"run.dir={tmp_path / 'other'}").error
    assert "override 'train.limit=25': train.limit:" in error and "has 24 images, fewer than 25" in error


def test_the_line_of_an_epoch(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """The mean loss of all of its steps, and the time left; train.log has the lines of every start."""
    out = train(cli, *tiny, "run.log_steps=1", "eval.every=2")
    records = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train" in r]
    first, second = (sum(r["train"]["total"] for r in records if r["epoch"] == epoch) / STEPS for epoch in (1, 2))
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    assert lines[0].startswith(f"epoch 1/2: loss {first:.4g}, 0") and lines[0].endswith(" left")
    assert f"; loss {second:.4g}, 00:00 left" in lines[1] and "dev RSUM" in lines[1]
    log = tmp_path / "run" / "train.log"
    assert log.read_text(encoding="utf-8") == out
    more = train(cli, *tiny, "run.log_steps=1", "eval.every=2", "train.epochs=3")
    assert log.read_text(encoding="utf-8") == out + more


def test_the_mistake_that_ends_a_run_is_logged(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    outcome = cli("train", *tiny, "optim.lr=1e30", "optim.name=sgd", "train.clip_norm=null")
    assert (tmp_path / "run" / "train.log").read_text().splitlines()[-1] == outcome.error


def test_settings_of_a_run(tiny: list[str]) -> None:
    config = read_config(tiny[0], [*tiny[1:], "eval.every=5 steps"])
    assert config.replaced(config.model_dump()).eval.interval(7) == 5
