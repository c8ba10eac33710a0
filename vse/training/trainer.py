"""The training loop."""

import math
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from vse.build import complete
from vse.checkpoints.native import BestState, TrainingState, save_checkpoint
from vse.config import Config
from vse.distributed import agree, broadcast, is_first_to_report, is_main
from vse.errors import InputError, ProcessLost
from vse.files import claim_folder, write_file
from vse.runtime import describe_memory
from vse.training.log import RunLog, describe_best, describe_epoch
from vse.training.run import Training
from vse.training.start import saved_state
from vse.training.stop import Stopped, StopSignal

__all__ = ["Training", "dry_run", "train"]


def train(config: Config) -> None:
    """Train and validate after each epoch; continue from ``last.pt`` if the run folder has one.

    After SIGTERM or Ctrl-C the state is saved, and the process exits with 128 + the signal's number.

    Raises:
        InputError: The config, the data or a file is wrong, or the loss is not finite.
    """
    folder = Path(config.run.dir)
    with claim_folder(folder) if is_main() else nullcontext():
        state = _shared_state(config, folder)
        if state is not None and state["epoch"] >= config.train.epochs:
            best = describe_best(state["best"])
            print(f"{folder}: finished: {state['epoch']} epochs, {best}; raise train.epochs to go on")
            return
        config = complete(config, None if state is None else state["config"])
        training = Training(config, state)
        print(f"{folder}: {training.describe()}")
        if state is not None:
            training.restore(state, folder / "last.pt")
            place = f"epoch {training.epoch + 1}, step {training.step + 1}"
            print(f"{folder}: going on with {place}; {describe_best(training.best)}", flush=True)
            del state
        elif training.source is not None:
            print(f"{folder}: starting from {training.source['path']}", flush=True)
        if is_main():
            settings = yaml.safe_dump(config.model_dump(), sort_keys=False)
            write_file(folder / "config.yaml", lambda file: file.write(settings.encode()))
        done, may_overflow = (training.epoch, training.total_steps), config.run.precision == "fp16"
        with StopSignal() as stop, RunLog(folder, *done, may_overflow) as log, training.in_one_line():
            try:
                while training.epoch < config.train.epochs:
                    _train_epoch(training, folder, log, stop)
                    with stop.immediately():  # all is saved
                        metrics = training.validate()
                    _finish_epoch(training, folder, log, metrics)
            except (Stopped, ProcessLost) as end:
                if isinstance(end, ProcessLost) and not stop:
                    raise
                if is_main() and is_first_to_report():
                    print(f"{folder}: stopped and saved; the same command goes on from here")
                number = stop.number or signal.SIGTERM  # 0: another process got the signal
                raise SystemExit(128 + number) from None
        print(f"{folder}: finished: {config.train.epochs} epochs, {describe_best(training.best)}")


def _shared_state(config: Config, folder: Path) -> TrainingState | None:
    """The state to go on from, None for a new run; each process reads it once the main one has found it good."""
    state = saved_state(config, folder) if is_main() else None
    place = broadcast(None if state is None else (state["epoch"], state["step"]))
    if place is None or is_main():
        return state
    state = saved_state(config, folder)
    if state is None or (state["epoch"], state["step"]) != place:
        raise InputError(f"run.dir: the processes find different runs in {folder}; expected a folder that all share")
    return state


def dry_run(config: Config) -> None:
    """Build everything and take training steps, without writing a file.

    The first step is that of a new run. If the model unfreezes later, another one is taken as in the last epoch, since
    that is when a step needs the most memory. On a GPU the line that is printed tells how much it took.

    Args:
        config: The run's config.

    Raises:
        InputError: A part of the config or the data is wrong, or the first loss is not finite.
    """
    training = Training(complete(config))
    training.start_epoch()
    batch = next(training.batches())
    with training.in_one_line():
        loss = float(training.train_step(batch)["total"])
        training.monitor.check_parameters()
        if not math.isfinite(loss):
            raise InputError(f"dry run: the first loss is {loss}")
        trained = training.count_trained()
        training.epoch = config.train.epochs - 1
        training.start_epoch()
        unfreezes = training.count_trained() > trained
        if unfreezes:
            training.train_step(batch)
    steps = "; a step of the last epoch, in which more parameters are trained, works too" if unfreezes else ""
    memory = describe_memory(training.device)
    print(f"dry run: {training.describe()}; first loss {loss:.4f}{steps}" + (f"; {memory}" if memory else ""))


def _train_epoch(training: Training, folder: Path, log: RunLog, stop: StopSignal) -> None:
    """Train until the end of the epoch or until a signal comes, and save the state."""
    config, size, steps = training.config, training.sampler.batch_size, len(training.sampler)
    check_steps = 1 if training.device.type == "cpu" else config.run.log_steps  # reading a loss waits for a GPU
    save_time = time.monotonic() + 60 * config.run.save_minutes
    training.start_epoch()
    title = f"epoch {training.epoch + 1}/{config.train.epochs}"
    total, done = steps * size, training.step * size
    with tqdm(total=total, initial=done, desc=title, unit=" samples", unit_scale=True, mininterval=0.5) as bar:
        for batch in training.batches():
            is_first, is_logged = training.total_steps == 0, training.is_logged
            log.add(training.train_step(batch), size)
            if is_first:
                _log_start(training, log)
            training.step += 1
            bar.update(size)
            # Asked once: a signal after this line waits for the next step. What one process wants, all of them do.
            is_stopping, is_late = agree(bool(stop), time.monotonic() > save_time)
            is_due = is_stopping or is_late or training.step == steps
            if is_due or training.step % check_steps == 0:
                bar.set_postfix(loss=f"{log.check(training.epoch + 1, training.step):.3f}", refresh=False)
            if is_logged:
                _log_step(training, log)
            if is_due:
                _save(folder / "last.pt", training.state())
                save_time = time.monotonic() + 60 * config.run.save_minutes
            if is_stopping:
                raise Stopped


def _log_start(training: Training, log: RunLog) -> None:
    """Log the health of the untrained model, which the first step has measured."""
    training.monitor.check_parameters()
    training.monitor.start = {name: float(value) for name, value in training.health.items() if name != "plateau"}
    if training.monitor.start:
        log.write(1, 0, {"start": training.monitor.start})


def _log_step(training: Training, log: RunLog) -> None:
    """Log the mean losses since the last logged step, and the health at this step."""
    health = {name: float(value) for name, value in training.health.items()}
    ranking, steps = float(log.last["ranking"]), log.steps
    rate = training.optimiser.param_groups[0]["lr"]
    log.write(training.epoch + 1, training.total_steps, {"train": {**log.means(), **health, "lr": rate}})
    training.monitor.check({**health, "ranking": ranking}, steps)


def _finish_epoch(training: Training, folder: Path, log: RunLog, metrics: dict[str, Any]) -> None:
    """Save the best model, log the validation, and save the state."""
    training.epoch, training.step = training.epoch + 1, 0
    is_better = metrics["rsum"] > training.best["rsum"]
    if is_better:
        training.best = {"rsum": metrics["rsum"], "epoch": training.epoch}
        best: BestState = {**training.run_state(), "dev": metrics}
        _save(folder / "best.pt", best)
    training.schedule.history.append(metrics["rsum"])
    log.write(training.epoch, training.total_steps, {"dev": metrics})
    log.restart()
    _save(folder / "last.pt", training.state())
    print(describe_epoch(training.epoch, training.config.train.epochs, metrics, is_better), flush=True)


def _save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; of several processes, the main one does."""
    if is_main():
        save_checkpoint(path, state)
