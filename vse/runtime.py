"""What surrounds the computation: device, precision, seeds, signals, the run folder, errors at the command line."""

import argparse
import contextlib
import errno
import fcntl
import io
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from vse.checkpoint import write_file
from vse.errors import InputError

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """``auto`` is the accelerator when there is one, else the CPU. Raises InputError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError):
        raise InputError(f"run.device: {name!r} is not available here; expected auto, cpu, cuda or cuda:N") from None
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for the towers; fp32 is none."""
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


class Stopped(Exception):
    """A signal came, and everything is saved."""


class StopSignal:
    """Remembers SIGTERM, SIGHUP (unless ``nohup`` has it ignored) and Ctrl-C, so that the loop can save and leave.

    While ``saved`` is set there is nothing to save: the signal raises :class:`Stopped` at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.saved = False

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> "StopSignal":
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        self.number = number
        if self.saved:
            self.saved = False
            raise Stopped


@contextlib.contextmanager
def claim_folder(folder: Path, label: str = "run.dir", doing: str = "training") -> Iterator[None]:
    """Create a folder and hold it alone. Raises InputError when it cannot be written or another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise InputError(f"{label}: cannot write in {folder} ({error.strerror})") from None
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by the loader's workers
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # any other: a file system without locks
                raise InputError(f"{label}: another process is {doing} in {folder}") from None
        for unfinished in folder.glob(".*.tmp"):  # of a run that was killed while writing
            unfinished.unlink()
        yield


class RunLog:
    """metrics.jsonl and TensorBoard events in the run folder; neither holds anything past the step a run goes on from.

    Losses are summed where they are computed and read only when asked for: reading one waits for a GPU. With
    ``overflow`` (fp16, where the scaler skips a step whose gradient overflows) only the loss must be finite.
    """

    def __init__(self, folder: Path, epochs: int, total_steps: int, overflow: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.overflow = overflow
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _is_before(line, epochs, total_steps)]
            write_file(self.path, lambda file: file.write(b"".join(kept)))
        self.board = SummaryWriter(str(folder), purge_step=total_steps + 1)
        self._clear()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.samples = 0
        self.start = time.monotonic()

    def add(self, losses: dict[str, Tensor], samples: int) -> None:
        """Take in a step's losses and its number of samples."""
        self.last = losses
        self.sums = {name: value + self.sums.get(name, 0.0) for name, value in losses.items()}
        self.steps += 1
        self.samples += samples

    def check(self, epoch: int, step: int) -> float:
        """Return the last step's loss. Raises InputError when any number since the last means was not finite."""
        loss, total = float(self.last["total"]), float(self.sums["total"])
        norm, norms = float(self.last["gradient_norm"]), float(self.sums["gradient_norm"])
        if not math.isfinite(total) or not (math.isfinite(norms) or self.overflow):
            last = self.folder / "last.pt"
            kept = f"{last} keeps the last good state" if last.exists() else "nothing was saved before"
            raise InputError(
                f"epoch {epoch}, step {step}: the loss is {loss} and its gradient's norm {norm}, "
                f"expected finite numbers; {kept}; try a lower optim.lr or run.precision=fp32 in another run.dir"
            )
        return loss

    def means(self) -> dict[str, float]:
        """Means since the last call, and the speed."""
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        means["samples_per_second"] = self.samples / (time.monotonic() - self.start)
        self._clear()
        return means

    def write(self, epoch: int, total_steps: int, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and its numbers to TensorBoard; epochs count from 1."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": epoch, "step": total_steps, **record}) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); what was saved is kept") from None
        for name, value in flatten(record).items():
            self.board.add_scalar(name.replace(".", "/"), value, total_steps)
        self.board.flush()


def _is_before(line: bytes, epochs: int, total_steps: int) -> bool:
    """Whether a line of metrics.jsonl was written before a place in the run; one cut short was not."""
    if not line.endswith(b"\n"):
        return False
    try:
        record = json.loads(line)
        return record["step"] <= total_steps and ("dev" not in record or record["epoch"] <= epochs)
    except (ValueError, KeyError, TypeError):
        return False


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        message = message.replace(", key=value", "")  # argparse calls optional overrides required
        raise InputError(f"{message}; see {self.prog} --help")


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """One line on stderr and exit code 2 for the user's mistakes; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clean up on the way out
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):  # nobody reads what is printed any more; what is saved is saved
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "writing"
        _fail(f"{where}: {error.strerror}; what was saved is kept")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)
