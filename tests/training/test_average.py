"""The exponential moving average of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import Outcome, read_jsonl, same_weights, weights_of
from processes import in_processes

from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.evaluation.score import evaluate
from vse.training import trainer
from vse.training.run import Training

Cli = Callable[..., Outcome]


def begin(tiny: list[str], *settings: str) -> Training:
    training = Training(read_config(tiny[0], [*tiny[1:], *settings]))
    training.start_epoch()
    return training


def test_it_is_the_average(tiny: list[str]) -> None:
    """A slow twin over five steps, with a part that is never trained; buffers are the model's."""
    training = begin(tiny, "optim.ema=0.7", "train.freeze=[text.encoder.embedding]")
    assert training.average is not None
    expected: dict[str, torch.Tensor] = {}
    for batch in list(training.batches())[:5]:
        training.train_step(batch)
        training.step += 1
        now = {name: p.detach().clone() for name, p in training.model.named_parameters()}
        expected = {name: 0.7 * expected.get(name, now[name]) + 0.3 * now[name] for name in now}
    found = dict(training.average.model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, msg=name)
    for name, buffer in training.model.named_buffers():
        assert torch.equal(buffer, training.average.model.get_buffer(name)), name
    assert not any(p.requires_grad for p in found.values())
    assert not same_weights(training.average.model.state_dict(), training.model.state_dict())


def test_it_is_evaluated_and_kept_as_the_best(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """last.pt has the weights that a run without the average has; best.pt has the averaged ones."""
    outcome = cli("train", *tiny, "optim.ema=0.9", "train.epochs=1", "optim.lr=0.01")
    assert outcome.code == 0, outcome.err
    cli("train", *tiny, f"run.dir={tmp_path / 'raw'}", "train.epochs=1", "optim.lr=0.01")
    run = tmp_path / "run"
    assert same_weights(weights_of(run), weights_of(tmp_path / "raw"))
    assert not same_weights(weights_of(run, "best.pt"), weights_of(run))
    state = load_checkpoint(run / "last.pt")
    assert same_weights(state["average"]["model"], weights_of(run, "best.pt")) and state["average"]["steps"] == 7
    training = begin(tiny, "optim.ema=0.9")
    training.model.load_state_dict(weights_of(run, "best.pt"))
    metrics = evaluate(training.model, training.dev_corpus, 256)
    logged = [record["dev"] for record in read_jsonl(run / "metrics.jsonl") if "dev" in record]
    assert logged[-1]["rsum"] == metrics["rsum"] == load_checkpoint(run / "best.pt")["dev"]["rsum"]
    outcome = cli("train", *tiny, "optim.ema=0.5", "train.epochs=2", "optim.lr=0.01")
    assert "optim.ema (0.9 in the run, 0.5 now)" in outcome.error


def test_from_a_checkpoint(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """The average begins with the weights after the first step."""
    assert cli("train", *tiny, "train.epochs=1").code == 0
    start = [f"train.start_from={tmp_path / 'run'}", f"run.dir={tmp_path / 'second'}", "optim.lr=1e-12"]
    assert cli("train", *tiny, *start, "optim.ema=0.99", "train.epochs=1", "optim.weight_decay=0").code == 0
    first, second = (dict(weights_of(tmp_path / name, "best.pt")) for name in ("run", "second"))
    for name, value in first.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(second[name], value)


def test_two_processes_have_the_same_average(tiny: list[str], tmp_path: Path) -> None:
    """That of one process, to rounding."""
    settings = [f"model.{side}.encoder.drop=0" for side in ("image", "text")] + ["optim.ema=0.6"]

    def averaged() -> dict[str, Any]:
        training = begin(tiny, *settings)
        training.model.double()
        assert training.average is not None
        training.average.model.double()
        for batch in list(training.batches())[:3]:
            training.train_step(batch._replace(images=batch.images.double()))
            training.step += 1
        return training.average.model.state_dict()

    one = averaged()

    def check() -> None:
        for name, value in averaged().items():
            torch.testing.assert_close(value, one[name], rtol=1e-9, atol=1e-9)

    in_processes(2, tmp_path, check)


def test_bad_decays(cli: Cli, tiny: list[str]) -> None:
    assert "optim.ema: input should be less than 1, got 1" in cli("train", *tiny, "optim.ema=1").error
    assert trainer.Training is Training
