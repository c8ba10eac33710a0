"""Gradients of several batches in one step, for losses that allow it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, read_jsonl, same_weights, weights_of
from torch import Tensor, nn

from vse.build import read_config
from vse.losses import LOSSES
from vse.training.run import Training

Cli = Callable[..., Outcome]


class PullTogether(nn.Module):
    """A loss of the matching pairs alone: no pair is another's negative."""

    accumulates = True

    def forward(self, scores: Tensor, positives: Tensor) -> Tensor:
        return (1 - scores[positives]).mean()


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return [f"loss.ranking={{name: '{__name__}:PullTogether'}}"]


def begin(tiny: list[str], *settings: str) -> Training:
    """Nothing is random in it, and without BatchNorm a sample's embedding does not depend on its batch."""
    settings = (
        *settings,
        *(f"model.{side}.encoder.drop=0" for side in ("image", "text")),
        "model.image.encoder.mlp=null",
    )
    training = Training(read_config(tiny[0], [*tiny[1:], *settings]))
    training.start_epoch()
    return training


@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_it_is_a_step_of_a_large_batch(tiny: list[str], pull: list[str], clip: str) -> None:
    """Three steps with four batches of 4, and three with a batch of 16."""
    few = begin(tiny, *pull, "train.batch_size=4", "train.accumulate=4", f"train.clip_norm={clip}")
    many = begin(tiny, *pull, "train.batch_size=16", f"train.clip_norm={clip}")
    assert few.steps_per_epoch == 8 and many.steps_per_epoch == 7  # 30 batches and 7
    few.sampler.seed = many.sampler.seed
    for _, small, large in zip(range(3), few.steps(), many.steps(), strict=False):
        found, expected = few.train_step(small), many.train_step(large)
        assert float(found["total"]) == pytest.approx(float(expected["total"]), rel=1e-5)
        assert float(found["gradient_norm"]) == pytest.approx(float(expected["gradient_norm"]), rel=1e-4)
        few.step, many.step = few.step + 1, many.step + 1
    for name, value in many.model.state_dict().items():
        torch.testing.assert_close(few.model.state_dict()[name], value, atol=2e-4, rtol=1e-3, msg=name)


def test_a_run_and_its_interruption(
    cli: Cli, tiny: list[str], pull: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch has what is left; a run that stops goes on exactly."""
    settings = [*tiny, *pull, "train.accumulate=3", "run.log_steps=1"]
    assert cli("train", *settings, f"run.dir={tmp_path / 'whole'}").code == 0
    step = Training.train_step

    def killed(self: Training, batch: Any) -> Any:
        if self.total_steps == 4:
            raise SystemExit(9)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", killed)
        assert cli("train", *settings, "run.save_minutes=0.000001").code == 9
    outcome = cli("train", *settings)
    assert outcome.code == 0 and "3 steps an epoch" in outcome.out and "going on with epoch 2, step 2;" in outcome.out
    assert same_weights(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "train" in record] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_with_negatives_refuse(cli: Cli, tiny: list[str], loss: str) -> None:
    error = cli("train", *tiny, f"loss.ranking.name={loss}", "train.accumulate=4").error
    assert f"train.accumulate: {loss} judges a batch as a whole: its captions and images are each other's neg" in error
    assert "raise train.batch_size and set train.micro_batch" in error


def test_what_else_is_refused(cli: Cli, tiny: list[str], pull: list[str]) -> None:
    error = cli("train", *tiny, *pull, "train.accumulate=2", "loss.terms={mmd: {weight: 0.1}}").error
    assert "train.accumulate: mmd judges a batch as a whole" in error
    error = cli("train", *tiny, *pull, "train.accumulate=2", "train.queue={size: 40}").error
    assert "train.accumulate: does not go with train.queue" in error


def test_the_last_step_is_the_mean_of_the_batches_that_are_left(tiny: list[str], pull: list[str]) -> None:
    """30 batches of 4 in steps of 4 leave two: they are the last of the 15 batches of 8."""
    few = begin(tiny, *pull, "train.batch_size=4", "train.accumulate=4", "train.clip_norm=null")
    many = begin(tiny, *pull, "train.batch_size=8", "train.clip_norm=null")
    few.step, many.step = few.steps_per_epoch - 1, many.steps_per_epoch - 1
    found, expected = few.train_step(next(few.steps())), many.train_step(next(many.steps()))
    for name in ("total", "gradient_norm"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
