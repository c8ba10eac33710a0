"""The log of a run: metrics.jsonl, its tracker, and the lines that it prints."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vse.config import flatten
from vse.distributed import is_main
from vse.errors import InputError
from vse.files import write_file
from vse.training.evaluations import label_of, metric_of, value_of
from vse.training.trackers import Tracker, numbers_of


class RunLog:
    """metrics.jsonl in the run folder, and what the tracker keeps.

    A run that continues from a checkpoint first removes what was logged after it, so that nothing is logged twice.
    Losses are summed on the device and read only when they are needed, because reading one waits for a GPU.

    Args:
        folder: The run folder.
        evaluated: Number of steps before the last evaluation.
        total_steps: Number of finished steps since the start of the run.
        may_overflow: Whether a gradient may overflow. In fp16 it may, and the scaler then skips the step, so that only
            the loss must be finite. Otherwise loss and gradient must be finite.
        tracker: Also takes the numbers, unless it is None.
    """

    def __init__(
        self,
        folder: Path,
        evaluated: int,
        total_steps: int,
        may_overflow: bool = False,
        tracker: Tracker | None = None,
    ) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.may_overflow, self.tracker = may_overflow, tracker
        self.restart()
        self.begun, self.steps_before = self.started, total_steps
        if is_main() and self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = b"".join(line for line in lines if total_steps and _is_before(line, evaluated, total_steps))
            write_file(self.path, lambda file: file.write(kept))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def restart(self) -> None:
        """Forget the losses so far, and restart the clock."""
        self.last: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.steps = self.samples = 0
        self.started = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that does not count as time of training steps."""
        begun = time.monotonic()
        yield
        self.started += time.monotonic() - begun

    def time_left(self, done: int, total: int) -> str:
        """Estimate how long the rest of the run takes, from the steps since it was started or went on.

        Args:
            done: Number of finished steps.
            total: Number of steps of the whole run.

        Returns:
            Hours, minutes and seconds; "?" when no step has been taken.
        """
        own = done - self.steps_before
        if not own:
            return "?"
        left: str = tqdm.format_interval((time.monotonic() - self.begun) / own * (total - done))
        return left

    def add(self, losses: dict[str, Tensor], samples: int) -> None:
        """Add a step.

        Args:
            losses: Its losses.
            samples: Its number of samples.
        """
        self.last = losses
        self.sums = {name: value + self.sums.get(name, 0.0) for name, value in losses.items()}
        self.steps += 1
        self.samples += samples

    def check(self, epoch: int, step: int) -> float:
        """Check that all losses since the last means were finite.

        Args:
            epoch: Number of the epoch, from 1, for the message.
            step: Number of the step in it, from 1, for the message.

        Returns:
            The loss of the last step.

        Raises:
            InputError: A loss, or a gradient's norm, was not finite.
        """
        loss, total = float(self.last["total"]), float(self.sums["total"])
        norm, norms = float(self.last["gradient_norm"]), float(self.sums["gradient_norm"])
        if not math.isfinite(total) or not (math.isfinite(norms) or self.may_overflow):
            last = self.folder / "last.pt"
            kept = f"{last} keeps the last good state" if last.exists() else "nothing was saved before"
            raise InputError(
                f"epoch {epoch}, step {step}: the loss is {loss} and its gradient's norm {norm}, "
                f"expected finite numbers; {kept}; try a lower optim.lr or run.precision=fp32 in another run.dir"
            )
        return loss

    def means(self) -> dict[str, float]:
        """Return the means of the losses, samples per second and seconds per step since the last call, and restart.

        The norm is left out if a gradient has overflowed, since JSON has no infinity.
        """
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        seconds = time.monotonic() - self.started
        means["samples_per_second"] = self.samples / seconds
        means["seconds_per_step"] = seconds / self.steps
        self.restart()
        return means

    def write(self, epoch: int, total_steps: int, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl, and give its numbers to the tracker; the main process does.

        Args:
            epoch: Number of the epoch, from 1.
            total_steps: Number of finished steps since the start of the run.
            record: What to write, by its name "start", "train" or "dev".

        Raises:
            InputError: The file cannot be written.
        """
        if not is_main():
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                line = json.dumps({"epoch": epoch, "step": total_steps, **_finite(record)}, allow_nan=False)
                file.write(line + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); what was saved is kept") from None
        if self.tracker is not None:
            self.tracker.log(numbers_of(flatten(record)), total_steps)


def describe_evaluation(metrics: dict[str, Any], best: dict[str, Any], is_better: bool) -> str:
    """Describe an evaluation on dev.

    Args:
        metrics: The metrics.
        best: The best evaluation so far, see :class:`vse.training.evaluations.Evaluations`.
        is_better: Whether this is it.

    Returns:
        The text, such as "dev RSUM 320.5, I2T R@1 40.1, T2I R@1 30.2 (best so far)".
    """
    metric = metric_of(best)
    own = "" if metric == "rsum" else f", {metric} {value_of(metrics, metric):.1f}"
    return (
        f"dev RSUM {metrics['rsum']:.1f}, I2T R@1 {metrics['i2t']['r1']:.1f}, T2I R@1 {metrics['t2i']['r1']:.1f}{own}"
        + (" (best so far)" if is_better else "")
    )


def describe_best(best: dict[str, Any]) -> str:
    """Describe the best evaluation so far."""
    metric = metric_of(best)
    return (
        f"best dev {label_of(metric)} {best[metric]:.1f} at epoch {best['epoch']}"
        if best["epoch"]
        else "no validation yet"
    )


def _finite(value: Any) -> Any:
    """A record with None for each number that is not finite: JSON has no infinity."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_before(line: bytes, evaluated: int, total_steps: int) -> bool:
    """Whether a line of metrics.jsonl was written before a place in the run; a line that was cut off was not."""
    if not line.endswith(b"\n"):
        return False
    try:
        record = json.loads(line)
        return record["step"] <= (evaluated if "dev" in record else total_steps)
    except (ValueError, KeyError, TypeError):
        return False
