"""Optimisers by name, learning-rate factors, schedules."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, factors: dict[str, float]
) -> list[dict[str, object]]:
    """One group per learning rate; a parameter takes the factor of the longest prefix of its name.

    Raises ValueError when a prefix fits no parameter.

    >>> parameter_groups(model.named_parameters(), 5e-4, {"text.encoder": 0.1})
    """
    groups: dict[float, list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, parameter in named_parameters:
        prefixes = [p for p in factors if name == p or name.startswith(f"{p}.")]
        used.update(prefixes)
        factor = factors[max(prefixes, key=len)] if prefixes else 1.0
        groups.setdefault(factor, []).append(parameter)
    for prefix in factors:
        if prefix not in used:
            raise ValueError(f"{prefix!r} begins no parameter's name")
    return [{"params": group, "lr": lr * factor, "initial_lr": lr * factor} for factor, group in groups.items()]


class Schedule:
    """Factor on the learning rate as a function of time in epochs (a real number), and of the dev RSUMs so far.

    ``history`` holds the dev RSUM of every epoch done; whoever validates appends to it.
    ``warmup_epochs``: the factor also rises linearly from 0 over this time; its first step is not lost.
    Raises ValueError for a negative ``warmup_epochs``.

    >>> Step(milestones=[15], factor=0.1)(15.0)
    0.1
    """

    def __init__(self, warmup_epochs: float = 0.0) -> None:
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {warmup_epochs}")
        self.warmup_epochs = warmup_epochs
        self.history: list[float] = []

    def __call__(self, time: float, step: float = 0.0) -> float:
        """Factor at ``time``; ``step`` is the duration of a training step, both in epochs."""
        warm = min(1.0, (time + step) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return warm * self.factor_at(time)

    def factor_at(self, time: float) -> float:
        """Factor without the warm-up."""
        return 1.0


class Step(Schedule):
    """Multiply by ``factor`` at each of the ``milestones`` (epochs, counted from 0)."""

    def __init__(self, milestones: list[float], factor: float = 0.1, warmup_epochs: float = 0.0) -> None:
        super().__init__(warmup_epochs)
        if factor <= 0 or any(m < 0 for m in milestones):
            raise ValueError(f"factor must be positive and milestones not negative, got {factor} and {milestones}")
        self.milestones, self.factor = milestones, factor

    def factor_at(self, time: float) -> float:  # noqa: D102
        return float(self.factor ** sum(time >= m for m in self.milestones))


class Cosine(Schedule):
    """Half a cosine, from 1 at the end of the warm-up to ``final`` at the end of training."""

    def __init__(self, epochs: int, final: float = 0.0, warmup_epochs: float = 0.0) -> None:
        super().__init__(warmup_epochs)
        if not 0 <= final <= 1:
            raise ValueError(f"final must be in [0, 1], got {final}")
        if warmup_epochs >= epochs:
            raise ValueError(f"warmup_epochs must be below the {epochs} epochs of training, got {warmup_epochs}")
        self.epochs, self.final = epochs, final

    def factor_at(self, time: float) -> float:  # noqa: D102
        done = self.progress(time)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2

    def progress(self, time: float) -> float:
        """Part of the time after the warm-up that has passed, 0 to 1."""
        length = max(self.epochs - self.warmup_epochs, 1e-8)
        return min(1.0, max(0.0, (time - self.warmup_epochs) / length))


class Linear(Cosine):
    """A straight line, from 1 at the end of the warm-up to ``final`` at the end of training (BERT's)."""

    def factor_at(self, time: float) -> float:  # noqa: D102
        return 1 - (1 - self.final) * self.progress(time)


class Plateau(Schedule):
    """Multiply by ``factor`` whenever the dev RSUM has not risen above its best for more than ``patience`` epochs."""

    def __init__(self, factor: float = 0.5, patience: int = 10, warmup_epochs: float = 0.0) -> None:
        super().__init__(warmup_epochs)
        if not 0 < factor < 1 or patience < 0:
            raise ValueError(f"factor must be in (0, 1) and patience not negative, got {factor} and {patience}")
        self.factor, self.patience = factor, patience

    def factor_at(self, time: float) -> float:  # noqa: D102
        factor, best, waited = 1.0, -math.inf, 0
        for rsum in self.history:
            best, waited = (rsum, 0) if rsum > best else (best, waited + 1)
            if waited > self.patience:
                factor, waited = factor * self.factor, 0
        return factor


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Schedule,
    "step": Step,
    "cosine": Cosine,
    "linear": Linear,
    "plateau": Plateau,
}
