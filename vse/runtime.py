"""Device, precision, seeds and the states of random generators."""

import contextlib
import random
from typing import Any

import numpy as np
import torch

from vse.distributed import world_size
from vse.errors import InputError

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return a device, and make it the current one when it is a numbered GPU.

    Args:
        name: A device as torch names it, or "auto" for the accelerator if there is one and the CPU otherwise.

    Raises:
        InputError: This machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError):
        raise InputError(f"run.device: {name!r} is not available here; expected auto, cpu, cuda or cuda:N") from None
    if device.index is not None and world_size() > 1:
        raise InputError(f"run.device: {name!r} would be shared by all processes; expected auto, cpu or cuda")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # "cuda" without a number, and new streams, then mean this device
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the towers run in mixed precision.

    Args:
        device: The towers' device.
        precision: "bf16" or "fp16"; "fp32" changes nothing.

    Returns:
        The context manager.
    """
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def seed_everything(seed: int) -> None:
    """Seed all global random generators: those of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """Return the states of all global random generators, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this process's GPU
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put all global random generators back into the states that :func:`random_states` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][0])


def keep_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A block whose random draws the training does not notice."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
