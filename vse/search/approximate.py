"""An approximate index over single embeddings, by Faiss, which proposes the items that the similarity then ranks.

Each embedding of a set is a row, and rows are proposed by their inner product with each embedding of a query. The best
row of an item is a good reason to look at the item for any similarity of sets, and the similarity itself decides.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vse.console import show_progress
from vse.data.reading import read_json
from vse.errors import InputError
from vse.files import claim_folder, write_json
from vse.ragged import Sets, take
from vse.search.shards import Shards, sizes_and_rows

FILE, ABOUT = "approximate.faiss", "approximate.json"
SAMPLE = 200  # queries that recall is measured with
ENOUGH = 0.95  # recall at which queries look no further
MOST = 3200  # embeddings that are proposed at most for each embedding of a query, unless the user asks for more
_SMALL = 20_000  # embeddings up to which every one is compared
_LARGE = 10_000_000  # embeddings from which on 8 bits a number take too much memory
_PER_LIST = 40  # embeddings that the centre of a list is learned from
_FEWEST = 8  # lists that a query looks at, unless more are needed
_QUERIES = 1024  # rows of queries that are searched at a time


class About(NamedTuple):
    """What is known of an approximate index.

    Attributes:
        factory: Faiss's description of it.
        rows: The number of embeddings.
        probe: The number of lists that a query looks at; 0 for an index without lists.
        candidates: The number of embeddings that are proposed for each embedding of a query.
        recall: How many of the ten best items it finds, in [0, 1]; None before it is measured.
        queries: The number of queries that this was measured with.
        own_items: Whether these queries were items of the index.
        top: The number of best items, ten but for a smaller index.
    """

    factory: str
    rows: int
    probe: int
    candidates: int = 100
    recall: float | None = None
    queries: int = 0
    own_items: bool = False
    top: int = 10

    def __str__(self) -> str:
        probe = f"{self.probe} lists a query, " if self.probe else ""
        made = f"{self.factory} over {self.rows:,} embeddings, {probe}{self.candidates} candidates for each embedding"
        if self.recall is None:
            return made
        kind = "items of the index itself; other queries may find fewer" if self.own_items else "queries"
        return f"{made}; recall@{self.top} against the exact search {self.recall:.3f} ({self.queries} {kind})"


def import_faiss() -> Any:
    """Import Faiss.

    Raises:
        InputError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise InputError("an approximate index needs Faiss: pip install 'vse-retrieval[faiss]'") from None
    return faiss


def choose_factory(rows: int, width: int) -> str:
    """Choose Faiss's index for a number of embeddings.

    Few embeddings are all compared. More of them are cut into about 2 sqrt(rows) lists, with 8 bits a number; from ten
    million on with one byte for every few numbers, and centres that are found by a graph.

    Args:
        rows: The number of embeddings.
        width: Their width.

    Returns:
        Faiss's description.

    >>> choose_factory(1_000_000, 512), choose_factory(100_000_000, 512)
    ('IVF2048,SQ8', 'IVF16384_HNSW32,PQ64')
    """
    lists = 2 ** round(math.log2(2 * math.sqrt(max(1, rows))))
    if rows <= _SMALL:
        return "Flat"
    return f"IVF{lists},SQ8" if rows < _LARGE else f"IVF{lists}_HNSW32,PQ{math.gcd(width, 64)}"


def build(shards: Shards, factory: str | None = None) -> About:
    """Build the approximate index of an index, and write it beside the shards.

    Args:
        shards: The embeddings.
        factory: Faiss's description; see :func:`choose_factory` for the default.

    Returns:
        What is known of it.

    Raises:
        InputError: Faiss is not installed, does not know the factory, or cannot write.
    """
    faiss = import_faiss()
    rows = int(shards.first_rows[-1])
    factory = factory or choose_factory(rows, shards.width)
    try:
        made = faiss.index_factory(shards.width, factory, faiss.METRIC_INNER_PRODUCT)
        if not made.is_trained:
            made.train(_sample(shards, _PER_LIST * max(256, _lists(faiss, made))))
        for shard in show_progress(shards.shards, len(shards.shards), "building the approximate index", " shards"):
            if len(shard.embeddings):
                made.add(np.ascontiguousarray(shard.embeddings, dtype=np.float32))
    except RuntimeError as error:
        raise InputError(f"--factory {factory}: Faiss cannot build it ({_reason(error)})") from None
    about = About(factory, rows, min(_FEWEST, _lists(faiss, made)))
    with claim_folder(shards.folder, str(shards.folder), "embedding"):
        (shards.folder / ABOUT).unlink(missing_ok=True)
        temporary = shards.folder / f".{FILE}.{os.getpid()}.tmp"
        try:
            faiss.write_index(made, str(temporary))
        except RuntimeError as error:
            raise InputError(f"{shards.folder / FILE}: cannot be written ({_reason(error)})") from None
        os.replace(temporary, shards.folder / FILE)
        write_json(shards.folder / ABOUT, about._asdict())
    return about


def write_about(folder: Path, about: About) -> None:
    """Write what is known of an approximate index, whose file is there already."""
    write_json(folder / ABOUT, about._asdict())


def recall(exact: Tensor, found: Tensor) -> float:
    """Return which share of the best items an approximate search has found.

    Args:
        exact: The positions (queries, top) of the best items.
        found: The positions (queries, top) that the approximate search has found, -1 for none.

    Returns:
        The share, in [0, 1].

    >>> recall(torch.tensor([[1, 2]]), torch.tensor([[2, -1]]))
    0.5
    """
    return float((exact.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean())


class Proposals:
    """The approximate index of an index, open for searching.

    Args:
        shards: The embeddings.

    Raises:
        InputError: Faiss is not installed, or there is no approximate index, or it belongs to other embeddings.
    """

    def __init__(self, shards: Shards) -> None:
        faiss = import_faiss()
        self.shards = shards
        hint = f"`vse embed ... --out {shards.folder} --approximate` builds one"
        if not (shards.folder / ABOUT).is_file():
            raise InputError(f"{shards.folder}: has no approximate index; {hint}")
        try:
            self.about = About(**read_json(shards.folder / ABOUT))
            self.index = faiss.read_index(str(shards.folder / FILE))
        except (TypeError, RuntimeError) as error:
            raise InputError(f"{shards.folder / FILE}: cannot be read ({_reason(error)}); {hint}") from None
        if (self.index.ntotal, self.index.d) != (int(shards.first_rows[-1]), shards.width):
            raise InputError(f"{shards.folder / FILE}: belongs to other embeddings; {hint}")
        self.lists = _lists(faiss, self.index)
        self.look(self.about.probe, self.about.candidates)

    def look(self, lists: int, candidates: int) -> None:
        """Set how many lists a query looks at, and how many embeddings are proposed for each of its own."""
        self.about = self.about._replace(probe=min(lists, self.lists), candidates=candidates)
        if self.lists:
            import_faiss().ParameterSpace().set_index_parameter(self.index, "nprobe", self.about.probe)

    def find(self, queries: Sets, depth: int) -> Iterator[np.ndarray]:
        """Propose items.

        Args:
            queries: The queries' embedding sets.
            depth: The number of embeddings to propose for each embedding of a query.

        Yields:
            For each query the positions of the proposed items, ascending.
        """
        for first in range(0, len(queries), _QUERIES):
            sizes, rows = sizes_and_rows(take(queries, slice(first, first + _QUERIES)))
            _, found = self.index.search(rows.float().cpu().numpy(), min(depth, self.about.rows))
            for proposed in np.split(found, np.cumsum(sizes.cpu().numpy())[:-1]):
                yield np.unique(self.shards.items_of_rows(proposed[proposed >= 0]))


def _lists(faiss: Any, made: Any) -> int:
    """The number of lists of an index; 0 if it has none."""
    inner = made
    if isinstance(made, faiss.IndexPreTransform):
        inner = faiss.downcast_index(made.index)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 0


def _sample(shards: Shards, count: int) -> np.ndarray:
    """About that many embeddings, evenly spread, float32."""
    step = max(1, int(shards.first_rows[-1]) // count)
    parts = [shard.embeddings[::step] for shard in shards.shards if len(shard.embeddings)]
    return np.concatenate(parts).astype(np.float32)


def _reason(error: Exception) -> str:
    """What Faiss says is wrong, without the place in its source."""
    return " ".join(str(error).split()).rpartition(": ")[2][:160]
