"""The state of a run, and its training step."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, amp, nn

from vse import build, distributed, runtime
from vse.checkpoints.load import load_weights
from vse.checkpoints.native import BestState, RunState, TrainingState, evaluation_state
from vse.config import Config
from vse.console import say, warn
from vse.contracts import check_fit
from vse.data.batches import Batch, BatchSampler, TrainingData, check_shared_memory, make_loader
from vse.data.corpus import Corpus
from vse.data.part import choose_images
from vse.data.resident import place
from vse.encoders.base import traits_of
from vse.errors import InputError
from vse.evaluation.score import evaluate
from vse.losses import ScoreTable
from vse.model import Tower, VSEModel
from vse.sets import Aggregated, at_least_float32, widen
from vse.similarity import compare
from vse.training.average import WeightAverage
from vse.training.chunks import check_chunks, encode_in_chunks
from vse.training.compiled import CompiledTower, begin_step, pad_captions
from vse.training.evaluations import Evaluations, end_of_run
from vse.training.health import HealthMonitor, batch_health, plateau_loss
from vse.training.mining import is_due, mine
from vse.training.queue import EmbeddingQueue
from vse.training.scheduled import set_epoch
from vse.training.start import start
from vse.training.trackers import check_tracker


def gather_aggregated(own: Aggregated, total: int) -> Aggregated:
    """Gather what an aggregator gave in all processes, without the attention, which no loss of this package reads.

    Where the processes' sets differ in size, all are padded to the largest set.

    Args:
        own: The embeddings, residual, mask and context of this process's share.
        total: Number of samples of all shares.

    Returns:
        Embeddings and residual (total, K, H) and context (total, H), with gradients, and the mask (total, K) if sets
        differ in size. A single process gets its own result back, as it is.
    """
    if distributed.world_size() == 1:
        return own
    size = own.embeddings.shape[1]
    places, others, masked = distributed.largest(size, -size, int(own.mask is not None))
    if masked or places != -others:
        own = widen(own, places)
    mask = None if own.mask is None else distributed.gather(own.mask.to(torch.uint8), total).bool()
    residual, context = (
        None if part is None else distributed.gather(at_least_float32(part), total)
        for part in (own.residual, own.context)
    )
    return Aggregated(distributed.gather(own.embeddings, total), None, residual, mask, context)


def step_seed(seed: int, *place: int) -> int:
    """Derive a seed from the run's seed and a place in the run.

    Args:
        seed: The run's seed.
        place: Whole numbers from 0 that tell the place, such as the number of finished steps.

    Returns:
        A seed from 0 to 2^62 - 1; another place has an independent one.
    """
    return int(np.random.default_rng((seed, *place)).integers(1 << 62))


def read_training_corpus(config: Config) -> Corpus:
    """Read the training split, or the part of it that ``train.limit`` asks for.

    Args:
        config: The config.

    Returns:
        The corpus.

    Raises:
        InputError: The data is missing or damaged, or has fewer images than the limit.
    """
    corpus, limit = build.build_corpus(config, "train"), config.train.limit
    if limit is None:
        return corpus
    try:
        return choose_images(corpus, limit, config.run.seed)
    except InputError as error:
        raise config.error("train.limit", str(error)) from None


class Judged(NamedTuple):
    """A batch whose gradient has been taken: what the towers gave, what the loss judged, and the losses by name."""

    batch: Batch
    image: Aggregated
    text: Aggregated
    tables: list[ScoreTable]
    losses: dict[str, Tensor]


class Training:
    """The state of a run: everything that it trains and remembers.

    Args:
        config: The run's config.
        state: The content of last.pt for a run that continues; :meth:`restore` loads its weights.

    Raises:
        InputError: The data, or a part of the config, is missing or does not fit.
    """

    def __init__(self, config: Config, state: TrainingState | None = None) -> None:
        check_tracker(config.run.tracker)
        runtime.seed_everything(config.run.seed)
        self.config = config
        self.device = runtime.pick_device(config.run.device)
        runtime.set_algorithms(config.run.deterministic, is_alike=config.model.image.encoder.name in ("grid", "timm"))
        self.train_corpus = read_training_corpus(config)
        self.dev_corpus = build.build_corpus(config, "dev")
        self.digests = {"train": self.train_corpus.digest, "dev": self.dev_corpus.digest}
        self.in_dim = build.image_width(self.train_corpus, self.dev_corpus)
        with distributed.first_on_each_machine():  # it splits the captions into words
            model, self.vocabulary, self.source = start(config, self.train_corpus, self.in_dim, state)
            text = traits_of(model.text.encoder)
            placed = place(self.train_corpus.images, config.data.resident, self.device)
            self.finish_images = placed.finish
            data = TrainingData(
                self.train_corpus,
                self.vocabulary,
                text.drop,
                config.run.seed,
                text.keep_ends,
                distributed.rank(),
                distributed.world_size(),
                placed.read,
                config.data.views,
            )
        self.model = model.to(self.device)
        if self.device.type == "cuda":  # its tensor cores take channels last
            for parameter in self.model.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.criterion = build.build_criterion(config, model).to(self.device)
        build.freeze(config, self.model)
        self.optimiser = build.build_optimiser(config, self.model, self.criterion)
        self.shared_parameters = self._by_what_is_shared()
        self.schedule = build.build_schedule(config)
        self.scaler = amp.GradScaler(self.device.type, enabled=config.run.precision == "fp16")
        self.monitor = HealthMonitor(self.model, self.criterion)
        self.sampler = BatchSampler(
            self.train_corpus.image_of_caption,
            len(self.train_corpus.images),
            config.train.batch_size,
            config.data.sampling,
            config.run.seed,
        )
        sample, workers = data.sample(), config.data.workers
        if not placed.in_threads:
            images = self.sampler.batch_size * config.data.views
            check_shared_memory(sample, distributed.share_of_machine(images), workers)
        self.loader = make_loader(data, self.sampler, workers, self.device.type == "cuda", placed.in_threads)
        with self.in_one_line():
            check_fit(config, self.model, self.criterion, self.on_device(sample))
        self.check_micro_batch()
        self.check_accumulation()
        self.compiled = self.compile_towers(self.on_device(sample)) if config.run.compile else {}
        self.epoch = 0  # place of the next step
        self.step = 0
        self.queue = (
            None if config.train.queue is None else EmbeddingQueue(self.model, **config.train.queue.model_dump())
        )
        self.average = None if config.optim.ema is None else WeightAverage(self.model, config.optim.ema)
        self.evaluations = Evaluations(config.eval, self.steps_per_epoch, config.train.epochs * self.steps_per_epoch)
        self.schedule.history = self.evaluations.scores
        self.epoch_loss: tuple[Any, int] = 0.0, 0  # sum of the losses of this epoch's steps, and their number
        self.health: dict[str, Tensor] = {}  # of the last step that is logged
        if not distributed.is_main():  # dropout and the like draw other numbers in each process
            runtime.seed_everything(step_seed(config.run.seed, 0, distributed.rank()))

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch, each with one batch or with those of ``train.accumulate``."""
        return math.ceil(len(self.sampler) / self.config.train.accumulate)

    @property
    def batches_of_step(self) -> int:
        """Number of batches that the next step takes; the last step of an epoch may have fewer than the others."""
        accumulate = self.config.train.accumulate
        return min(accumulate, len(self.sampler) - self.step * accumulate)

    @property
    def total_steps(self) -> int:
        """Number of finished steps since the start of the run."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def ending(self) -> str:
        """Why the run has ended; "" while it goes on."""
        return end_of_run(self.config, self.epoch, self.evaluations.scores)

    @property
    def best(self) -> dict[str, Any]:
        """The best evaluation so far, see :class:`vse.training.evaluations.Evaluations`."""
        return self.evaluations.best

    @property
    def evaluated(self) -> VSEModel:
        """The model that is evaluated: the averaged one with ``optim.ema``."""
        return self.model if self.average is None else self.average.model

    @property
    def is_logged(self) -> bool:
        """Whether the next step is logged."""
        number = self.step + 1
        return number % self.config.run.log_steps == 0 or number == self.steps_per_epoch

    def run_state(self) -> RunState:
        """Return what evaluation needs, and the source of the run."""
        return {
            **evaluation_state(self.config, self.model, self.in_dim),
            "criterion": self.criterion.state_dict(),
            "source": self.source,
            "epoch": self.epoch,
            "start": self.monitor.start,
        }

    def best_state(self, metrics: dict[str, Any]) -> BestState:
        """Return the content of best.pt after an evaluation with these metrics, with the weights that had them."""
        return {**self.run_state(), "model": self.evaluated.state_dict(), "dev": metrics}

    def state(self) -> TrainingState:
        """Return everything that is needed to continue exactly from here; all processes must ask for it together."""
        return {
            **self.run_state(),
            "step": self.step,
            "best": self.evaluations.best,
            "history": self.evaluations.scores,
            "evaluated": self.evaluations.last,
            "epoch_loss": (float(self.epoch_loss[0]), self.epoch_loss[1]),
            "average": None if self.average is None else self.average.state(),
            "train_captions": len(self.train_corpus.captions),
            "digests": self.digests,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "queue": None if self.queue is None else self.queue.state(),
            "confused": None if self.sampler.confused is None else torch.from_numpy(self.sampler.confused),
            "random": distributed.collect(runtime.random_states()),
        }

    def restore(self, state: TrainingState, file: Path) -> None:
        """Continue from a saved state.

        Args:
            state: The state.
            file: The file that it was read from, for messages.

        Raises:
            InputError: The data or the model is not that of the state.
        """
        captions = len(self.train_corpus.captions)
        if state["train_captions"] != captions:
            there = f"{file}: this run trained on {state['train_captions']} captions"
            raise InputError(f"{there}, but {self.train_corpus.name} has {captions}")
        for split, digest in (state["digests"] or {}).items():
            if digest != self.digests[split]:
                raise InputError(f"{file}: this run began with other captions of {split} than there are now")
        load_weights(self.model, state["model"], file)
        self.criterion.load_state_dict(state["criterion"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.queue is not None and state["queue"] is not None:
            self.queue.restore(state["queue"], self.device)
        self.sampler.confused = None if state["confused"] is None else state["confused"].numpy()
        if self.average is not None and state["average"] is not None:
            self.average.restore(state["average"])
        self.epoch, self.step, self.epoch_loss = state["epoch"], state["step"], state["epoch_loss"]
        evaluated = state["evaluated"]
        self.evaluations.last = self.epoch * self.steps_per_epoch if evaluated is None else evaluated
        self.evaluations.best = state["best"]
        self.schedule.history = self.evaluations.scores = state["history"]
        self.monitor.start = state["start"]
        if len(state["random"]) == distributed.world_size():
            if not runtime.restore_random_states(state["random"][distributed.rank()]):
                say(
                    f"{file}: saved on a GPU and continued without one, or the reverse: random draws such as dropout "
                    f"differ from here on"
                )
        else:
            runtime.seed_everything(step_seed(self.config.run.seed, self.total_steps, distributed.rank()))
            say(
                f"{file}: {len(state['random'])} processes saved it and {distributed.world_size()} go on: weights and "
                f"batches are the same, random draws such as dropout are not"
            )

    def count_trained(self) -> int:
        """Count the numbers that are trained in the present epoch."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def in_one_line(self) -> contextlib.AbstractContextManager[None]:
        """A block in which a lack of memory is an InputError, with the settings that may help."""
        remedies = ["train.micro_batch or train.batch_size"]
        if self.config.run.precision in ("fp32", "tf32"):
            remedies.append("run.precision=bf16")
        if self.config.model.image.encoder.arguments.get("recompute") is False:
            remedies.append("model.image.encoder.recompute=true")
        batch = f"a batch of {self.config.train.batch_size}"
        return runtime.in_one_line(self.device, batch, f"what may help: {', '.join(remedies)}")

    def describe(self) -> str:
        """Describe the sizes of data and model."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"train {len(self.train_corpus.images):,} images, {len(self.train_corpus.captions):,} captions; "
            f"dev {len(self.dev_corpus.images):,} images, {len(self.dev_corpus.captions):,} captions; "
            f"{len(self.vocabulary):,} words; {parameters / 1e6:.1f} M parameters on {self.device}; "
            f"{self.steps_per_epoch:,} steps an epoch"
            + (f"; {distributed.world_size()} processes" if distributed.world_size() > 1 else "")
        )

    def start_epoch(self) -> None:
        """Switch to training mode, and set what depends on the epoch."""
        self.model.train()
        set_epoch([*self.model.modules(), *self.criterion.modules()], self.epoch)
        build.freeze(self.config, self.model)  # also what has been unfrozen with the epoch
        if self.queue is not None:
            self.queue.set_epoch(self.epoch)
        if self.average is not None:
            self.average.set_epoch(self.epoch)

    def finish_epoch(self) -> float:
        """Go to the start of the next epoch.

        Returns:
            The mean loss of the epoch that has ended.
        """
        total, count = self.epoch_loss
        self.epoch, self.step, self.epoch_loss = self.epoch + 1, 0, (0.0, 0)
        return float(total) / count if count else math.nan

    def steps(self) -> Iterator[Batch | Iterator[Batch]]:
        """Yield what :meth:`train_step` takes for each remaining step of the epoch.

        Raises:
            InputError: The data is damaged.
        """
        count, batches = self.config.train.accumulate, self.batches()
        for batch in batches:
            yield batch if count == 1 else itertools.chain([batch], itertools.islice(batches, count - 1))

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch, on the device.

        Raises:
            InputError: The data is damaged.
        """
        self.sampler.epoch, self.sampler.first = self.epoch, self.step * self.config.train.accumulate
        if self.step == 0 and is_due(self.config.train.mining, self.epoch):
            self.mine()
        for batch in self.loader:
            if isinstance(batch, InputError):
                raise batch
            distributed.agree(False)  # on a GPU, waiting for a process that has ended would take long
            yield self.on_device(batch)

    def mine(self) -> None:
        """Find the captions that the model confuses now; the batches of the coming epochs bring them together."""
        mining, settings = self.config.train.mining, self.config.eval
        assert mining is not None
        with runtime.keep_random_state(self.device):
            found = mine(self.model, self.train_corpus, mining.negatives, settings.batch_size, settings.precision)
        self.sampler.confused = found

    def on_device(self, batch: Batch) -> Batch:
        """Return a batch of the loader as the model takes it: on the device, its features in float32."""
        batch = batch.to(self.device)
        return batch._replace(images=self.finish_images(batch.images))

    def train_step(self, batch: Batch | Iterable[Batch]) -> dict[str, Tensor]:
        """Update the weights once. A logged step also sets ``health``, that of its last batch.

        Args:
            batch: The batch, on the device; in several processes, this process's share of it, with the positives of
                all. With ``train.accumulate``, the batches, whose mean loss the step follows.

        Returns:
            The losses by name, and the norm of the gradient before clipping as "gradient_norm".
        """
        now, step = self.total_steps / self.steps_per_epoch, 1 / self.steps_per_epoch  # in epochs
        factor = self.schedule(now, step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.criterion.set_time(now)
        self.optimiser.zero_grad(set_to_none=True)
        if self.compiled:
            begin_step()
        if isinstance(batch, Batch):
            judged = self.add_gradient(batch)
            losses = judged.losses
        else:
            several = []
            for part in batch:
                judged = self.add_gradient(part, 1 / self.batches_of_step)
                several.append(judged.losses)
            losses = {name: torch.stack([each[name] for each in several]).mean() for name in several[0]}
        batch, image, text, tables = judged.batch, judged.image, judged.text, judged.tables
        distributed.share_gradients(*self.shared_parameters)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.train.clip_norm or math.inf)
        if self.is_logged or self.total_steps == 0:
            with self.shared_draws():
                plateaus = [plateau_loss(self.criterion, *table) for table in tables]
                self.health = {"plateau": torch.stack(plateaus).mean()}
            if image.embeddings.shape[1] > 1 or text.embeddings.shape[1] > 1:
                self.health |= self.set_health(batch)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.queue is not None:
            self.remember(self.queue, batch, image, text)
        if self.average is not None:
            self.average.follow(self.model)
        self.epoch_loss = self.epoch_loss[0] + losses["total"], self.epoch_loss[1] + 1
        return {**losses, "gradient_norm": norm}

    def _by_what_is_shared(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The towers' parameters, and all others, as :func:`vse.distributed.share_gradients` takes them."""
        towers = {id(p) for tower in (self.model.image, self.model.text) for p in tower.parameters()}
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        return [p for p in parameters if id(p) in towers], [p for p in parameters if id(p) not in towers]

    def add_gradient(self, batch: Batch, weight: float = 1.0) -> "Judged":
        """Add the gradient of a batch to that of the step.

        Args:
            batch: The batch, on the device.
            weight: What its loss is multiplied by.

        Returns:
            The batch, what the towers gave for it, and its losses.
        """
        with runtime.products(self.device, self.config.run.precision):
            image, text, scores = self.forward(batch)
            tables = [ScoreTable(scores, batch.positives, batch.pairs)]
            if self.queue is not None:
                tables = self.queue.tables(self.model.similarity, batch, image, text, scores)
            with self.shared_draws():
                losses: dict[str, Tensor] = self.criterion(scores, batch.positives, image, text, tables=tables)
            self.scaler.scale(weight * losses["total"]).backward()
        return Judged(batch, image, text, tables, {name: value.detach() for name, value in losses.items()})

    def forward(self, batch: Batch) -> tuple[Aggregated, Aggregated, Tensor]:
        """Embed both sides of a batch and compare them.

        Several processes embed their shares, and all of them get the whole batch's embeddings and scores.

        Args:
            batch: The batch of A images and C captions, on the device.

        Returns:
            What the image tower gave for all A images, what the text tower gave for all C captions, and the scores (A,
            C) as float32, which ranking needs.
        """
        image, text = self.encode(self.model.image, self.model.text, batch)
        scores = compare(self.model.similarity, image.embeddings, text.embeddings, image.mask, text.mask)
        return image, text, scores

    def encode(self, image_tower: Tower, text_tower: Tower, batch: Batch) -> tuple[Aggregated, Aggregated]:
        """Embed both sides of a batch; several processes embed their shares and get the whole batch's embeddings.

        Args:
            image_tower: The tower of the images.
            text_tower: The tower of the captions.
            batch: The batch of A images and C captions, on the device.

        Returns:
            What the towers gave for all A images and for all C captions.
        """
        with runtime.autocast(self.device, self.config.run.precision):
            image = self.embed(image_tower, batch.images, batch.image_mask)
            text = self.embed(text_tower, batch.tokens, batch.token_mask)
        images, captions = batch.positives.shape
        return gather_aggregated(image, images), gather_aggregated(text, captions)

    @torch.no_grad()
    def remember(self, queue: EmbeddingQueue, batch: Batch, image: Aggregated, text: Aggregated) -> None:
        """Put a batch into the queue: its embeddings, or with momentum those of the slow towers.

        Args:
            queue: The queue.
            batch: The batch, on the device.
            image: What the image tower gave for it.
            text: What the text tower gave for it.
        """
        queue.follow(self.model)
        if queue.slow is not None:
            image, text = self.encode(queue.slow.image, queue.slow.text, batch)
        queue.add(batch, image, text)

    def embed(self, tower: Tower, inputs: Tensor, mask: Tensor | None) -> Aggregated:
        """Embed this process's share of one side of a batch, in chunks if the config asks for them.

        Args:
            tower: The side's tower.
            inputs: The side's inputs, as :class:`vse.data.batches.Batch` describes them.
            mask: (B, N), True on real elements; None when all are real.

        Returns:
            What the tower gives for the share: embeddings (B, K, H) and what belongs to them.
        """
        size = self.config.train.micro_batch
        if size is not None:
            return encode_in_chunks(tower, inputs, mask, size)
        if self.compiled and tower.training:
            if mask is not None and tower is self.model.text:
                inputs, mask = pad_captions(inputs, mask, traits_of(tower.encoder).max_length)
            return self.compiled[tower](inputs, mask)
        result: Aggregated = tower(inputs, mask)
        return result

    def compile_towers(self, batch: Batch) -> dict[nn.Module, CompiledTower]:
        """Compile both towers, and try them on a few samples.

        Args:
            batch: A small batch, on the device.

        Returns:
            The compiled towers by the towers that they are made of; none with ``train.micro_batch``.
        """
        if self.config.train.micro_batch is not None:
            warn("run.compile: the towers are not compiled, since train.micro_batch encodes them in chunks")
            return {}
        self.model.train()
        set_epoch(self.model.modules(), 0)
        tokens, mask = pad_captions(batch.tokens, batch.token_mask, traits_of(self.model.text.encoder).max_length)
        inputs = {"image": (batch.images, batch.image_mask), "text": (tokens, mask)}
        compiled: dict[nn.Module, CompiledTower] = {}
        cuda_graphs = self.config.run.compile == "cuda_graphs"
        if cuda_graphs and self.device.type != "cuda":
            warn(f"run.compile: cuda_graphs needs a GPU, and this is {self.device}; the towers are only compiled")
            cuda_graphs = False
        for side, tower in (("image", self.model.image), ("text", self.model.text)):
            compiled[tower] = CompiledTower(tower, side, cuda_graphs=cuda_graphs)
            with self.in_one_line(), runtime.autocast(self.device, self.config.run.precision):
                compiled[tower].try_out(*inputs[side])
        return compiled

    def check_micro_batch(self) -> None:
        """Check that chunks of a batch would give the whole batch's gradients.

        Raises:
            InputError: They would not; the message names the setting and the layer.
        """
        self.model.train()
        for side, tower in (("image", self.model.image), ("text", self.model.text)):
            if self.config.train.micro_batch is not None and (problem := check_chunks(tower)):
                raise self.config.error("train.micro_batch", f"is not exact for this model: {side}.{problem}")

    def check_accumulation(self) -> None:
        """Check that gradients of several batches may be added.

        Raises:
            InputError: A part of the loss judges a batch as a whole; the message names it.
        """
        count = self.config.train.accumulate
        if count == 1:
            return
        if self.config.train.queue is not None:
            raise self.config.error("train.accumulate", "does not go with train.queue, which one batch a step fills")
        if parts := self.criterion.whole_batch_parts():
            names = {"ranking": self.config.loss.ranking.name}
            raise self.config.error(
                "train.accumulate",
                f"{names.get(parts[0], parts[0])} judges a batch as a whole: its captions and images are each other's "
                f"negatives, so {count} batches are not one large batch; raise train.batch_size and set "
                f"train.micro_batch, which gives the gradients of the large batch",
            )

    @contextlib.contextmanager
    def shared_draws(self) -> Iterator[None]:
        """A block in which random draws, such as a loss's, follow from seed and step: the same in every process."""
        with runtime.keep_random_state(self.device):
            torch.manual_seed(step_seed(self.config.run.seed, self.total_steps))
            yield

    def set_health(self, batch: Batch) -> dict[str, Tensor]:
        """Measure a batch's embedding sets in evaluation mode, since dropout would hide that they are equal.

        Returns:
            Each measure by name, see :func:`vse.set_health.set_health`.
        """
        self.model.eval()
        with torch.no_grad(), runtime.keep_random_state(self.device):
            image, text, _ = self.forward(batch)
        self.model.train()
        return batch_health(self.model.similarity, batch.positives, image, text)

    def validate(self) -> dict[str, Any]:
        """Compute the metrics on the dev split. The training does not notice.

        Returns:
            The metrics of :func:`vse.evaluation.score.evaluate`.
        """
        settings = self.config.eval
        with runtime.keep_random_state(self.device):
            return evaluate(self.evaluated, self.dev_corpus, settings.batch_size, settings.precision)
