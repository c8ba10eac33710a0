#!/usr/bin/env python3
"""What ranking costs beside the product of the embeddings, which is the least that it can cost.

    python benchmarks/ranking.py [--large] [--repeats N] [--threads N] [NAME ...]

Each case scores random unit embeddings and ranks in all of its directions. The bare product multiplies the same
embeddings and drops the result. The two take turns in this process. A case's time is the fastest of its repeats; the
processor's time, which counts all threads and no waiting for other programs, stands beside the seconds on the clock.
``--large`` adds COCO's training split: once, and its product from two twentieths of the images, before and after, since
each of the two would take 33 TFLOP. Memory is the peak of what the ranking takes beside the embeddings (Linux only).
"""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vse.evaluation.blocks import blocks_of_embeddings
from vse.evaluation.folds import fold_metrics, rank_folds
from vse.evaluation.ranks import rank, rank_within
from vse.similarity import cosine, smooth_chamfer

PER_IMAGE = 5  # captions
IMAGE_PAIRS, CAPTION_PAIRS = 21_816, 16_184  # positives that CxC has among images and among captions
BOTH_PAIRS = 35_585  # and between them
BLOCK = 4096  # rows and columns of the bare product's blocks


class Case(NamedTuple):
    """Sizes of a corpus, and what is asked of it."""

    images: int
    width: int
    sets: int = 1
    cxc: bool = False
    large: bool = False


CASES = {
    "coco": Case(5000, 1024),
    "smooth": Case(5000, 1024, sets=4),
    "smooth_1k": Case(1000, 1024, sets=4),
    "cxc": Case(5000, 1024, cxc=True),
    "quarter": Case(28_322, 256),  # of COCO's training split: a sixteenth of its product
    "train": Case(113_287, 256, large=True),
}


def draw(case: Case) -> tuple[Tensor, Tensor]:
    """Embeddings of images, and of captions that are somewhat like their images'."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(case.images, case.sets, case.width, generator=generator), dim=-1)
    captions = torch.randn(case.images * PER_IMAGE, case.sets, case.width, generator=generator)
    captions /= case.width**0.5
    for place in range(PER_IMAGE):
        captions[place::PER_IMAGE] += 3 / case.width**0.5 * images
    captions /= torch.linalg.vector_norm(captions, dim=-1, keepdim=True)
    return images, captions


def multiply(a: Tensor, b: Tensor) -> None:
    """The product of all embeddings of two sides, in blocks that are dropped."""
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    out = torch.empty(BLOCK * BLOCK)
    for rows in a.split(BLOCK):
        for columns in b.split(BLOCK):
            torch.mm(rows, columns.T, out=out[: len(rows) * len(columns)].view(len(rows), len(columns)))


def rank_both_ways(case: Case, images: Tensor, captions: Tensor) -> None:
    """Score and rank as an evaluation does."""
    of = np.arange(len(captions)) // PER_IMAGE
    similarity = cosine if case.sets == 1 else smooth_chamfer
    rsum = fold_metrics(rank_folds(blocks_of_embeddings(similarity, images, captions), of))["rsum"]
    assert 0 < rsum < 600


def rank_four_ways(images: Tensor, captions: Tensor) -> None:
    """CxC's four directions, with random positives in CxC's numbers beside the corpus's own."""
    rng = np.random.default_rng(0)

    def pairs(count: int, rows: int, columns: int) -> np.ndarray:
        return np.stack([rng.integers(0, rows, count), rng.integers(0, columns, count)], 1)

    of = np.arange(len(captions)) // PER_IMAGE
    own = np.stack([of, np.arange(len(captions))], 1)
    others = pairs(BOTH_PAIRS - len(own), len(images), len(captions))
    rank(blocks_of_embeddings(cosine, images, captions), np.concatenate([own, others]), progress=False)
    for side, count in ((images, IMAGE_PAIRS), (captions, CAPTION_PAIRS)):
        found = pairs(count, len(side), len(side))
        if side is captions:
            places = np.arange(len(captions))
            shifts = [places // PER_IMAGE * PER_IMAGE + (places + shift) % PER_IMAGE for shift in range(1, PER_IMAGE)]
            found = np.concatenate([found, *(np.stack([places, shifted], 1) for shifted in shifts)])
        both_ways = np.concatenate([found, found[:, ::-1]])
        rank_within(blocks_of_embeddings(cosine, side, side), both_ways, progress=False)


def measure(work: Callable[[], None]) -> np.ndarray:
    """Seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - clock, time.process_time() - processor])


def memory(kind: str) -> float:
    """This process's memory in GiB, as Linux counts it: VmRSS now, VmHWM at its peak."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024**2


def run(name: str, repeats: int) -> None:
    """Measure one case and print its row."""
    case = CASES[name]
    images, captions = draw(case)
    sides = [(images, captions), (images, images), (captions, captions)] if case.cxc else [(images, captions)]

    def product() -> None:
        for a, b in sides:
            multiply(a, b)

    def ours() -> None:
        if case.cxc:
            rank_four_ways(images, captions)
        else:
            rank_both_ways(case, images, captions)

    def twentieth() -> None:
        multiply(images[: len(images) // 20], captions)

    before, peak = memory("VmRSS"), 0.0
    found = []
    for _ in range(1 if case.large else repeats):
        first = 10 * measure(twentieth) if case.large else measure(product)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        second = measure(ours)
        peak = max(peak, memory("VmHWM"))
        found.append((first + 10 * measure(twentieth) if case.large else first, second))
    least, most = (np.min([pair[i] for pair in found], axis=0) for i in (0, 1))
    size = f"{case.images:,} x {len(captions):,} x {case.width}, K = {case.sets}"
    times = "".join(f"{a:9.2f}{b:9.2f}{b / a:7.2f}" for a, b in zip(least, most, strict=True))
    print(f"{name:10}{size:36}{times}{peak - before:9.2f} GiB", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--large", action="store_true", help="also COCO's training split")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.names or [name for name, case in CASES.items() if arguments.large or not case.large]
    if wrong := [name for name in names if name not in CASES]:
        parser.error(f"no case {wrong[0]!r}; expected some of {', '.join(CASES)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; seconds: product, ranking and their ratio")
    print(f"{'':46}{'clock':>25}{'processor':>25}   memory")
    for name in names:
        run(name, arguments.repeats)


if __name__ == "__main__":
    main()
