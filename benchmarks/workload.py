"""What the benchmarks share: random data in the field's layout, trainings on it, clocks, and a table."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vse.build import read_config
from vse.data.batches import Batch
from vse.runtime import products
from vse.training.run import Training

SYSTEMS = ("vse_infty", "vse_2ad", "pvse", "dive")
WORDS = [f"word{number}" for number in range(3000)]


class Sizes(NamedTuple):
    """How large the data and the models of a benchmark are."""

    regions: int = 36
    width: int = 2048
    embedding: int = 1024
    batch: int = 128
    images: int = 640


class Row(NamedTuple):
    """A line of the table: a figure beside what it is compared with, in one unit."""

    name: str
    ours: float
    other_name: str
    other: float
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        """How many times the other figure is in ours; below 1, ours is smaller."""
        return self.ours / self.other if self.other else float("nan")


def write_features(folder: Path, sizes: Sizes, dtype: str = "float32") -> Path:
    """Write random features and captions of three splits, in the precomp layout, unless they are there already.

    Args:
        folder: Where the files go.
        sizes: The number of images to train on, of regions and the regions' width.
        dtype: The type of the features' file.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, images in (("train", sizes.images), ("dev", sizes.batch), ("test", sizes.batch)):
        if (folder / f"{split}_ids.txt").exists():
            continue
        features = generator.standard_normal((images, sizes.regions, sizes.width), dtype=np.float32).astype(dtype)
        np.save(folder / f"{split}_ims.npy", features)
        lengths = generator.integers(6, 22, 5 * images)
        captions = [" ".join(generator.choice(WORDS, length)) for length in lengths]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
        (folder / f"{split}_ids.txt").write_text("".join(f"{number}\n" for number in range(images)))
    return folder


def make_training(system: str, folder: Path, sizes: Sizes, device: torch.device, *settings: str) -> Training:
    """Make the training of a system's region model on random features.

    Args:
        system: A folder of ``configs/``.
        folder: The folder of :func:`write_features`.
        sizes: The sizes of the model and of a batch.
        device: Where it trains.
        settings: More overrides of the config, ``key=value``.

    Returns:
        The training, before its first step.
    """
    overrides = [
        *(f"data.root={folder}", "data.workers=0", "data.vocabulary.vectors=null", "data.vocabulary.min_count=1"),
        *(f"model.embed_dim={sizes.embedding}", f"train.batch_size={sizes.batch}", f"run.device={device.type}"),
        f"run.dir={folder / 'run'}",
    ]
    if system == "pvse":  # its words are GloVe's and not trained
        overrides += ["model.text.encoder.freeze_words=false", "model.text.encoder.word_init=xavier"]
    if system == "dive":
        overrides += ["model.text.encoder.word_init=uniform"]
    training = Training(read_config(f"{system}/f30k_region_bigru", [*overrides, *settings]))
    training.start_epoch()
    return training


def after_first_step(training: Training) -> Batch:
    """Do the first step, which also measures the untrained model; return its batch, for more steps like any other."""
    batch = next(training.batches())
    training.train_step(batch)
    training.step = 1
    return batch


def stop_dropout(training: Training) -> None:
    """Switch off what is random in a model's training mode, so that two devices can be compared."""
    for module in training.model.modules():
        for name in ("p", "drop", "dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Return the median time of a call, in seconds, after two to warm up; a GPU has finished its work by then."""
    return seconds_of([work], device, repeats)[0]


def seconds_of(works: Sequence[Callable[[], object]], device: torch.device, repeats: int = 7) -> list[float]:
    """Return the median times of some calls, in seconds. They take turns, so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in works]
    for round_number in range(repeats + 2):
        for own, work in zip(times, works, strict=True):
            wait(device)
            begin = time.perf_counter()
            work()
            wait(device)
            if round_number >= 2:
                own.append(time.perf_counter() - begin)
    return [statistics.median(own) for own in times]


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(work: Callable[[], object]) -> float:
    """Count the multiplications and additions of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Measure how many multiplications and additions a second a product of square matrices reaches."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def gradients(training: Training, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch and its whole gradient as one vector, both in float64 on the CPU."""
    training.optimiser.zero_grad(set_to_none=True)
    with products(training.device, training.config.run.precision):
        image, text, scores = training.forward(batch)
        with training.shared_draws():
            loss = training.criterion(scores, batch.positives, image, text, batch.pairs)["total"]
        training.scaler.scale(loss).backward()
    training.scaler.unscale_(training.optimiser)
    training.scaler.update()
    parameters = itertools.chain.from_iterable(group["params"] for group in training.optimiser.param_groups)
    found = [parameter.grad.double().cpu().flatten() for parameter in parameters if parameter.grad is not None]
    return loss.detach().double().cpu(), torch.cat(found)


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print figures in Markdown, each beside what it is compared with."""
    print(f"\n| {title} | | beside | | ratio |\n|---|---|---|---|---|")
    for row in rows:
        other = f"{row.other:.3g} {row.unit}" if row.other else ""
        ratio = f"{row.ratio:.2f}" if row.other else ""
        print(f"| {row.name} | {row.ours:.3g} {row.unit} | {row.other_name} | {other} | {ratio} |", flush=True)
