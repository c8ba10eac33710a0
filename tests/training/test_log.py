"""What a run logs, and what is not finite."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import Outcome, read_jsonl, small_config

import vse
from vse.checkpoints.native import load_checkpoint
from vse.training import trainer
from vse.training.log import RunLog

Cli = Callable[..., Outcome]


def test_terms_appear_by_name_in_tensorboard(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli("train", *small_config("pvse/f30k_region_bigru.yaml", tiny), "train.epochs=1").code == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    logged = [r["train"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train" in r]
    for name in ("ranking", "diversity", "mmd", "image_log_variance", "text_slots_used"):
        assert [e.value for e in events.Scalars(f"train/{name}")] == pytest.approx([r[name] for r in logged])
    assert "dev/sets/image_log_variance" in events.Tags()["scalars"]
    total = [r["ranking"] + 0.1 * r["diversity"] + 0.01 * r["mmd"] for r in logged]
    assert [r["total"] for r in logged] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_the_run_and_keeps_the_last_good_state(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    forward = vse.TripletLoss.forward
    calls = []

    def poisoned(self: vse.TripletLoss, scores: Any, positives: Any) -> Any:
        calls.extend([1] * torch.is_grad_enabled())
        loss = forward(self, scores, positives)
        if len(calls) < 12:
            return loss
        return loss * math.nan if what == "loss" else loss + (scores.sum() * 0).sqrt()  # finite, its gradient is not

    monkeypatch.setattr(vse.TripletLoss, "forward", poisoned)
    outcome = cli("train", *tiny)
    assert outcome.code == 2
    assert re.search(r"epoch 2, step 5: the loss is \S+ and its gradient's norm nan.*last.pt keeps", outcome.error)
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["epoch"] == 1 and all(w.isfinite().all() for w in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that overflows after a finite loss and gradient, with a checkpoint due at once."""
    step = trainer.Training.train_step

    def overflowing(self: trainer.Training, batch: Any) -> Any:
        losses = step(self, batch)
        if self.total_steps == 9:
            with torch.no_grad():
                self.model.image.encoder.fc.weight[0, 0] = math.inf  # type: ignore
        return losses

    monkeypatch.setattr(trainer.Training, "train_step", overflowing)
    outcome = cli("train", *tiny, "run.save_minutes=0.000001")
    assert "image.encoder.fc.weight is no longer finite; " in outcome.error and outcome.code == 2
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["step"] == 2 and all(w.isfinite().all() for w in state["model"].values())


def test_logged_metrics_are_the_models_own(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """A fused optimiser changes parameters behind the back of whatever caches by version."""
    outcome = cli("train", *tiny, "optim.fused=true", "optim.lr=0.01", "train.epochs=3")
    assert outcome.code == 0, outcome.err
    last = [r["dev"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "dev" in r][-1]
    cli("eval", tmp_path / "run" / "last.pt", "--split", "dev", "--json", tmp_path / "dev.json")
    assert yaml.safe_load((tmp_path / "dev.json").read_text()) == last


def test_infinities_are_null(tmp_path: Path) -> None:
    """JSON has none; in fp16 the plateau and other numbers may overflow."""
    with RunLog(tmp_path, 0, 0) as log:
        log.write(1, 3, {"train": {"plateau": math.inf, "ranking": 2.0, "lr": math.nan}})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["train"] == {
        "plateau": None,
        "ranking": 2.0,
        "lr": None,
    }
