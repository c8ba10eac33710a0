#!/usr/bin/env python3
"""What an index of many items costs: bytes, and the time and recall of the exact and of the approximate search.

    python benchmarks/search.py [--items N] [--sets K] [--factory NAME ...] [--folder DIR] [--threads N]

The embeddings are random ones, 512 wide, in clusters, float16 on disk; the queries are further ones of the same
clusters, more noisy. Times are the fastest of some repeats, with the index in the system's file cache; memory is what
the process has taken at its peak (Linux only). The folder is removed at the end.
"""

import argparse
import json
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vse.search.index import Index
from vse.search.shards import FORMAT, MANIFEST, Item, Shard, Shards, summarise, write_shard
from vse.similarity import cosine, smooth_chamfer

WIDTH, CLUSTERS, SHARD = 512, 10_000, 65_536
ITEM_NOISE, QUERY_NOISE = 1.0, 1.4  # lengths of what is added to a cluster's centre of length 1


def draw(count: int, sets: int, noise: float, centres: Tensor, generator: torch.Generator) -> Tensor:
    """Unit embeddings (count, sets, 512) around random centres, another one for each embedding of a set."""
    chosen = torch.randint(len(centres), (count, sets), generator=generator)
    return normalize(
        centres[chosen] + noise / WIDTH**0.5 * torch.randn(count, sets, WIDTH, generator=generator), dim=-1
    )


def write(folder: Path, items: int, sets: int) -> tuple[Shards, Tensor]:
    """An index of random embeddings, and 200 queries."""
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(CLUSTERS, WIDTH, generator=generator), dim=-1)
    starts = range(0, items, SHARD)
    for number, first in enumerate(starts):
        count = min(SHARD, items - first)
        rows = draw(count, sets, ITEM_NOISE, centres, generator).flatten(0, 1).half().numpy()
        names = [Item(f"{number:05}/{place:08}.jpg", f"{number:05}/{place:08}.jpg") for place in range(count)]
        write_shard(folder, number, Shard(rows, np.full(count, sets, dtype=np.int32)), names, [])
    about = {"format": FORMAT, "kind": "images", "folder": None, **summarise(folder, len(starts))}
    (folder / MANIFEST).write_text(json.dumps(about))
    return Shards(folder), draw(200, sets, QUERY_NOISE, centres, generator)


def fastest(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest repeat."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def memory() -> str:
    """The process's memory now, without the files that it maps, and at its peak."""
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{int(anonymous[1]) / 1024**2 if anonymous else 0:.2f} GiB now, {peak / 1024**2:.2f} GiB peak with files"


def measure(index: Index, queries: Tensor, approximately: bool) -> str:
    """The times of one query and of a hundred."""
    times = []
    for count in (1, 100):
        repeats = 3 if count == 1 else 2

        def work(own: Tensor = queries[:count]) -> object:
            return index.search_sets(own, "captions", 10, approximately)

        times.append(fastest(work, repeats))
    return f"1 query {times[0]:.3f} s, 100 queries {times[1]:.2f} s"


def size(folder: Path, pattern: str) -> str:
    """Gigabytes of some files of a folder."""
    return f"{sum(path.stat().st_size for path in folder.glob(pattern)) / 1e9:.2f} GB"


def run(folder: Path, items: int, sets: int, factories: list[str | None]) -> None:
    """Measure one index and print."""
    start = time.perf_counter()
    shards, queries = write(folder, items, sets)
    print(f"{items:,} x {sets} x {WIDTH}: drawn and written in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"  embeddings {size(folder, '*.npy')}, ids {size(folder, '*.jsonl')}", flush=True)
    index = Index(shards, cosine if sets == 1 else smooth_chamfer, torch.device("cpu"))
    print(f"  exact: {measure(index, queries, False)}; memory {memory()}", flush=True)
    for factory in factories:
        start = time.perf_counter()
        about = index.build_approximate(factory, queries, "captions")
        print(f"  {about}; built and measured in {time.perf_counter() - start:.0f} s", flush=True)
        print(f"    file {size(folder, 'approximate.faiss')}; memory {memory()}", flush=True)
        print(f"    approximate: {measure(index, queries, True)}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, default=1, help="embeddings of an item")
    parser.add_argument("--factory", action="append", help="Faiss's description; may be repeated; none: the default")
    parser.add_argument("--exact", action="store_true", help="measure no approximate index")
    parser.add_argument("--folder", help="where the index is written for the time of the measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    factories: list[str | None] = [] if arguments.exact else list(arguments.factory or [None])
    if factories:
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        run(folder, arguments.items, arguments.sets, factories)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
