"""Where precomputed features are kept during training: on the GPU, in memory or on disk (``data.resident``)."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.console import say, show_progress
from vse.data.corpus import Features, ImageSource
from vse.distributed import share_of_free
from vse.errors import InputError
from vse.sets import at_least_float32

_ROOM = 0.9  # the share of the free memory that features may take when the config asks for it
_AUTO_ROOM = 0.5  # and when it does not: the model and its gradients come on top
_BLOCK = 256  # images that are copied at a time
_LARGEST_HALF = 65504.0


class Placed(NamedTuple):
    """How batches get their images.

    Attributes:
        read: Reads the images of some indices and an epoch: features, pictures or clips; or, when the features are on
            the device, the indices themselves.
        finish: Turns what was read, once it is on the device, into what the image encoder takes.
        in_threads: Whether several threads may read at once.
    """

    read: Callable[[np.ndarray, int], np.ndarray | list[np.ndarray]]
    finish: Callable[[Tensor], Tensor]
    in_threads: bool


class FeatureTable:
    """Features that are kept on a device.

    Args:
        features: Where they are read from, once.
        device: The device.
        dtype: The type that they are kept in, float16 or float32.

    Raises:
        InputError: A value is too large for float16, or the file has changed.

    >>> FeatureTable(features, torch.device("cuda"), torch.float16)(torch.tensor([3, 1])).shape
    torch.Size([2, 36, 2048])
    """

    def __init__(self, features: Features, device: torch.device, dtype: torch.dtype) -> None:
        count, path = len(features), features.path
        self.values = torch.empty(count, *features.shape[1:], dtype=dtype, device=device)
        stored = features.as_stored()
        title = f"copying {path.name} to {device}"
        starts = range(0, count, _BLOCK)
        for start in show_progress(starts, len(starts), title, " blocks", delay=2):
            block = stored.read(np.arange(start, min(start + _BLOCK, count)))
            if dtype == torch.float16 and np.abs(block).max() > _LARGEST_HALF:
                raise InputError(
                    f"{path}: holds {np.abs(block).max():g}, too large for float16, in which data.resident=gpu keeps "
                    f"features; expected at most {_LARGEST_HALF:g}, or data.resident=auto, memory or disk"
                )
            self.values[start : start + len(block)] = torch.from_numpy(block).to(device)

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the features (n, regions, width) float32 of the images with these indices (n,)."""
        return at_least_float32(self.values.index_select(0, indices))


def indices_alone(indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
    """Return the indices: whoever has the features looks them up."""
    return indices


def place(images: ImageSource, resident: str, device: torch.device) -> Placed:
    """Put the features of a training corpus where the config wants them.

    ``auto`` changes no number: features go to the GPU, in the type of their file, if they fit into half of its free
    memory; otherwise they stay on disk. ``gpu`` keeps them as float16. What does not fit stays on disk, and a line says
    so.

    Args:
        images: The images of the corpus. Only :class:`vse.data.corpus.Features` can be kept.
        resident: "auto", "gpu", "memory" or "disk".
        device: The device that trains.

    Returns:
        How batches get their images.

    Raises:
        InputError: The features hold NaN or Inf, or these images cannot be kept there.
    """
    if not isinstance(images, Features):
        if resident in ("gpu", "memory"):
            raise InputError(f"data.resident: {resident} needs the features of the format precomp; got {images.kind}")
        return Placed(images.read, at_least_float32, in_threads=False)
    if resident == "gpu" and device.type != "cuda":
        raise InputError(f"data.resident: gpu needs a GPU, but run.device is {device}; expected auto, memory or disk")
    features = images.checked()
    dtype = torch.float16 if resident == "gpu" or features.dtype == np.float16 else torch.float32
    if device.type == "cuda" and resident in ("auto", "gpu"):
        size = int(np.prod((len(features), *features.shape[1:]))) * dtype.itemsize
        if _fits(size, torch.cuda.mem_get_info(device)[0], "GPU", resident):
            return Placed(indices_alone, FeatureTable(features, device, dtype), in_threads=True)
    features = features.as_stored()
    free = free_memory()
    share = None if free is None else share_of_free(free)
    if resident == "memory" and _fits(features.size, share, "memory", resident):
        features = features.in_memory()
    return Placed(features.read, at_least_float32, in_threads=True)


def _fits(size: int, free: int | None, where: str, resident: str) -> bool:
    """Whether there is room for features; if the config asked for it and there is none, a line is printed."""
    room = _AUTO_ROOM if resident == "auto" else _ROOM
    if free is None or size <= room * free:
        return True
    if resident != "auto":
        say(
            f"data.resident: {resident}: the features take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB of {where} are "
            f"free, of which {room:.0%} may be taken; they are read from disk"
        )
    return False


def free_memory() -> int | None:
    """Return how many bytes of memory programs can still get, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
