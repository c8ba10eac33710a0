"""Long work on many rows: batch by batch, read ahead, shared by processes, and kept when the process is killed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from vse.console import progress_bar
from vse.data.reading import read_json
from vse.distributed import collect, share, world_size
from vse.errors import InputError

Result = TypeVar("Result")


def computed(
    read: Callable[[np.ndarray], Any],
    compute: Callable[[Any, int], Result],
    stretches: Sequence[range],
    total: int,
    size: int,
    title: str,
) -> Iterator[tuple[int, Result]]:
    """Compute some rows batch by batch; the next batch is read meanwhile.

    In a round every process computes a batch of up to ``size`` rows. The main process gets all of them, in the order of
    their rows; the others take part and get nothing.

    Args:
        read: Reads the rows of some numbers (n,).
        compute: Computes what was read, given the number of its first row.
        stretches: The rows to compute. No batch has rows of two stretches.
        total: The number of rows, with those that are not computed here because they are there already.
        size: The number of rows in a batch.
        title: What the progress bar says.

    Yields:
        The number of each batch's first row, and what was computed.

    >>> [result for _, result in computed(lambda rows: rows, lambda rows, first: rows.tolist(), [range(3)], 3, 2, "")]
    [[0, 1], [2]]
    """
    together = size * world_size()
    rounds = [np.asarray(part[i : i + together]) for part in stretches for i in range(0, len(part), together)]
    first = total - sum(map(len, rounds))

    def read_own(rows: np.ndarray) -> tuple[int, Any] | None:
        own = rows[share(len(rows))]
        return (int(own[0]), read(own)) if len(own) else None

    with ThreadPoolExecutor(1) as pool, progress_bar(title, " items", total, first, stays=True) as bar:
        waiting = None
        for number, rows in enumerate(rounds):
            batch = (waiting or pool.submit(read_own, rows)).result()
            if number + 1 < len(rounds):
                waiting = pool.submit(read_own, rounds[number + 1])
            own = None if batch is None else (batch[0], compute(batch[1], batch[0]))
            yield from (part for part in collect(own) if part is not None)
            bar.update(len(rows))


def as_written(values: np.ndarray, half: bool, what: str) -> np.ndarray:
    """Convert values to the type that is written.

    Args:
        values: The values.
        half: Whether that is float16 instead of float32.
        what: What they are, for the message, such as "the features of image 7".

    Returns:
        The values in that type.

    Raises:
        InputError: The type cannot hold them.

    >>> as_written(np.array([0.1]), True, "features").dtype
    dtype('float16')
    """
    with np.errstate(over="ignore"):
        converted: np.ndarray = values.astype(np.float16 if half else np.float32)
    if not np.isfinite(converted).all():
        raise InputError(f"{what}, or of one soon after it, are not finite in {converted.dtype}")
    return converted


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return a hash of weights and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_same_origin(
    path: Path,
    manifest: dict[str, Any],
    keys: Sequence[str],
    what: str = "features",
    names: Mapping[str, str] | None = None,
) -> None:
    """Check that a manifest on disk says of its files what is to be said of those that would join them.

    Args:
        path: The manifest on disk, a JSON file.
        manifest: How the new files are made.
        keys: The entries that must be equal.
        what: What the files hold, for the message.
        names: What the message calls an entry, where that is not its key.

    Raises:
        InputError: The manifest is damaged, or an entry differs; the message names it.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged; remove it with the {what} beside it")
    wanted = json.loads(json.dumps(manifest))
    if differ := [(names or {}).get(key, key) for key in keys if found.get(key) != wanted[key]]:
        raise InputError(
            f"{path}: made with another {', '.join(differ)}; remove it with its {what}, or choose another folder"
        )
