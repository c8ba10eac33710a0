#!/usr/bin/env python3
"""Checks that training on a GPU gives what the CPU gives, and measures how close to the GPU's limits it runs.

    python benchmarks/gpu.py [--json FILE] [--only checks | figures]

It takes under five minutes on one GPU, and ends with exit code 1 when a check fails. Data and weights are random, so
nothing needs to be fetched. Without a GPU it says so and ends with exit code 0. ``--device cpu --small`` goes through
the same code on the CPU with tiny models; the figures then mean nothing.
"""

import argparse
import json
import math
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from workload import (
    SYSTEMS,
    Row,
    Sizes,
    after_first_step,
    gradients,
    make_training,
    operations,
    print_table,
    product_rate,
    seconds,
    seconds_of,
    stop_dropout,
    wait,
    write_features,
)

from vse.errors import InputError
from vse.evaluation.blocks import blocks_of_embeddings
from vse.evaluation.ranks import rank
from vse.evaluation.score import evaluate
from vse.similarity import cosine, smooth_chamfer
from vse.training.run import Training

FULL, SMALL = Sizes(), Sizes(regions=4, width=12, embedding=16, batch=8, images=24)
COMPILED = ("vse_infty", "dive")  # the systems whose compiled step is looked at, as each compilation takes a minute
COSINE = {"dive": 0.98}  # least cosine of a half-precision gradient to the float32 one; 0.99 for the others


class Check(NamedTuple):
    """What was compared, what was found, and whether it is good enough."""

    name: str
    found: str
    passed: bool


class Bench:
    """The device, the sizes and the data of one run of this file."""

    def __init__(self, device: torch.device, sizes: Sizes, folder: Path) -> None:
        self.device, self.sizes, self.folder = device, sizes, write_features(folder / "float32", sizes)
        self.half_folder = write_features(folder / "float16", sizes, "float16")
        self.checks: list[Check] = []
        self.rows: list[Row] = []

    def check(self, name: str, found: str, passed: bool) -> None:
        """Note a check's result, and print it."""
        self.checks.append(Check(name, found, bool(passed)))
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {found}", flush=True)

    def training(self, system: str, *settings: str, device: torch.device | None = None) -> Training:
        """Make a training on this bench's device, or another one."""
        return make_training(system, self.folder, self.sizes, device or self.device, *settings)

    @property
    def on_gpu(self) -> bool:
        """Whether the figures are a GPU's."""
        return self.device.type == "cuda"


class TypesSeen(TorchDispatchMode):
    """Notes the types of all tensors that are made in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation."""
        result = func(*args, **(kwargs or {}))
        self.types |= {item.dtype for item in torch.utils._pytree.tree_leaves(result) if isinstance(item, Tensor)}
        return result


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two vectors."""
    return float((found - expected).norm() / expected.norm())


def check_gradients(bench: Bench, system: str) -> None:
    """Compare loss and gradient with the CPU's in float32, in every precision."""
    expected: tuple[Tensor, Tensor] | None = None
    # Rounding may make another negative the hardest one, so all of them count here.
    settings = () if system == "vse_2ad" else ("loss.ranking.mining=all",)
    for precision, device in (("fp32", torch.device("cpu")), *((p, bench.device) for p in precisions(bench))):
        training = bench.training(system, f"run.precision={precision}", *settings, device=device)
        stop_dropout(training)
        batch = next(training.batches())
        with TypesSeen() as seen:
            loss, gradient = gradients(training, batch)
        if expected is None:
            expected = (loss, gradient)
            continue
        losses, turned = distance(loss, expected[0]), distance(gradient, expected[1])
        alike = float(torch.cosine_similarity(gradient, expected[1], dim=0))
        if precision in ("fp32", "tf32"):
            most = (1e-5, 1e-4) if precision == "fp32" else (1e-2, 5e-2)
            found, passed = f"loss {losses:.1e}, gradient {turned:.1e} away", losses < most[0] and turned < most[1]
        else:
            found, passed = (
                f"loss {losses:.1e} away, cosine of gradients {alike:.4f}",
                alike >= COSINE.get(system, 0.99),
            )
        bench.check(f"{system}, {precision} beside the CPU's fp32", found, passed)
        if precision == "bf16":
            bench.check(
                f"{system}, bf16 makes no float16", str(torch.float16 in seen.types), torch.float16 not in seen.types
            )


def precisions(bench: Bench) -> list[str]:
    """The precisions that the device has."""
    return ["fp32", "tf32", "bf16", "fp16"] if bench.on_gpu else ["fp32", "bf16"]


def check_falling(bench: Bench, system: str) -> None:
    """Train 20 steps on one batch in each half precision."""
    for precision in precisions(bench)[-2:]:
        training = bench.training(system, f"run.precision={precision}")
        batch = next(training.batches())
        losses = [float(training.train_step(batch)["total"]) for _ in range(20)]
        passed = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
        bench.check(f"{system}, 20 steps in {precision}", f"loss {losses[0]:.4g} to {losses[-1]:.4g}", passed)


def check_resume(bench: Bench, system: str) -> None:
    """Compare ten steps with five, a saved state, and five more, to the bit."""
    settings = ("run.deterministic=true",)

    def train(training: Training, steps: int) -> Training:
        for batch, _ in zip(training.batches(), range(steps), strict=False):
            training.train_step(batch)
            training.step += 1
        return training

    steps = min(10, len(bench.training(system, *settings).sampler) - 1)
    whole = train(bench.training(system, *settings), steps)
    first = train(bench.training(system, *settings), steps // 2)
    state: Any = first.state()
    second = bench.training(system, *settings)
    second.restore(state, Path("last.pt"))
    second.start_epoch()
    train(second, steps - steps // 2)
    pairs = zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    equal = all(torch.equal(a, b) for a, b in pairs)
    bench.check(f"{system}, {steps} steps and {steps // 2} + {steps - steps // 2}", f"equal to the bit: {equal}", equal)


def check_evaluation(bench: Bench, system: str) -> None:
    """Compare the metrics with the CPU's, and embed sets with garbage in their padding."""
    trainings = [bench.training(system, device=device) for device in (torch.device("cpu"), bench.device)]
    first, second = (
        evaluate(t.model, t.dev_corpus, t.config.eval.batch_size, "fp32", progress=False) for t in trainings
    )
    found = f"{first['rsum']:.2f} and {second['rsum']:.2f}"
    bench.check(f"{system}, RSUM on the CPU and here", found, abs(first["rsum"] - second["rsum"]) < 0.5)
    model = trainings[1].model.eval()
    features = torch.randn(8, bench.sizes.regions, bench.sizes.width, device=bench.device)
    mask = (torch.rand(8, bench.sizes.regions) < 0.5).index_fill(1, torch.tensor([0]), True).to(bench.device)
    with torch.no_grad():
        clean, dirty = (model.image(features.masked_fill(~mask[..., None], v), mask) for v in (0.0, float("nan")))
    same = torch.equal(clean.embeddings, dirty.embeddings)
    bench.check(f"{system}, NaN in the padding changes nothing", str(same), same)


def check_compiled(bench: Bench, system: str) -> None:
    """Train five steps as usual, compiled, and with CUDA graphs, and compare the losses."""
    losses = {}
    for setting in ("false", "true", "cuda_graphs"):
        training = bench.training(system, f"run.compile={setting}", "loss.ranking.mining=all")
        stop_dropout(training)
        found = [training.train_step(batch)["total"] for batch, _ in zip(training.batches(), range(5), strict=False)]
        losses[setting] = torch.stack(found)
        for tower in training.compiled.values():
            bench.check(f"{system}, run.compile={setting}, {tower.name} tower", "compiled", tower.works)
    for setting in ("true", "cuda_graphs"):
        away = distance(losses[setting], losses["false"])
        bench.check(f"{system}, losses with run.compile={setting}", f"{away:.1e} away", away < 1e-3)


def check_waits(bench: Bench, system: str) -> None:
    """Count where a step makes the CPU wait for the GPU."""
    training = bench.training(system, "run.precision=bf16", "run.log_steps=1000000")
    batch = after_first_step(training)
    training.train_step(batch)
    with waits_as_warnings() as found:
        training.train_step(batch)
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in found})
    bench.check(f"{system}, waits in a step", f"{len(found)} {' '.join(places)}", not found)


@contextmanager
def waits_as_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """A block in which each wait of the CPU for the GPU adds a warning to the list."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found[:] = [warning for warning in found if "synchroniz" in str(warning.message)]


def measure_step(bench: Bench, system: str) -> None:
    """Time a step beside the time that its operations need at the rate of a matrix product."""
    dtype = torch.bfloat16
    rate = product_rate(bench.device, dtype, 8192 if bench.on_gpu else 128)
    plain = bench.training(system, "run.precision=bf16", "run.log_steps=1000000")
    batch = after_first_step(plain)
    floor = operations(lambda: plain.train_step(batch)) / rate
    variants = {"a step": plain}
    settings = {"a step in fp32": ["run.precision=fp32"]}
    if bench.on_gpu and system in COMPILED:
        settings["a compiled step"] = ["run.precision=bf16", "run.compile=true"]
        settings["a compiled step with CUDA graphs"] = ["run.precision=bf16", "run.compile=cuda_graphs"]
    for name, setting in settings.items():
        variants[name] = bench.training(system, "run.log_steps=1000000", *setting)
        after_first_step(variants[name])
    works = [lambda t=training: t.train_step(batch) for training in variants.values()]  # type: ignore[misc]
    for name, found in zip(variants, seconds_of(works, bench.device, repeats=15), strict=True):
        bench.rows.append(Row(f"{system}, {name}", 1000 * found, "its operations at a product's rate", 1000 * floor))
    host, kernels = host_time(bench, lambda: plain.train_step(batch))
    busy = seconds(lambda: plain.train_step(batch), bench.device)
    bench.rows.append(Row(f"{system}, CPU's time for a step", 1000 * host, "the whole step", 1000 * busy))
    bench.rows.append(Row(f"{system}, kernels in a step", kernels, "", 0.0, "kernels"))


def host_time(bench: Bench, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds until a call returns, whatever the GPU still has to do; and how many kernels it starts."""
    wait(bench.device)
    begin = time.perf_counter()
    work()
    host = time.perf_counter() - begin
    wait(bench.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]) as recorded:
        work()
        wait(bench.device)
    started = [event for event in recorded.events() or [] if "LaunchKernel" in event.name]
    return host, float(len(started))


def measure_loading(bench: Bench) -> None:
    """Time the loading of a batch, from each kind of file and place, beside a step."""
    training = bench.training("vse_infty", "run.precision=bf16", "run.log_steps=1000000")
    batch = after_first_step(training)
    step = seconds(lambda: training.train_step(batch), bench.device)
    places = ["disk", "memory", *(["gpu"] if bench.on_gpu else [])]
    for kind, folder in (("float32", bench.folder), ("float16", bench.half_folder)):
        for place in places:
            source = make_training(
                "vse_infty", folder, bench.sizes, bench.device, f"data.resident={place}", "data.workers=0"
            )
            for _ in source.batches():  # an epoch to warm up
                pass
            begin = time.perf_counter()
            count = sum(1 for _ in source.batches())
            wait(bench.device)
            found = (time.perf_counter() - begin) / count
            name = f"a batch from a {kind} file, resident: {place}"
            bench.rows.append(Row(name, 1000 * found, "a step of vse_infty", 1000 * step))


def measure_pictures(bench: Bench) -> None:
    """Measure time and memory of a step of the grid model, with its backbone frozen and trained."""
    batch_size, size, backbone = (32, 512, "resnext101_32x8d") if bench.on_gpu else (4, 64, "resnet18")
    settings = [
        *(f"data.root={bench.folder.parent / 'pictures'}", "data.format=synthetic", "data.sampling=pair"),
        f"data.options={{pictures: true, train_scenes: {2 * batch_size}, eval_scenes: 4}}",
        f"data.transform={{name: square, size: {size}, min_scale: 0.6}}",
        *(f"model.image.encoder={{name: grid, backbone: {backbone}, drop: 0.2, freeze_epochs: 1}}",),
        *("run.precision=bf16", "run.log_steps=1000000"),
    ]
    sizes = bench.sizes._replace(batch=batch_size)
    for name, epoch, more in (
        ("frozen", 0, ()),
        ("trained", 1, ()),
        ("trained, recomputed", 1, ("model.image.encoder.recompute=true",)),
    ):
        training = make_training("vse_infty", bench.folder, sizes, bench.device, *settings, *more)
        training.epoch = epoch
        training.start_epoch()
        batch = after_first_step(training)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        count = operations(lambda t=training, b=batch: t.train_step(b))  # type: ignore[misc]
        floor = count / product_rate(bench.device, torch.bfloat16, 8192 if bench.on_gpu else 128)
        found = seconds(lambda t=training, b=batch: t.train_step(b), bench.device, 3)  # type: ignore[misc]
        title = f"grid {size}², {batch_size} pictures, {name}"
        bench.rows.append(Row(title, 1000 * found, "its operations at a product's rate", 1000 * floor))
        if bench.on_gpu:
            bench.rows.append(Row(f"{title}, memory", torch.cuda.max_memory_allocated() / 2**30, "", 0.0, "GiB"))
        del training, batch


def measure_evaluation(bench: Bench) -> None:
    """Time the ranking of 5,000 images and 25,000 captions beside the bare product of their embeddings."""
    images, captions, width = (5000, 25_000, 1024) if bench.on_gpu else (50, 250, 16)
    pairs = np.stack([np.arange(captions) // (captions // images), np.arange(captions)], axis=1)
    for count, similarity in ((1, cosine), (4, smooth_chamfer)):
        sides = [
            torch.nn.functional.normalize(torch.randn(n, count, width, device=bench.device), dim=-1)
            for n in (images, captions)
        ]

        def product(a: Tensor = sides[0], b: Tensor = sides[1]) -> None:
            for rows in a.flatten(0, 1).split(4096):
                rows @ b.flatten(0, 1).T

        def ranks(a: Tensor = sides[0], b: Tensor = sides[1], compare: Any = similarity) -> object:
            return rank(blocks_of_embeddings(compare, a, b), pairs, progress=False)

        ours, bare = seconds_of([ranks, product], bench.device, 3)
        bench.rows.append(
            Row(f"ranking {images:,} x {captions:,}, K = {count}", 1000 * ours, "the product", 1000 * bare)
        )


CHECKS: Sequence[Callable[[Bench, str], None]] = (check_gradients, check_falling, check_resume, check_evaluation)


def main(words: Sequence[str] | None = None) -> int:
    """Check, measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    parser.add_argument("--only", choices=("checks", "figures"), help="leave out the other half")
    parser.add_argument("--system", choices=SYSTEMS, action="append", help="only this system; may be repeated")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to test this file")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("This machine has no GPU that torch can use, so there is nothing to check or to measure.")
        return 0
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
    systems = arguments.system or SYSTEMS
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, SMALL if arguments.small else FULL, Path(folder))
        if arguments.only != "figures":
            run_checks(bench, systems)
        if arguments.only != "checks":
            run_figures(bench, systems)
    if arguments.json:
        content = {"device": name, "torch": torch.__version__, "checks": [c._asdict() for c in bench.checks]}
        content["figures"] = [{**row._asdict(), "ratio": row.ratio if row.other else None} for row in bench.rows]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    failed = [check.name for check in bench.checks if not check.passed]
    print(f"\n{len(bench.checks) - len(failed)} checks passed, {len(failed)} failed")
    return 1 if failed else 0


def run_checks(bench: Bench, systems: Sequence[str]) -> None:
    """Do all checks of all systems. What one of them breaks off is a failed check, and the others go on."""
    for system in systems:
        more = (check_waits, *((check_compiled,) if system in COMPILED else ())) if bench.on_gpu else ()
        for check in (*CHECKS, *more):
            try:
                check(bench, system)
            except (RuntimeError, ValueError, InputError) as error:
                bench.check(f"{system}, {check.__name__}", f"{type(error).__name__}: {str(error)[:200]}", False)


def run_figures(bench: Bench, systems: Sequence[str]) -> None:
    """Measure everything and print the table."""
    for system in systems:
        measure_step(bench, system)
    measure_loading(bench)
    measure_pictures(bench)
    measure_evaluation(bench)
    print_table("measured", bench.rows)


if __name__ == "__main__":
    sys.exit(main())
