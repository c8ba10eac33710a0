"""Signals: the state is saved, and the run leaves."""

import os
import runpy
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome, launch_training, read_jsonl, same_weights, weights_of

from vse.checkpoints.native import load_checkpoint
from vse.training import stop as stop_module
from vse.training import trainer
from vse.training.log import RunLog
from vse.training.stop import Stopped, StopSignal

Cli = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("number", "group", "workers"),
    [
        pytest.param(signal.SIGTERM, False, "threads", id="SIGTERM to the process", marks=pytest.mark.slow),
        pytest.param(
            signal.SIGTERM, False, "processes", id="SIGTERM to the process with workers", marks=pytest.mark.slow
        ),
        pytest.param(signal.SIGINT, True, "processes", id="Ctrl-C"),
        pytest.param(signal.SIGUSR1, True, "processes", id="SIGUSR1 to the group", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, "processes", id="SIGTERM to the group", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, "threads", id="SIGINT to the process", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_leaves(
    tiny: list[str], tmp_path: Path, number: signal.Signals, group: bool, workers: str
) -> None:
    """Also when the signal reaches the processes that make batches; features are read by threads."""
    settings = ["train.epochs=500", "data.workers=2"]
    if workers == "processes":
        world = f"data.root={tmp_path / 'world'}"
        settings += ["data.format=synthetic", world, "data.options={train_scenes: 24, eval_scenes: 5}"]
    process = launch_training(tiny, *settings)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "stopped and saved; the same command goes on from here" in out and "Traceback" not in err
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["epoch"] * 7 + state["step"] > 0


@pytest.mark.parametrize("when", ["validating", "best saved", "logged"])
def test_stopped_around_a_validation(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A signal while validating leaves at once; a kill between the epoch's writes repeats or loses nothing."""
    whole = tmp_path / "whole"
    cli("train", *tiny, f"run.dir={whole}")

    def killed(*_: Any) -> Any:
        raise SystemExit(9)  # as kill -9 here: nothing after this line is written

    def signalled(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    write = RunLog.write
    with monkeypatch.context() as patch:
        if when == "validating":
            patch.setattr(trainer.Training, "validate", signalled)
        elif when == "best saved":
            patch.setattr(RunLog, "write", lambda *given: killed() if "dev" in given[-1] else write(*given))
        else:
            patch.setattr(
                RunLog, "write", lambda *given: (write(*given), killed()) if "dev" in given[-1] else write(*given)
            )
        outcome = cli("train", *tiny, "run.log_steps=100")
    assert outcome.code == (128 + signal.SIGTERM if when == "validating" else 9), outcome.err
    outcome = cli("train", *tiny, "run.log_steps=100")
    assert "going on with epoch 1, step 8;" in outcome.out
    run = tmp_path / "run"
    assert same_weights(weights_of(run), weights_of(whole)) and same_weights(
        weights_of(run, "best.pt"), weights_of(whole, "best.pt")
    )
    dev = [[r for r in read_jsonl(folder / "metrics.jsonl") if "dev" in r] for folder in (run, whole)]
    assert dev[0] == dev[1]


def test_immediately() -> None:
    """A signal ends the block at once, as does one that came before; a second one does not disturb the way out."""
    with StopSignal() as stop:
        with pytest.raises(Stopped):
            with stop.immediately():
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("the signal came late")
        assert stop.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # outside of the block it is remembered
        with pytest.raises(Stopped), stop.immediately():
            raise AssertionError("the block ran although a signal had come")
    with StopSignal() as stop:
        with stop.immediately():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_the_handlers_from_before_come_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_system_without_these_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither SIGHUP nor SIGUSR1."""
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    module = runpy.run_path(stop_module.__file__)
    with module["StopSignal"]() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM


def test_a_schedulers_warning_saves_and_leaves(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1, which Slurm sends before the time is up."""
    step = trainer.Training.train_step

    def warned(self: trainer.Training, batch: Any) -> Any:
        if self.total_steps == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch)

    monkeypatch.setattr(trainer.Training, "train_step", warned)
    outcome = cli("train", *tiny)
    assert outcome.code == 128 + signal.SIGUSR1 and "stopped and saved" in outcome.out
    assert "stopped and saved" in (tmp_path / "run" / "train.log").read_text()
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (state["epoch"], state["step"]) == (0, 4)


def test_nohup_is_respected() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_closed_pipe_loses_nothing(tiny: list[str], tmp_path: Path) -> None:
    process = launch_training(tiny)
    assert process.stdout
    process.stdout.close()
    _, err = process.communicate()
    assert "Traceback" not in err and process.returncode == 1
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "best.pt").exists()
