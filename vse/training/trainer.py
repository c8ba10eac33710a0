"""The training loop."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from vse import build, runtime
from vse.checkpoints.load import load_weights, saved_state
from vse.checkpoints.native import save_checkpoint
from vse.config import Config
from vse.data.batches import Batch, BatchSampler, TrainingData, make_loader
from vse.errors import InputError
from vse.evaluation.score import evaluate
from vse.files import claim_folder, write_file
from vse.training.log import RunLog
from vse.training.stop import Stopped, StopSignal
from vse.training.watch import Watch, training_health


class Training:
    """Everything that a run trains and remembers: built from a config, resumed from ``last.pt`` when that is there."""

    def __init__(self, config: Config, state: dict[str, Any] | None = None) -> None:
        runtime.seed_everything(config.run.seed)
        self.config = config
        self.device = runtime.pick_device(config.run.device)
        self.train_corpus = build.build_corpus(config, "train")
        self.dev_corpus = build.build_corpus(config, "dev")
        self.in_dim = build.image_width(self.train_corpus, self.dev_corpus)
        self.vocabulary = build.build_vocabulary(config, self.train_corpus, state)
        self.model = build.build_model(config, self.in_dim, self.vocabulary, state).to(self.device)
        self.criterion = build.build_criterion(config).to(self.device)
        self.optimiser = build.build_optimiser(config, self.model, self.criterion)
        self.schedule = build.build_schedule(config)
        self.watch = Watch(self.model, self.criterion)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.run.precision == "fp16")
        text = self.model.text.encoder
        drop, keep_ends = getattr(text, "drop", 0.0), getattr(text, "keep_ends", False)
        data = TrainingData(self.train_corpus, self.vocabulary, drop, config.run.seed, keep_ends)
        self.sampler = BatchSampler(
            self.train_corpus.image_of_caption,
            len(self.train_corpus.images),
            config.train.batch_size,
            config.data.sampling,
            config.run.seed,
        )
        self.loader = make_loader(data, self.sampler, config.data.workers, self.device.type == "cuda")
        build.check_fit(config, self.model, self.criterion, data.sample().to(self.device))
        self.epoch = 0  # place of the next step
        self.step = 0
        self.best: dict[str, Any] = {"rsum": -1.0, "epoch": None}

    @property
    def total_steps(self) -> int:
        """Steps done since the start of the run."""
        return self.epoch * len(self.sampler) + self.step

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly here."""
        return {
            **self.weights(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "history": self.schedule.history,
            "train_captions": len(self.train_corpus.captions),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": runtime.random_states(),
        }

    def weights(self) -> dict[str, Any]:
        """What evaluation needs: no other file."""
        evaluation = build.evaluation_state(self.config, self.model, self.in_dim)
        return {**evaluation, "criterion": self.criterion.state_dict()}

    def restore(self, state: dict[str, Any], file: Path) -> None:
        """Go back to a saved place."""
        if state["train_captions"] != len(self.train_corpus.captions):
            raise InputError(
                f"{file}: this run trained on {state['train_captions']} captions, but {self.train_corpus.name} has "
                f"{len(self.train_corpus.captions)}"
            )
        load_weights(self.model, state["model"], file)
        self.criterion.load_state_dict(state["criterion"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.schedule.history = state.get("history", [])
        runtime.restore_random_states(state["random"])

    def describe(self) -> str:
        """Sizes of data and model, for the start of a run and for a dry run."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"train {len(self.train_corpus.images):,} images, {len(self.train_corpus.captions):,} captions; "
            f"dev {len(self.dev_corpus.images):,} images, {len(self.dev_corpus.captions):,} captions; "
            f"{len(self.vocabulary):,} words; {parameters / 1e6:.1f} M parameters on {self.device}; "
            f"{len(self.sampler):,} steps an epoch"
        )

    def start_epoch(self) -> None:
        """Training mode, and what depends on the epoch."""
        self.model.train()
        for module in (*self.model.modules(), *self.criterion.modules()):
            if callable(set_epoch := getattr(module, "set_epoch", None)):
                set_epoch(self.epoch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Forward pass: the criterion's parts by name, "total" among them, and the sets' health."""
        with runtime.autocast(self.device, self.config.run.precision):
            image = self.model.image(batch.images, batch.image_mask)
            text = self.model.text(batch.tokens, batch.token_mask)
        scores = self.model.similarity(image.embeddings, text.embeddings)  # float32: ranking is sensitive
        losses: dict[str, Tensor] = self.criterion(scores, batch.positives, image, text)
        return {**losses, **training_health(self.criterion, scores, batch.positives, image, text)}

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; returns the losses and the gradient's norm."""
        time = self.total_steps / len(self.sampler)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(time, 1 / len(self.sampler))
        self.criterion.set_time(time)
        losses = self.losses(batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(losses["total"]).backward()
        self.scaler.unscale_(self.optimiser)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.train.clip_norm or math.inf)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {name: value.detach() for name, value in {**losses, "gradient_norm": norm}.items()}

    def batches(self) -> Iterator[Batch]:
        """The rest of the epoch's batches, on the device."""
        self.sampler.epoch, self.sampler.first = self.epoch, self.step
        for batch in self.loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch.to(self.device)


def train(config: Config) -> None:
    """Train, validating after each epoch; go on where ``last.pt`` in the run folder left off.

    Raises InputError for the user's mistakes and when the loss is not finite; exits with 128 + signal after SIGTERM or
    Ctrl-C, the state saved.
    """
    folder = Path(config.run.dir)
    with claim_folder(folder):
        state = saved_state(config, folder)
        if state is not None and state["epoch"] >= config.train.epochs:
            print(f"{folder}: finished: {state['epoch']} epochs, {_best(state['best'])}; raise train.epochs to go on")
            return
        training = Training(config, state)
        print(f"{folder}: {training.describe()}")
        if state is not None:
            training.restore(state, folder / "last.pt")
            place = f"epoch {training.epoch + 1}, step {training.step + 1}"
            print(f"{folder}: going on with {place}; {_best(training.best)}", flush=True)
            del state
        settings = yaml.safe_dump(config.model_dump(), sort_keys=False)
        write_file(folder / "config.yaml", lambda file: file.write(settings.encode()))
        overflow = config.run.precision == "fp16"
        done = training.epoch, training.total_steps
        with StopSignal() as stop, RunLog(folder, *done, overflow) as log:
            try:
                while training.epoch < config.train.epochs:
                    _train_epoch(training, folder, log, stop)
                    _finish_epoch(training, folder, log, stop)
            except Stopped:
                print(f"{folder}: stopped and saved; the same command goes on from here")
                raise SystemExit(128 + stop.number) from None
        print(f"{folder}: finished: {config.train.epochs} epochs, {_best(training.best)}")


def dry_run(config: Config) -> None:
    """Build everything and take one step with it; write nothing."""
    training = Training(config)
    training.start_epoch()
    loss = float(training.train_step(next(training.batches()))["total"])
    training.watch.unused_parameters()
    if not math.isfinite(loss):
        raise InputError(f"dry run: the first loss is {loss}")
    print(f"dry run: {training.describe()}; first loss {loss:.4f}")


def _train_epoch(training: Training, folder: Path, log: RunLog, stop: StopSignal) -> None:
    """Train to the end of the epoch, or to a signal; save the place."""
    config, size = training.config, training.sampler.batch_size
    check_steps = 1 if training.device.type == "cpu" else config.run.log_steps  # reading a loss waits for a GPU
    save_time = time.monotonic() + 60 * config.run.save_minutes
    training.start_epoch()
    total, done = len(training.sampler) * size, training.step * size
    title = f"epoch {training.epoch + 1}/{config.train.epochs}"
    with tqdm(total=total, initial=done, desc=title, unit=" samples", unit_scale=True, mininterval=0.5) as bar:
        for batch in training.batches():
            log.add(training.train_step(batch), size)
            if training.total_steps == 0:
                training.watch.unused_parameters()
            training.step += 1
            bar.update(size)
            stopping = bool(stop)  # asked once: a signal after this line waits for the next step
            due = stopping or time.monotonic() > save_time or training.step == len(training.sampler)
            if due or training.step % check_steps == 0:
                bar.set_postfix(loss=f"{log.check(training.epoch + 1, training.step):.3f}", refresh=False)
            if training.step % config.run.log_steps == 0 or training.step == len(training.sampler):
                steps, means = log.steps, {**log.means(), "lr": training.optimiser.param_groups[0]["lr"]}
                log.write(training.epoch + 1, training.total_steps, {"train": means})
                training.watch.training(means, steps)
            if due:
                save_checkpoint(folder / "last.pt", training.state())
                save_time = time.monotonic() + 60 * config.run.save_minutes
            if stopping:
                raise Stopped


def _finish_epoch(training: Training, folder: Path, log: RunLog, stop: StopSignal) -> None:
    """Validate, keep the best, save the place."""
    config = training.config
    stop.saved = True
    metrics = evaluate(training.model, training.dev_corpus, config.eval.batch_size, config.eval.precision)
    stop.saved = False
    training.epoch, training.step = training.epoch + 1, 0
    better = metrics["rsum"] > training.best["rsum"]
    if better:
        training.best = {"rsum": metrics["rsum"], "epoch": training.epoch}
        save_checkpoint(folder / "best.pt", {**training.weights(), "epoch": training.epoch, "dev": metrics})
    training.schedule.history.append(metrics["rsum"])
    log.write(training.epoch, training.total_steps, {"dev": metrics})
    log.means()  # the next epoch's begin afresh
    save_checkpoint(folder / "last.pt", training.state())
    print(
        f"epoch {training.epoch}/{config.train.epochs}: dev RSUM {metrics['rsum']:.1f}, "
        f"I2T R@1 {metrics['i2t']['r1']:.1f}, T2I R@1 {metrics['t2i']['r1']:.1f}{' (best so far)' if better else ''}",
        flush=True,
    )


def _best(best: dict[str, Any]) -> str:
    return f"best dev RSUM {best['rsum']:.1f} at epoch {best['epoch']}" if best["epoch"] else "no validation yet"
