"""What a run has cost, read from its log."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from vse.studies.cost import describe_machine, epochs_done, training_cost


def write_log(folder: Path, records: list[dict[str, Any]], rest: str = "") -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + rest)
    return file


def train(epoch: int, step: int, pace: float, memory: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "train": {"seconds_per_step": pace, "memory_gib": memory}}


def dev(epoch: int, step: int, rsum: float | None) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "dev": {"rsum": rsum}}


RECORDS = [
    {"epoch": 1, "step": 0, "start": {"image_log_variance": -2.0}},
    train(1, 10, 0.5),
    train(1, 14, 1.0, 0.9),
    dev(1, 14, 100.0),
    train(2, 24, 0.25),
    dev(2, 26, 150.0),  # in the middle of an epoch, between two lines of the log
    train(2, 28, 0.5),
    dev(2, 28, None),
]


def test_seconds_steps_and_memory(tmp_path: Path) -> None:
    cost = training_cost(write_log(tmp_path, RECORDS, '{"epoch": 3, "step"'))
    seconds = 10 * 0.5 + 4 * 1.0 + 10 * 0.25 + 4 * 0.5
    assert (cost["steps"], cost["seconds"], cost["memory_gib"]) == (28, seconds, 0.9)
    assert cost["seconds_per_step"] == pytest.approx(seconds / 28)
    assert cost["curve"] == [[9.0, 1, 100.0], [9.0 + 2.5 + 2 * 0.25, 2, 150.0]]


def test_a_log_without_steps(tmp_path: Path) -> None:
    nothing = {"steps": 0, "seconds": 0.0, "seconds_per_step": 0.0, "memory_gib": 0.0, "curve": []}
    assert training_cost(tmp_path / "none.jsonl") == training_cost(write_log(tmp_path, RECORDS[:1])) == nothing


@pytest.mark.parametrize(("lines", "epochs"), [(0, 0), (1, 0), (2, 0), (4, 1), (5, 1), (8, 2)])
def test_epochs_done(tmp_path: Path, lines: int, epochs: int) -> None:
    assert epochs_done(write_log(tmp_path, RECORDS[:lines])) == epochs


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    """A study asks twice a second."""
    file = write_log(tmp_path, [{"step": 0, "epoch": 1, "start": "x" * 5_000_000}, train(7, 70, 0.5)])
    tracemalloc.start()
    assert epochs_done(file) == 6
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


def test_this_machine() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1 and machine["torch"] and machine["system"]
    json.dumps(machine)
