#!/usr/bin/env python3
"""Measures on the CPU what this package does, beside the least time that the same work could take.

    python benchmarks/cpu.py [--only PART ...] [--json FILE]

Both figures of a line are measured in turns in this one run: absolute times depend on the machine, ratios hardly do.
The parts are steps, parts, ranking, loading and starting. docs/PERFORMANCE.md keeps the tables and reads them.
"""

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from workload import (
    SYSTEMS,
    Row,
    Sizes,
    after_first_step,
    make_training,
    operations,
    print_table,
    product_rate,
    seconds_of,
    write_features,
)

from vse.aggregators import AGGREGATORS
from vse.build import read_config
from vse.encoders.recurrent import read_sequence
from vse.losses import LOSSES, REGULARISERS
from vse.optim import OPTIMISERS
from vse.sets import Aggregated, lengths_to_mask
from vse.similarity import SIMILARITIES

CPU = torch.device("cpu")
FLICKR8K = Sizes(regions=25, width=192, embedding=512)
FULL = Sizes()


def steps(folder: Path) -> list[Row]:
    """Time a training step of each system beside the time its operations need at the rate of a matrix product."""
    rows = []
    rates = {"fp32": product_rate(CPU, torch.float32, 2048), "bf16": product_rate(CPU, torch.bfloat16, 2048)}
    rows += [Row(f"matrix product, {name}", rate / 1e9, "", 0.0, "GFLOP/s") for name, rate in rates.items()]
    for sizes, systems in ((FLICKR8K, SYSTEMS), (FULL, ("vse_infty",))):
        data = write_features(folder / str(sizes.width), sizes)
        for system in systems:
            found = []
            for precision in rates:
                training = make_training(
                    system, data, sizes, CPU, f"run.precision={precision}", "run.log_steps=1000000"
                )
                batch = after_first_step(training)
                found.append((training, batch))
            works = [lambda t=training, b=batch: t.train_step(b) for training, batch in found]  # type: ignore[misc]
            count = operations(works[0])
            for (precision, rate), time in zip(rates.items(), seconds_of(works, CPU, repeats=3), strict=True):
                name = f"{system}, {sizes.regions} x {sizes.width}, width {sizes.embedding}, {precision}"
                rows.append(Row(name, 1000 * time, "its operations at the product's rate", 1000 * count / rate))
    rows += [recurrent_row(FULL), optimiser_row()]
    return rows


def recurrent_row(sizes: Sizes) -> Row:
    """Time the captions' BiGRU as the text encoder runs it, beside a packed one of torch."""
    gru = nn.GRU(300, sizes.embedding, batch_first=True, bidirectional=True)
    lengths = torch.randint(6, 24, (sizes.batch,))
    words, mask = torch.randn(sizes.batch, int(lengths.max()), 300), lengths_to_mask(lengths)

    def ours() -> None:
        read_sequence(gru, words, mask, "last", average=True)[0].sum().backward()

    def packed() -> None:
        gru(pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False))[0].data.sum().backward()

    found, bare = seconds_of([ours, packed], CPU)
    return Row("BiGRU, forward and backward", 1000 * found, "torch's packed one", 1000 * bare)


def optimiser_row() -> Row:
    """Time an update of AdamW as a config has it, beside a copy of as many numbers."""
    config = read_config("vse_infty/f30k_region_bigru")
    parameters = [nn.Parameter(torch.randn(1 << 20)) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimiser = OPTIMISERS[config.optim.name](parameters, lr=1e-4)
    copies = [torch.empty_like(parameter) for parameter in parameters]

    def copy() -> None:
        for target, source in zip(copies, parameters, strict=True):
            target.copy_(source.detach())

    found, bare = seconds_of([optimiser.step, copy], CPU)
    return Row("AdamW's update, 8.4 M parameters", 1000 * found, "copying them", 1000 * bare)


def parts(folder: Path) -> list[Row]:
    """Time every aggregator beside mean pooling, every similarity beside its product, every loss beside a sum."""
    features = torch.randn(128, 36, 1024, requires_grad=True)
    mask = lengths_to_mask(torch.randint(20, 37, (128,)), 36)
    context = torch.randn(128, 1024, requires_grad=True)
    arguments = {"kmax": {"k": 5}}
    rows = []
    mean = AGGREGATORS["mean"]()
    for name, make in AGGREGATORS.items():
        aggregator = _make(make, arguments.get(name, {}))

        def pool(of: Any = aggregator) -> None:
            of(features, mask, context).embeddings.sum().backward()

        found, bare = seconds_of([pool, lambda: pool(mean)], CPU)
        rows.append(Row(f"aggregator {name}, 128 x 36 x 1024", 1000 * found, "mean", 1000 * bare))
    rows += [similarity_row(name, make) for name, make in SIMILARITIES.items()]
    scores = torch.randn(128, 640).mul(0.1).requires_grad_()
    positives = torch.arange(128)[:, None] == torch.arange(640) // 5
    for name, loss in LOSSES.items():
        judge = loss()
        works = [lambda j=judge: j(scores, positives).backward(), lambda: scores.exp().sum().backward()]  # type: ignore[misc]
        found, bare = seconds_of(works, CPU)
        rows.append(Row(f"loss {name}, 128 x 640", 1000 * found, "exp and sum", 1000 * bare))
    sides = [nn.functional.normalize(torch.randn(n, 4, 1024), dim=-1).requires_grad_() for n in (128, 640)]
    image, text = (Aggregated(side, residual=side, context=side[:, 0]) for side in sides)
    for name, term in REGULARISERS.items():
        found, bare = seconds_of(
            [lambda t=term: t(image, text).backward(), lambda: (sides[0].sum() + sides[1].sum()).backward()],  # type: ignore[misc]
            CPU,
        )
        rows.append(Row(f"term {name}, 128 and 640 sets of 4 x 1024", 1000 * found, "sum", 1000 * bare))
    return rows


def _make(make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """A component with the widths of the benchmark, as the build fills them in."""
    widths = {"in_dim": 1024, "out_dim": 1024, "dim": 1024, "num_embeddings": 4}
    known = inspect.signature(make).parameters
    needed = {n: w for n, w in widths.items() if n in known and known[n].default in (inspect.Parameter.empty, None)}
    return make(**{**needed, **arguments})


def similarity_row(name: str, make: Any) -> Row:
    """Time a similarity of 128 and 640 sets, forward and backward, beside the products of its embeddings."""
    compare = make() if isinstance(make, type) else make
    count, width = (1, 1024) if name in ("cosine", "order") else (4, 1024)
    if name == "order":
        width = 64
    a, b = (nn.functional.normalize(torch.randn(n, count, width), dim=-1).requires_grad_() for n in (128, 640))

    def product(x: Tensor = a, y: Tensor = b) -> None:
        (x.flatten(0, 1) @ y.flatten(0, 1).T).sum().backward()

    found, bare = seconds_of([lambda: compare(a, b).sum().backward(), product], CPU)
    return Row(f"similarity {name}, 128 x 640 sets of {count} x {width}", 1000 * found, "its product", 1000 * bare)


def starting(folder: Path) -> list[Row]:
    """Time what a user waits for: the import, the first step, a validation."""

    def run(words: Sequence[str]) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)

    bare, ours, torchs = seconds_of([run(["-c", ""]), run(["-c", "import vse"]), run(["-c", "import torch"])], CPU, 3)
    data = write_features(folder / "192", FLICKR8K)
    dry = ["-m", "vse", "train", "vse_infty/f30k_region_bigru", f"data.root={data}", "model.embed_dim=512", "--dry-run"]
    first = seconds_of([run([*dry, "data.vocabulary.min_count=1", "data.workers=0"])], CPU, 1)[0]
    return [
        Row("import vse", ours - bare, "import torch", torchs - bare, "s"),
        Row("vse train to the end of the first step", first, "import torch", torchs, "s"),
    ]


PARTS = {"steps": steps, "parts": parts, "starting": starting}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            tables[name] = PARTS[name](Path(folder))
            print_table(name, tables[name])
    if arguments.json:
        content = {name: [{**row._asdict(), "ratio": row.ratio} for row in rows] for name, rows in tables.items()}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
