"""Device, precision, deterministic algorithms, memory, seeds and the states of random generators."""

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vse.distributed import world_size
from vse.errors import InputError, first_line

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GIB = 1 << 30


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
    except torch.OutOfMemoryError:
        raise InputError(f"run.device: {name!r} has no free memory; another process may hold it") from None
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError):
        raise InputError(f"run.device: {name!r} is not available here; expected auto, cpu, cuda or cuda:N") from None
    if device.index is not None and world_size() > 1:
        raise InputError(f"run.device: {name!r} would be shared by all processes; expected auto, cpu or cuda")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # "cuda" without a number, and new streams, then mean this device
    return device


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """A block in which the towers run in mixed precision; float32 is multiplied as in :func:`products`.

    Args:
        device: The towers' device.
        precision: "bf16" or "fp16" for mixed precision; "fp32" or "tf32" for none.
    """
    with products(device, precision):
        with torch.autocast(device.type, dtype=_DTYPES.get(precision), enabled=precision in _DTYPES):
            yield


@contextlib.contextmanager
def products(device: torch.device, precision: str) -> Iterator[None]:
    """A block in which a GPU multiplies float32 as a precision asks for.

    With "fp32" it does so exactly as IEEE 754 has it; by default, torch would leave cuDNN (convolutions, GRUs) in TF32
    and not the rest. With any other precision all products of float32 are in TF32, with 10 bits of mantissa. The
    backward pass must be in the block, too.

    Args:
        device: Where the products are computed; on others than GPUs nothing changes.
        precision: "fp32", "tf32", "bf16" or "fp16".
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _multiply_by(*(("highest", False) if precision == "fp32" else ("high", True)))
    try:
        yield
    finally:
        _multiply_by(*before)


def _multiply_by(matrices: str, convolutions: bool) -> None:
    """Set the precision of products of matrices by torch's name for it, and whether cuDNN may use TF32."""
    with warnings.catch_warnings():  # some versions of torch recommend settings that others do not have
        warnings.filterwarnings("ignore", "Please use the new API settings")
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions


def set_algorithms(deterministic: bool, is_alike: bool) -> None:
    """Choose between algorithms that repeat to the bit and the fastest ones; a setting of the whole process.

    Args:
        deterministic: Whether every operation must give the same bits again. An operation that cannot raises an error.
        is_alike: Whether all batches have the same shape, so that it pays to try which convolution is fastest.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs, before its first product
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = is_alike and not deterministic


@contextlib.contextmanager
def in_one_line(device: torch.device, what: str, remedies: str) -> Iterator[None]:
    """A block in which a lack of memory, or of a deterministic algorithm, is a mistake of the user's.

    Args:
        device: The device of the work.
        what: What may be too large, such as "a batch of 128".
        remedies: What may help.

    Raises:
        InputError: The device has too little memory, or ``run.deterministic`` asks for what torch does not have.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        peak = describe_memory(device)
        used = f" ({peak})" if peak else ""
        raise InputError(f"{device}: out of memory{used}: {what} does not fit; {remedies}") from None
    except RuntimeError as error:
        if not torch.are_deterministic_algorithms_enabled() or "deterministic" not in str(error):
            raise
        raise InputError(f"run.deterministic: {first_line(error)}") from None


def describe_memory(device: torch.device) -> str:
    """Describe the most memory that tensors of this process have taken on a GPU at once; "" for another device."""
    if device.type != "cuda":
        return ""
    most, size = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    return f"peak memory {most / _GIB:.1f} of {size / _GIB:.1f} GiB"


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has taken at once: its tensors on a GPU, or all of it on a CPU.

    Args:
        device: The device of the work.

    Returns:
        GiB; 0 where the system does not tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    try:
        import resource
    except ImportError:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / _GIB if sys.platform == "darwin" else most * 1024 / _GIB  # bytes there, KiB elsewhere


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


def restore_random_states(states: dict[str, Any]) -> bool:
    """Put all global random generators back into the states that :func:`random_states` returned.

    Returns:
        Whether all draws go on as they would have; not so with a GPU where there was none, or the other way round.
    """
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][0])
    return torch.cuda.is_available() == bool(states["cuda"])


def keep_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A block whose random draws the training does not notice."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
