"""The dev evaluations of a run: when they are due, which one is the best, and whether more are worth it."""

from collections.abc import Sequence
from typing import Any

from vse.config import Config, EvalConfig


def value_of(metrics: dict[str, Any], name: str) -> float:
    """Return one of an evaluation's metrics.

    Args:
        metrics: The metrics, as :func:`vse.evaluation.score.evaluate` returns them.
        name: A choice of ``eval.best``, such as "rsum" or "i2t.r1".

    Returns:
        The metric.

    >>> value_of({"i2t": {"r1": 50.0}}, "i2t.r1")
    50.0
    """
    found: Any = metrics
    for part in name.split("."):
        found = found[part]
    return float(found)


def score_of(value: float, name: str) -> float:
    """Return a metric's value so that greater is better: a median or mean rank becomes negative.

    Args:
        value: The value.
        name: The metric, as in :func:`value_of`.

    Returns:
        The score.

    >>> score_of(3.0, "i2t.medr")
    -3.0
    """
    return -value if name.endswith(("medr", "meanr")) else value


def has_waited(scores: Sequence[float], patience: int | None) -> bool:
    """Tell whether the last evaluations have brought no better score.

    Args:
        scores: The score of every evaluation so far.
        patience: How many evaluations without a better score are enough; None if a run never ends for that.

    Returns:
        Whether the best score, the first one among equals, was ``patience`` evaluations ago or more.

    >>> has_waited([5.0, 7.0, 6.0, 7.0], patience=2)
    True
    """
    return patience is not None and len(scores) > 0 and len(scores) - 1 - scores.index(max(scores)) >= patience


class Evaluations:
    """What the evaluations of a run have shown so far.

    Args:
        settings: The section ``eval`` of the config.
        steps_per_epoch: Number of steps in an epoch.
        total_steps: Number of steps of the whole run; the last one is always followed by an evaluation.

    Attributes:
        best: The best value so far by the name of the metric, and its time as "epoch"; before the first evaluation the
            time is None.
        scores: The score of every evaluation (:func:`score_of`), which schedules and ``train.patience`` look at.
        last: Number of steps before the last evaluation.

    >>> evaluations = Evaluations(EvalConfig(every="500 steps"), steps_per_epoch=600, total_steps=1200)
    >>> [step for step in range(1201) if evaluations.is_due(step)]
    [500, 1000, 1200]
    """

    def __init__(self, settings: EvalConfig, steps_per_epoch: int, total_steps: int) -> None:
        self.metric = settings.best
        self.interval = settings.interval(steps_per_epoch)
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.best: dict[str, Any] = {self.metric: -1.0, "epoch": None}
        self.scores: list[float] = []
        self.last = 0

    def is_due(self, step: int) -> bool:
        """Tell whether an evaluation belongs after a number of steps, and has not been done yet."""
        return step != self.last and (step % self.interval == 0 or step == self.total_steps)

    def add(self, metrics: dict[str, Any], step: int) -> bool:
        """Add an evaluation.

        Args:
            metrics: Its metrics.
            step: Number of steps before it.

        Returns:
            Whether it is the best so far; an equal one is not.
        """
        value = value_of(metrics, self.metric)
        score = score_of(value, self.metric)
        is_better = self.best["epoch"] is None or score > score_of(self.best[self.metric], self.metric)
        if is_better:
            epochs, rest = divmod(step, self.steps_per_epoch)
            self.best = {self.metric: value, "epoch": round(step / self.steps_per_epoch, 2) if rest else epochs}
        self.scores.append(score)
        self.last = step
        return is_better


def end_of_run(config: Config, epochs: int, scores: Sequence[float]) -> str:
    """Say why a run has ended.

    Args:
        config: Its config.
        epochs: Number of finished epochs.
        scores: The score of every evaluation so far.

    Returns:
        The reason; "" if the run goes on.
    """
    if epochs >= config.train.epochs:
        return f"{epochs} epochs"
    if has_waited(scores, config.train.patience):
        return f"no better dev {label_of(config.eval.best)} in {config.train.patience} evaluations"
    return ""


def metric_of(best: dict[str, Any]) -> str:
    """Return the name of the metric in :attr:`Evaluations.best`."""
    return next(name for name in best if name != "epoch")


def label_of(metric: str) -> str:
    """Return how a metric is called in messages: "RSUM", or "i2t.r1" as in ``eval.best``."""
    return metric.upper() if metric == "rsum" else metric
