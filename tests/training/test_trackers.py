"""The trackers, each with its real package."""

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome, read_jsonl

from vse.training import trackers

Cli = Callable[..., Outcome]


def logged(run: Path) -> dict[int, float]:
    return {r["step"]: r["train"]["total"] for r in read_jsonl(run / "metrics.jsonl") if "train" in r}


def test_none(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    assert cli("train", *tiny, "run.tracker=none", "train.epochs=1").code == 0
    assert not list((tmp_path / "run").glob("events*")) and logged(tmp_path / "run")


def test_a_tracker_that_is_not_installed(cli: Cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        error = cli("train", *tiny, f"run.tracker={name}").error
        assert f"run.tracker: {name} needs the package {name}: pip install 'vse-retrieval[{name}]'" in error


def test_an_unknown_tracker(cli: Cli, tiny: list[str]) -> None:
    error = cli("train", *tiny, "run.tracker=comet").error
    assert "run.tracker: input should be 'tensorboard', 'wandb', 'mlflow' or 'none', got 'comet'" in error


def records_of(file: Path) -> Iterator[bytes]:
    """The records of wandb's file, which has LevelDB's log format: blocks of pieces with a head of 7 bytes."""
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if place % 32768 > 32768 - 7:  # no head fits in the rest of the block
            place += 32768 - place % 32768
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield parts
            parts = b""


def numbers_in(files: list[Path]) -> dict[int, float]:
    """The logged losses by step."""
    from wandb.proto import wandb_internal_pb2 as records

    found: dict[int, float] = {}
    for content in itertools.chain.from_iterable(map(records_of, files)):
        record: Any = records.Record()  # type: ignore[attr-defined]
        record.ParseFromString(content)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/total" in items:
            found[int(items["step"])] = float(items["train/total"])
    return found


@pytest.mark.slow
def test_wandb(cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: the numbers and settings are in its file; a run that goes on has the same id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for epochs in (1, 2):
        outcome = cli("train", *tiny, "run.tracker=wandb", f"train.epochs={epochs}")
        assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    label = (run / "wandb.txt").read_text().strip()
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and all(label in file.name for file in files)
    expected, patience = logged(run), time.monotonic() + 30
    while (found := numbers_in(files)).keys() != expected.keys() and time.monotonic() < patience:
        time.sleep(0.2)  # its service may still be writing
    assert found == pytest.approx(expected) and len(found) == 6
    assert b"optim.lr" in files[0].read_bytes()


def test_wandb_refuses(cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    error = cli("train", *tiny, "run.tracker=wandb").error
    assert "run.tracker: wandb: No API key configured" in error and "WANDB_MODE=offline" in error


@pytest.mark.slow
def test_mlflow(cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in the run folder; both starts are one run."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for epochs in (1, 2):
        outcome = cli("train", *tiny, "run.tracker=mlflow", f"train.epochs={epochs}")
        assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    label = (run / "mlflow.txt").read_text().strip()
    history = client.get_metric_history(label, "train/total")
    assert {point.step: point.value for point in history} == pytest.approx(logged(run)) and len(history) == 6
    data = client.get_run(label)
    assert data.data.params["optim.lr"] == "0.0005" and data.info.status == "FINISHED"
    experiment = client.get_experiment_by_name("vse")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1


def test_mlflow_that_fails_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The training goes on; it is said once. A server that is not there at the start is a mistake."""
    pytest.importorskip("mlflow")
    from mlflow.exceptions import MlflowException

    from vse.errors import InputError

    tracker = object.__new__(trackers.MLflow)

    class Client:
        def log_batch(self, *_: Any) -> None:
            raise MlflowException("no route to host")

        def set_terminated(self, *_: Any) -> None:
            raise MlflowException("no route to host")

    tracker.client, tracker.id, tracker._error, tracker._has_warned = Client(), "1", MlflowException, False  # type: ignore[assignment]
    tracker._metric = lambda *values: values  # type: ignore[assignment]
    tracker.log({"train/total": 1.0}, 1)
    tracker.close()
    assert capsys.readouterr().err.count("no route to host") == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(InputError, match="run.tracker: mlflow: nonsense://host"):
        trackers.MLflow(tmp_path, {}, 0)


def test_tensorboard_keeps_what_was_logged_before_a_run_went_on(tmp_path: Path) -> None:
    """The step of the checkpoint is kept, and the one after it is logged anew."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for before, numbers in ((0, {1: 5.0, 2: 4.0, 3: 9.0}), (2, {3: 3.0})):
        tracker = trackers.TensorBoard(tmp_path, {}, before)
        for step, number in numbers.items():
            tracker.log({"train/total": number}, step)
        tracker.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/total")] == [(1, 5.0), (2, 4.0), (3, 3.0)]
