"""What the tests of searching share: small indices of embedding sets, and runs to search with."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vse.ragged import RaggedSets, Sets, padded
from vse.search.index import Kind
from vse.search.shards import MANIFEST, Item, Shard, Shards, summarise, write_shard

WIDTH = 6


def draw_sets(count: int, most: int, is_ragged: bool, seed: int) -> Sets:
    """Embedding sets of few different numbers, which float16 holds: many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, most + 1, (count,), generator=generator) if is_ragged else torch.full((count,), most)
    rows = torch.randint(-1, 2, (int(sizes.sum()), WIDTH), generator=generator).float() + 0.5
    return RaggedSets(rows, sizes) if is_ragged else rows.view(count, most, WIDTH)


def write_index(folder: Path, sets: Sets, kind: Kind = "images", shard: int = 7, half: bool = True) -> Shards:
    """An index of these sets, its ids the items' positions."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(sets), shard)
    for number, first in enumerate(starts):
        whole = padded(sets) if isinstance(sets, Tensor) else sets[:]
        own = slice(first, first + shard)
        embeddings = whole.embeddings[own]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool) if whole.mask is None else whole.mask[own]
        rows = embeddings[mask].numpy().astype(np.float16 if half else np.float32)
        items = [Item(str(position)) for position in range(first, first + len(embeddings))]
        write_shard(folder, number, Shard(rows, mask.sum(1).numpy().astype(np.int32)), items, [])
    about = {"format": 1, "kind": kind, "folder": None, **summarise(folder, len(starts))}
    (folder / MANIFEST).write_text(json.dumps(about))
    return Shards(folder)


def with_config(run: Path) -> str:
    """The run, with the config file that its training writes."""
    content = torch.load(run / "best.pt", weights_only=True)["config"]
    (run / "config.yaml").write_text(json.dumps(content))
    return str(run)
