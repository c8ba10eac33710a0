"""The training loop."""

import math
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from vse.build import build_schedule, complete
from vse.checkpoints.native import TrainingState, save_checkpoint
from vse.config import Config, flatten
from vse.console import kept_in, progress_bar, say
from vse.distributed import agree, broadcast, is_first_to_report, is_main
from vse.errors import InputError, ProcessLost
from vse.files import claim_folder, write_text
from vse.runtime import describe_memory, peak_memory
from vse.training.evaluations import end_of_run
from vse.training.log import RunLog, describe_best, describe_evaluation
from vse.training.run import Training
from vse.training.start import saved_state
from vse.training.stop import Stopped, StopSignal
from vse.training.trackers import start_tracker

__all__ = ["Training", "dry_run", "train"]


def train(config: Config) -> None:
    """Train, and evaluate after each epoch or as ``eval.every`` says; continue from ``last.pt`` if there is one.

    After SIGTERM, SIGUSR1 or Ctrl-C the state is saved, and the process exits with 128 + the signal's number.

    Raises:
        InputError: The config, the data or a file is wrong, or the loss is not finite.
    """
    folder = Path(config.run.dir)
    with claim_folder(folder) if is_main() else nullcontext():
        state = _shared_state(config, folder)
        if state is not None and (ending := end_of_run(config, state["epoch"], state["history"])):
            longer = "train.epochs" if state["epoch"] >= config.train.epochs else "train.patience"
            print(f"{folder}: finished: {ending}, {describe_best(state['best'])}; raise {longer} to go on")
            return
        with kept_in(folder / "train.log") if is_main() else nullcontext():
            config = complete(config, None if state is None else state["config"])
            training = Training(config, state)
            say(f"{folder}: {training.describe()}")
            if state is not None:
                training.restore(state, folder / "last.pt")
                place = f"epoch {training.epoch + 1}, step {training.step + 1}"
                say(f"{folder}: going on with {place}; {describe_best(training.best)}")
                if change := _describe_new_end(training, state["config"]["train"]["epochs"]):
                    say(f"{folder}: {change}")
                del state
            elif training.source is not None:
                say(f"{folder}: starting from {training.source['path']}")
            _run(training, folder)


def _describe_new_end(training: Training, epochs: int) -> str:
    """Say at which learning rate a run goes on, where that depends on a number of epochs that was another before."""
    config = training.config
    content = config.model_dump()
    before = build_schedule(config.replaced({**content, "train": {**content["train"], "epochs": epochs}}))
    before.history = training.schedule.history
    now, step = training.total_steps / training.steps_per_epoch, 1 / training.steps_per_epoch
    old, new = (config.optim.lr * schedule(now, step) for schedule in (before, training.schedule))
    if old == new:
        return ""
    return f"with {config.train.epochs} epochs instead of {epochs} the learning rate is {new:.2g} now, not {old:.2g}"


def _run(training: Training, folder: Path) -> None:
    """Train until the run has ended or a signal comes."""
    config, tracker = training.config, None
    if is_main():
        settings = yaml.safe_dump(config.model_dump(), sort_keys=False)
        write_text(folder / "config.yaml", settings)
        tracker = start_tracker(config.run.tracker, folder, flatten(config.model_dump()), training.total_steps)
    places, may_overflow = (training.evaluations.last, training.total_steps), config.run.precision == "fp16"
    with StopSignal() as stop, RunLog(folder, *places, may_overflow, tracker) as log, training.in_one_line():
        try:
            while not training.ending:
                _train_epoch(training, folder, log, stop)
        except (Stopped, ProcessLost) as end:
            if isinstance(end, ProcessLost) and not stop:
                raise
            if is_main() and is_first_to_report():
                say(f"{folder}: stopped and saved; the same command goes on from here")
            number = stop.number or signal.SIGTERM  # 0: another process got the signal
            raise SystemExit(128 + number) from None
    say(f"{folder}: finished: {training.ending}, {describe_best(training.best)}")


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
    """Build everything and take training steps; nothing is written to the run folder.

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
    """Train and evaluate until the end of the epoch or of the run, or until a signal comes, and save the state."""
    config, size, steps = training.config, training.sampler.batch_size, training.steps_per_epoch
    check_steps = 1 if training.device.type == "cpu" else config.run.log_steps  # reading a loss waits for a GPU
    save_time = time.monotonic() + 60 * config.run.save_minutes
    training.start_epoch()
    title = f"epoch {training.epoch + 1}/{config.train.epochs}"
    total, done = len(training.sampler) * size, training.step * config.train.accumulate * size
    with progress_bar(title, " samples", total, done, stays=True) as bar:
        for batch in training.steps():
            if training.evaluations.is_due(training.total_steps):  # the state was saved after the last step
                found = _evaluate(training, folder, log, stop)
                _save(folder / "last.pt", training.state())
                say(f"{title}, step {training.step:,}/{steps:,}: {found}")
                if training.ending:
                    return
            is_first, is_logged = training.total_steps == 0, training.is_logged
            samples = training.batches_of_step * size
            log.add(training.train_step(batch), samples)
            if is_first:
                _log_start(training, log)
            training.step += 1
            bar.update(samples)
            # Asked once: a signal after this line waits for the next step. What one process wants, all of them do.
            is_stopping, is_late = agree(bool(stop), time.monotonic() > save_time)
            is_evaluated = training.evaluations.is_due(training.total_steps)
            is_due = is_stopping or is_late or is_evaluated or training.step == steps
            if is_due or training.step % check_steps == 0:
                bar.set_postfix_str(f"loss={log.check(training.epoch + 1, training.step):.3f}", refresh=False)
            if is_logged:
                _log_step(training, log)
            if is_due:
                _save(folder / "last.pt", training.state())
                save_time = time.monotonic() + 60 * config.run.save_minutes
            if is_stopping:
                raise Stopped
    _finish_epoch(training, folder, log, stop)


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
    machine = {"lr": rate, "memory_gib": peak_memory(training.device)}
    log.write(training.epoch + 1, training.total_steps, {"train": {**log.means(), **health, **machine}})
    training.monitor.check({**health, "ranking": ranking}, steps)


def _evaluate(training: Training, folder: Path, log: RunLog, stop: StopSignal) -> str:
    """Evaluate, save the best model, and log; the state has been saved before. Returns what to print."""
    epoch = training.epoch + 1 if training.step else training.epoch
    with stop.immediately(), log.paused():  # all is saved
        metrics = training.validate()
    is_better = training.evaluations.add(metrics, training.total_steps)
    if is_better:
        _save(folder / "best.pt", training.best_state(metrics))
    log.write(epoch, training.total_steps, {"dev": metrics})
    return describe_evaluation(metrics, training.best, is_better)


def _finish_epoch(training: Training, folder: Path, log: RunLog, stop: StopSignal) -> None:
    """Go to the next epoch, evaluate if it is time, and save the state."""
    loss = training.finish_epoch()
    is_due = training.evaluations.is_due(training.total_steps)
    found = [_evaluate(training, folder, log, stop)] if is_due else []
    log.restart()
    _save(folder / "last.pt", training.state())
    epochs = training.config.train.epochs
    left = log.time_left(training.total_steps, epochs * training.steps_per_epoch)
    say(f"epoch {training.epoch}/{epochs}: {'; '.join([*found, f'loss {loss:.4g}, {left} left'])}")


def _save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; of several processes, the main one does."""
    if is_main():
        save_checkpoint(path, state)
