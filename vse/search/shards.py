"""An index on disk: the embeddings of many items in shards, beside their ids.

A shard has the embeddings of neighbouring items, ``00000.npy`` (rows, H), one set after another; the size of each set,
``00000.sizes.npy``; and a line of JSON for each item, ``00000.jsonl``. ``manifest.json`` says what made them, and is
written when all of them are there.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.data.reading import NOT_NPY, malformed, read_json
from vse.errors import InputError, first_line
from vse.files import write_file
from vse.ragged import RaggedSets, Sets, padded
from vse.sets import Aggregated

MANIFEST, UNFINISHED = "manifest.json", ".unfinished.json"
FORMAT = 1


class Item(NamedTuple):
    """What an index knows of a picture, clip or caption.

    Attributes:
        id: Its id.
        file: Its file, below the manifest's folder of pictures, if it has one.
        caption: Its caption; of a picture, the first one that its data set has, if any.
    """

    id: str
    file: str | None = None
    caption: str | None = None


class Shard(NamedTuple):
    """The embeddings of neighbouring items.

    Attributes:
        embeddings: All embeddings (rows, H), one set after another.
        sizes: The number of embeddings of each item (items,).
    """

    embeddings: np.ndarray
    sizes: np.ndarray


class Skipped(NamedTuple):
    """An item that could not be read, and why."""

    id: str
    reason: str


def has_shard(folder: Path, number: int) -> bool:
    """Whether a shard has been written."""
    return _file(folder, number, "npy").exists()


def write_shard(folder: Path, number: int, shard: Shard, items: Sequence[Item], skipped: Sequence[Skipped]) -> None:
    """Write a shard; its embeddings come last, so that a shard with embeddings is complete.

    Args:
        folder: The index.
        number: The number of the shard, from 0.
        shard: Its embeddings.
        items: Its items.
        skipped: What could not be read.

    Raises:
        InputError: The disk is full.
    """
    for ending, rows in (("jsonl", items), ("skipped.jsonl", skipped)):
        if rows or ending == "jsonl":
            lines = "".join(_line(row) for row in rows).encode()
            write_file(_file(folder, number, ending), lambda file, lines=lines: file.write(lines))  # type: ignore[misc]
    for ending, array in (("sizes.npy", shard.sizes), ("npy", shard.embeddings)):
        write_file(_file(folder, number, ending), lambda file, array=array: np.save(file, array))  # type: ignore[misc]


def _line(row: Item | Skipped) -> str:
    """A line of JSON, without what is not known."""
    return json.dumps({key: value for key, value in row._asdict().items() if value is not None}) + "\n"


def summarise(folder: Path, shards: int) -> dict[str, Any]:
    """Return what a manifest says of the shards, which have all been written.

    Args:
        folder: The index.
        shards: The number of shards.

    Returns:
        The number of items, the sizes of their sets, the width of the embeddings, and the items and rows of each shard.

    Raises:
        InputError: None of the items could be read.
    """
    counts: list[dict[str, int]] = []
    sizes: set[int] = set()
    widths: set[int] = set()
    skipped: list[dict[str, str]] = []
    for number in range(shards):
        found = _load(_file(folder, number, "sizes.npy"))
        embeddings = _load(_file(folder, number, "npy"))
        counts.append({"items": len(found), "rows": len(embeddings)})
        sizes.update((int(found.min()), int(found.max())) if len(found) else ())
        widths.update({embeddings.shape[1]} if len(found) else ())
        if _file(folder, number, "skipped.jsonl").exists():
            skipped += [json.loads(line) for line in _lines(_file(folder, number, "skipped.jsonl"))]
    if not sizes:
        raise InputError(f"{folder}: nothing could be read; the first is {skipped[0]['id']}: {skipped[0]['reason']}")
    return {
        "items": sum(count["items"] for count in counts),
        "embeddings_per_item": sizes.pop() if len(sizes) == 1 else [min(sizes), max(sizes)],
        "width": widths.pop(),
        "shards": counts,
        "skipped": skipped,
    }


class Shards:
    """The embeddings and the items of a finished index, read from disk where they are needed.

    Args:
        folder: The index.

    Raises:
        InputError: The folder is no finished index, or a file is missing or damaged; the message names it.

    >>> len(Shards(Path("index")))
    50000
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        try:
            counts = [(shard["items"], shard["rows"]) for shard in self.manifest["shards"]]
            per_item, self.width = self.manifest["embeddings_per_item"], int(self.manifest["width"])
            self.kind: str = self.manifest["kind"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / MANIFEST}: damaged ({malformed(error)})") from None
        self.is_ragged = isinstance(per_item, list)
        self.places = int(per_item[1] if isinstance(per_item, list) else per_item)  # in the largest set
        self.first_items = np.cumsum([0, *(items for items, _ in counts)])
        self.first_rows = np.cumsum([0, *(rows for _, rows in counts)])
        self._known_ends: dict[int, np.ndarray] = {}
        self.shards = [self._open(number, rows) for number, (_, rows) in enumerate(counts)]

    def __len__(self) -> int:
        return int(self.first_items[-1])

    def blocks(self, side: int, device: torch.device) -> Iterator[tuple[int, Aggregated]]:
        """Go through all items.

        Args:
            side: The most items in a block.
            device: Where the blocks are wanted.

        Yields:
            The position of each block's first item, and its embedding sets (n, K, H) in float32, with their mask (n, K)
            where the sets of the index differ in size.
        """
        for number, shard in enumerate(self.shards):
            ends = self._ends(number)
            for first in range(0, len(shard.sizes), side):
                sizes = shard.sizes[first : first + side]
                rows = shard.embeddings[ends[first] : ends[first + len(sizes)]]
                yield int(self.first_items[number]) + first, padded(self._sets(rows, sizes, device))

    def take(self, positions: np.ndarray, device: torch.device) -> Sets:
        """Read some items' embeddings.

        Args:
            positions: Their positions (n,) in the index, ascending.
            device: Where the embeddings are wanted.

        Returns:
            Their embedding sets in float32.
        """
        rows, sizes = [np.empty((0, self.width), dtype=np.float32)], [np.empty(0, dtype=np.int32)]
        for number, own in self._by_shard(positions):
            shard, ends = self.shards[number], self._ends(number)
            sizes.append(shard.sizes[own])
            starts = np.repeat(ends[own] - np.cumsum(sizes[-1]) + sizes[-1], sizes[-1])
            rows.append(shard.embeddings[starts + np.arange(len(starts))])
        return self._sets(np.concatenate(rows[1:] or rows), np.concatenate(sizes), device)

    def items(self, positions: np.ndarray) -> dict[int, Item]:
        """Read what is known of some items.

        Args:
            positions: Their positions in the index, in any order.

        Returns:
            The items by their positions.

        Raises:
            InputError: A shard's list of items is damaged.
        """
        found = {}
        for number, own in self._by_shard(np.unique(positions)):
            file = _file(self.folder, number, "jsonl")
            lines = _lines(file)
            try:
                for place in own.tolist():
                    found[int(self.first_items[number]) + place] = Item(**json.loads(lines[place]))
            except (ValueError, TypeError, IndexError) as error:
                raise InputError(f"{file}: damaged ({first_line(error)}); embed again") from None
        return found

    def items_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the position of the item that each embedding belongs to, given the embeddings' numbers (n,)."""
        if not self.is_ragged:
            return rows // self.places
        found = np.empty_like(rows)
        shards = np.searchsorted(self.first_rows, rows, side="right") - 1
        for number in np.unique(shards).tolist():
            own = shards == number
            places = np.searchsorted(self._ends(number), rows[own] - self.first_rows[number], side="right") - 1
            found[own] = self.first_items[number] + places
        return found

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each shard that has some of these items, and their places in it."""
        shards = np.searchsorted(self.first_items, positions, side="right") - 1
        for number in np.unique(shards).tolist():
            yield number, positions[shards == number] - self.first_items[number]

    def _sets(self, rows: np.ndarray, sizes: np.ndarray, device: torch.device) -> Sets:
        """Embedding sets in float32.

        Float16 is converted on the device, so that half as many bytes are copied there.
        """
        embeddings = torch.from_numpy(np.array(rows)).to(device).float()
        if not self.is_ragged:
            return embeddings.view(len(sizes), self.places, self.width)
        return RaggedSets(embeddings, torch.from_numpy(sizes.astype(np.int64)))

    def _ends(self, number: int) -> np.ndarray:
        """Where each set of a shard begins, and where the last one ends, (items + 1,) rows."""
        sizes = self.shards[number].sizes
        if not self.is_ragged:
            return np.arange(len(sizes) + 1) * self.places
        if number not in self._known_ends:
            self._known_ends[number] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return self._known_ends[number]

    def _open(self, number: int, rows: int) -> Shard:
        file = _file(self.folder, number, "npy")
        items = int(self.first_items[number + 1] - self.first_items[number])
        embeddings = _load(file)
        if rows and embeddings.shape != (rows, self.width):
            problem = f"has an array of shape {embeddings.shape}, but {MANIFEST} says {(rows, self.width)}"
            raise InputError(f"{file}: {problem}; embed again")
        if not self.is_ragged:
            return Shard(embeddings, np.broadcast_to(np.int32(self.places), (items,)))
        sizes = _load(_file(self.folder, number, "sizes.npy"))
        if len(sizes) != items or sizes.sum() != rows:
            raise InputError(f"{_file(self.folder, number, 'sizes.npy')}: does not fit {MANIFEST}; embed again")
        return Shard(embeddings, np.array(sizes))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished index.

    Args:
        folder: The index.

    Returns:
        The manifest.

    Raises:
        InputError: The folder is no finished index.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / UNFINISHED).is_file():
            raise InputError(f"{folder}: is not finished; give its `vse embed` command again, and it goes on")
        raise InputError(f"{folder}: no index in this folder; `vse embed RUN PICTURES --out {folder}` makes one")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST}: not the manifest of an index that this version reads; embed again")
    return manifest


def sizes_and_rows(sets: Aggregated) -> tuple[Tensor, Tensor]:
    """Take the padding out of a batch of sets.

    Args:
        sets: Embeddings (B, K, H), and a mask (B, K) or None.

    Returns:
        The sizes (B,) of the sets, and all embeddings (rows, H), one set after another.
    """
    embeddings, mask = sets.embeddings, sets.mask
    if mask is None:
        return torch.full((len(embeddings),), embeddings.shape[1]), embeddings.flatten(0, 1)
    return mask.sum(1), embeddings[mask]


def _file(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:05}.{ending}"


def _lines(file: Path) -> list[str]:
    """The lines of a file of JSON lines."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({first_line(error)}); embed again") from None


def _load(file: Path) -> np.ndarray:
    """A memory-mapped array; np.load would unpickle a file that is not an .npy file."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except NOT_NPY as error:
        raise InputError(f"{file}: not a complete .npy file of numbers ({first_line(error)}); embed again") from None
