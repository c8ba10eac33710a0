"""What surrounds the computation: device, precision, seeds and random states."""

import contextlib
import random
from typing import Any

import numpy as np
import torch

from vse.errors import InputError

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return a device, and make it the current one when it is a numbered GPU.

    Args:
        name: A device of torch; "auto" is the accelerator when there is one, else the CPU.

    Raises:
        InputError: The device is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError):
        raise InputError(f"run.device: {name!r} is not available here; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what names no device, such as "cuda" or a new stream, then means this one
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for the towers.

    Args:
        device: Where the towers are.
        precision: "bf16" or "fp16"; "fp32" changes nothing.
    """
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def seed_everything(seed: int) -> None:
    """Seed every global generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """All global generators' states, in plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo what happened since :func:`random_states`."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def keep_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A block whose random draws the training does not notice."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
