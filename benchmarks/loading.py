#!/usr/bin/env python3
"""How long captions take: to split, to be ready for training the first time and later, and to make batches of.

Then how long a batch of features takes from a file, through threads and through processes.

    python benchmarks/loading.py FILE_OF_CAPTIONS [--captions 566435]

The file holds one caption a line, such as a data set's train_caps.txt. It is repeated until there are as many captions
as COCO's. Repeated captions get other words in some places, and 4 % of all get a quotation, which NLTK itself must
split. docs/PERFORMANCE.md keeps the results.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from vse.data import captions as flat
from vse.data.batches import BatchSampler, TrainingData, make_loader
from vse.data.corpus import Features
from vse.data.formats import precomp
from vse.data.resident import place
from vse.data.vocabulary import Vocabulary
from vse.data.words import tokenise, tokenise_by_nltk

BATCH = 128


def seconds(work: Callable[[], object]) -> float:
    """How long some work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def varied(lines: list[str], count: int) -> Iterator[str]:
    """As many captions as wanted: each repetition gives every other caption another word in some place."""
    rng = np.random.default_rng(0)
    for number in range(count):
        words = lines[number % len(lines)].split()
        if number >= len(lines) and number % 2:
            words[rng.integers(len(words))] = f"word{rng.zipf(1.3) % 20000}"
        if number % 25 == 0:
            words[-1:] = [f'"{words[-1]}"', "."]
        yield " ".join(words)


def write_corpus(folder: Path, captions: list[str], width: int = 8, dtype: type = np.float16) -> None:
    """A precomp corpus of these captions, five an image."""
    images = -(-len(captions) // 5)
    np.save(folder / "train_ims.npy", np.ones((images, 36, width), dtype))
    (folder / "train_caps.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    (folder / "train_ids.txt").write_text("".join(f"{number // 5}\n" for number in range(len(captions))))


def start(folder: Path) -> TrainingData:
    """Everything before the first step that has to do with captions, as a new run does it."""
    flat._LATEST.clear()  # what a new process does not have
    corpus = precomp(str(folder), "train")
    vocabulary = Vocabulary.build(corpus.captions, min_count=4)
    data = TrainingData(corpus, vocabulary, 0.2, seed=1)
    data.sample()
    return data


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--captions", type=int, default=566_435)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = arguments.file.read_text(encoding="utf-8").splitlines()
    few = lines[:5000]
    tokenise_by_nltk("it starts.")
    by_nltk = seconds(lambda: [tokenise_by_nltk(line.lower()) for line in few])
    ours = seconds(lambda: [tokenise(line) for line in few])
    print(f"captions a second on one core: NLTK {len(few) / by_nltk:,.0f}, this package {len(few) / ours:,.0f}")

    with tempfile.TemporaryDirectory() as folder:
        os.environ["VSE_CACHE"] = f"{folder}/cache"
        write_corpus(Path(folder), list(varied(lines, arguments.captions)))
        print(f"ready to train on {arguments.captions:,} captions:")
        for time_of in ("the first time", "later"):
            before, elapsed = sum(os.times()[:4]), seconds(lambda: start(Path(folder)))
            work = sum(os.times()[:4]) - before
            print(f"  {time_of} {elapsed:.1f} s; all cores together worked {work:.1f} s")
        data = start(Path(folder))
    sampler = BatchSampler(data.corpus.image_of_caption, len(data.corpus.images), BATCH, "pair", seed=1)
    batches = [captions for _, captions in sampler][:300]
    for drop in (0.2, 0.0):
        data.drop = drop
        times = [seconds(lambda: data._tokens(0, captions, np.zeros_like(captions))) for captions in batches]  # noqa: B023
        print(f"milliseconds a batch of {BATCH} captions, drop {drop}: {1000 * statistics.median(times):.2f}")
    measure_features()


def measure_features() -> None:
    """Batches of 128 x 36 x 2048 from 2,000 images, which the system keeps in memory after the first pass."""
    count, words = 2000, ["a dog runs"]
    for dtype in (np.float32, np.float16):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VSE_CACHE"] = f"{folder}/cache"
            write_corpus(Path(folder), words * 5 * count, 2048, dtype)
            corpus = precomp(folder, "train")
            assert isinstance(corpus.images, Features)
            print(f"{corpus.images.size / 1e9:.2f} GB in {np.dtype(dtype).name}:")
            print(f"  checked the first time in {seconds(corpus.images.checked):.2f} s", end=", ")
            print(f"later in {1000 * seconds(corpus.images.checked):.1f} ms")
            vocabulary = Vocabulary.build(words)
            read_float32 = TrainingData(corpus, vocabulary, 0.2, seed=1)
            as_placed = place(corpus.images, "disk", torch.device("cpu")).read
            stored = TrainingData(corpus, vocabulary, 0.2, seed=1, read=as_placed)
            for name, data, workers, in_threads in (
                ("two processes, float32 for the device", read_float32, 2, False),
                ("two threads, as stored for the device", stored, 2, True),
                ("one thread, as stored for the device", stored, 1, True),
            ):
                sampler = BatchSampler(corpus.image_of_caption, count, BATCH, "pair", seed=1)
                loader = make_loader(data, sampler, workers, False, in_threads)
                list(zip(loader, range(20), strict=False))
                elapsed = seconds(lambda: sum(1 for _ in loader))  # noqa: B023
                print(f"  {name}: {1000 * elapsed / len(sampler):.1f} ms a batch")


if __name__ == "__main__":
    main()
