"""What a run has cost, from its metrics.jsonl, and on which machine."""

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import vse

_TAIL = 16_384  # bytes that hold the last line of a log


def training_cost(file: Path) -> dict[str, Any]:
    """Compute what a run's training has cost.

    The seconds are those of the training steps alone, without evaluations. A line of the log has the mean seconds per
    step since the line before it, so steps that were taken twice after an interruption count once.

    Args:
        file: The run's metrics.jsonl. Lines that cannot be read are left out.

    Returns:
        "steps", "seconds", "seconds_per_step", "memory_gib" (the most of all lines), and "curve": for each evaluation
        on dev the seconds until then, the epoch and the RSUM.
    """
    steps, seconds, pace, memory = 0, 0.0, 0.0, 0.0
    curve: list[list[float]] = []
    for record in _records(file):
        step = record["step"]
        if "train" in record and "seconds_per_step" in record["train"]:
            pace = record["train"]["seconds_per_step"]
            memory = max(memory, record["train"].get("memory_gib", 0.0))
            seconds += pace * (step - steps)
            steps = step
        elif "dev" in record and record["dev"].get("rsum") is not None:
            curve.append([seconds + pace * (step - steps), record["epoch"], record["dev"]["rsum"]])
    per_step = seconds / steps if steps else 0.0
    return {"steps": steps, "seconds": seconds, "seconds_per_step": per_step, "memory_gib": memory, "curve": curve}


def epochs_done(file: Path) -> int:
    """Count the epochs that a run has finished, from the end of its metrics.jsonl."""
    last = list(_records(file, _TAIL))[-1:]
    return sum(record["epoch"] if "dev" in record else record["epoch"] - 1 for record in last if "start" not in record)


def _records(file: Path, tail: int | None = None) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, or of its last bytes."""
    if not file.is_file():
        return
    with open(file, "rb") as opened:
        if tail is not None:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - tail))
        content = opened.read()
    for line in content.decode("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"step", "epoch"} <= record.keys():
            yield record


def describe_machine() -> dict[str, Any]:
    """Describe this machine and the versions that work on it.

    Returns:
        The versions of vse, torch and Python, the system, the processor, its cores, and the GPU's name if there is one.
    """
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "vse": vse.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "gpu": gpus[0] if gpus else None,
    }


def cores() -> int:
    """The number of cores that this process may use."""
    if "sched_getaffinity" in dir(os):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name; "" where the system does not tell."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
