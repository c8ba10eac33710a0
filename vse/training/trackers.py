"""Where a run's numbers can be watched: TensorBoard, Weights & Biases or MLflow, one small adapter each."""

import math
import os
import time
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vse.console import warn
from vse.errors import InputError, first_line
from vse.files import write_text

_PROJECT = "vse"


class Tracker(Protocol):
    """Takes the numbers of a run. Each is made of the run folder, the settings by key, and the steps before."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Take numbers by name, such as "train/total", and the number of finished steps."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in the run folder; what was logged after the checkpoint that a run goes on from is left out.

    Args:
        folder: The run folder.
        settings: The settings by key, which TensorBoard does not show.
        total_steps: Number of finished steps since the start of the run.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], total_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(folder), purge_step=total_steps + 1 if total_steps else 0)

    def log(self, numbers: dict[str, float], step: int) -> None:  # noqa: D102
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()

    def close(self) -> None:  # noqa: D102
        self.board.close()


class WandB:
    """A run of Weights & Biases; a run that continues goes on under the same id, ``wandb.txt`` in the run folder.

    The project is ``WANDB_PROJECT``, or "vse". With ``WANDB_MODE=offline`` all stays in the run folder.

    Args:
        folder: The run folder.
        settings: The settings by key.
        total_steps: It is not used.

    Raises:
        InputError: Weights & Biases refuses the run, for example without a login.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], total_steps: int) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=folder.resolve().name,
                id=_kept(folder / "wandb.txt", not total_steps, lambda: uuid.uuid4().hex[:12]),
                resume="allow",
                dir=str(folder),
                config=settings,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            problem = f"{first_line(error)}; run `wandb login`, or set WANDB_MODE=offline"
            raise InputError(f"run.tracker: wandb: {problem}") from None
        self.run.define_metric("step")  # its own count of steps could not go back to that of a checkpoint
        self.run.define_metric("*", step_metric="step")

    def log(self, numbers: dict[str, float], step: int) -> None:  # noqa: D102
        self.run.log({**numbers, "step": step})

    def close(self) -> None:  # noqa: D102
        self.run.finish()


class MLflow:
    """A run of MLflow; a run that continues goes on under the same id, ``mlflow.txt`` in the run folder.

    It goes to the server or database of ``MLFLOW_TRACKING_URI``, or else to ``mlflow.db`` in the run folder. A server
    that cannot be reached later does not end the training.

    Args:
        folder: The run folder.
        settings: The settings by key.
        total_steps: It is not used.

    Raises:
        InputError: MLflow refuses the run, or cannot be reached.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], total_steps: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._error = Metric, MlflowException
        self._has_warned = False
        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        try:
            self.client = MlflowClient(tracking_uri=place)
            self.id = _kept(folder / "mlflow.txt", not total_steps, lambda: self._create(folder.resolve().name))
            self.client.update_run(self.id, status="RUNNING")
            if not total_steps:
                self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in settings.items()])
        except MlflowException as error:
            raise InputError(f"run.tracker: mlflow: {place}: {first_line(error)}") from None

    def _create(self, name: str) -> str:
        found = self.client.get_experiment_by_name(_PROJECT)
        experiment = self.client.create_experiment(_PROJECT) if found is None else found.experiment_id
        run_id: str = self.client.create_run(experiment, run_name=name).info.run_id
        return run_id

    def log(self, numbers: dict[str, float], step: int) -> None:  # noqa: D102
        now = int(1000 * time.time())
        try:
            self.client.log_batch(self.id, [self._metric(name, value, now, step) for name, value in numbers.items()])
        except self._error as error:
            self._say(error)

    def close(self) -> None:  # noqa: D102
        try:
            self.client.set_terminated(self.id)
        except self._error as error:
            self._say(error)

    def _say(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(f"run.tracker: mlflow takes no numbers now: {first_line(error)}; metrics.jsonl has all of them")


TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def check_tracker(name: str) -> None:
    """Check that the package of a tracker is there.

    Args:
        name: The setting ``run.tracker``: a key of :data:`TRACKERS`, or "none".

    Raises:
        InputError: It is not; the message says how to install it.
    """
    if name != "none" and find_spec(name) is None:
        raise InputError(f"run.tracker: {name} needs the package {name}: pip install 'vse-retrieval[{name}]'")


def start_tracker(name: str, folder: Path, settings: dict[str, Any], total_steps: int) -> Tracker | None:
    """Start the tracker of a run.

    Args:
        name: The setting ``run.tracker``.
        folder: The run folder.
        settings: The settings by key, such as "optim.lr".
        total_steps: Number of finished steps since the start of the run.

    Returns:
        The tracker; None for "none".

    Raises:
        InputError: Its service refuses the run.
    """
    return None if name == "none" else TRACKERS[name](folder, settings, total_steps)


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record by name, "train/total" for "train.total".

    Args:
        record: The record by dotted key, as :func:`vse.config.flatten` gives it.

    Returns:
        What a tracker can draw.

    >>> numbers_of({"train.total": 2.0, "train.plateau": None})
    {'train/total': 2.0}
    """
    return {
        name.replace(".", "/"): value for name, value in record.items() if value is not None and math.isfinite(value)
    }


def _kept(file: Path, is_new: bool, make: Callable[[], str]) -> str:
    """The id in a file. A run that begins, perhaps after an attempt that failed, gets a new one in this file."""
    if is_new or not file.exists():
        write_text(file, make() + "\n")
    return file.read_text(encoding="utf-8").strip()
