"""What a run writes down: metrics.jsonl and TensorBoard events."""

import json
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from vse.config import flatten
from vse.errors import InputError
from vse.files import write_file


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
