"""Optimisers, learning-rate factors and schedules."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from vse.errors import check_at_least, check_positive

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


# The outermost numbers count: Swin and ConvNeXt number their stages, and the blocks of each stage anew.
_LAYER = re.compile(r"^(?:.*?\.)?(?:layers?|blocks|stages)\.(\d+)\.")


def layer_factors(names: Sequence[str], decay: float) -> dict[str, float]:
    """Compute the factors of layer-wise learning rate decay, as in BEiT (Bao et al. 2022).

    In an encoder of L numbered layers, layer l = 1..L has the factor decay^(L + 1 - l), and what comes before the
    layers has decay^(L + 1). All other parameters have 1. An encoder without numbered layers has no factors.

    Args:
        names: The names of the model's parameters, in the model's order.
        decay: The factor from one layer to the one before it, in (0, 1].

    Returns:
        The factor of each parameter of an encoder with layers, except where it is 1.

    Raises:
        ValueError: No encoder has numbered layers.

    >>> layer_factors(["text.encoder.table", "text.encoder.layers.0.a", "text.encoder.layers.1.a"], 0.5)
    {'text.encoder.table': 0.125, 'text.encoder.layers.0.a': 0.25, 'text.encoder.layers.1.a': 0.5}
    """
    found: dict[str, float] = {}
    for side in ("image.encoder.", "text.encoder."):
        own = [name for name in names if name.startswith(side)]
        layers = {name: int(match[1]) + 1 for name in own if (match := _LAYER.match(name))}
        if not layers:
            continue
        first, count = own.index(next(iter(layers))), max(layers.values())
        before = dict.fromkeys(own[:first], 0)
        found |= {name: decay ** (count + 1 - layer) for name, layer in (before | layers).items()}
    if not found:
        raise ValueError("no encoder has numbered layers")
    return found


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    factors: Mapping[str, float],
    decays: Mapping[str, float] | None = None,
) -> list[dict[str, object]]:
    """Sort parameters into one group per learning rate.

    Args:
        named_parameters: The parameters with their names. Those that need no gradient are left out.
        lr: The learning rate of a parameter without a factor.
        factors: Factors on the learning rate by prefix of a parameter's name, up to a dot. The longest prefix counts.
        decays: Further factors by a parameter's whole name, see :func:`layer_factors`; None for none.

    Returns:
        Groups as torch's optimisers take them, each with its ``initial_lr`` for a schedule to start from.

    Raises:
        ValueError: A prefix fits no parameter's name.

    >>> parameter_groups(model.named_parameters(), 5e-4, {"text.encoder": 0.1})
    """
    groups: dict[float, list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, parameter in named_parameters:
        prefixes = [prefix for prefix in factors if is_below(name, prefix)]
        used.update(prefixes)
        if not parameter.requires_grad:
            continue
        factor = factors[max(prefixes, key=len)] if prefixes else 1.0
        factor *= (decays or {}).get(name, 1.0)
        groups.setdefault(factor, []).append(parameter)
    for prefix in factors:
        if prefix not in used:
            raise ValueError(f"{prefix!r} begins no parameter's name")
    return [{"params": group, "lr": lr * factor, "initial_lr": lr * factor} for factor, group in groups.items()]


def is_below(name: str, prefix: str) -> bool:
    """Tell whether a parameter's dotted name is ``prefix`` or goes on below it.

    Args:
        name: The name.
        prefix: The prefix, without a dot at its end.

    Returns:
        Whether the name begins with the prefix, up to a dot.

    >>> is_below("text.encoder.gru", "text.encoder"), is_below("text.encoder2", "text.encoder")
    (True, False)
    """
    return name == prefix or name.startswith(f"{prefix}.")


class Schedule:
    """A factor on the learning rate, as a function of the time in epochs and of the dev scores so far.

    Args:
        warmup_epochs: The time in epochs during which the factor rises linearly from 0. The first step already has a
            rate above 0, so that it is not wasted.

    Attributes:
        history: The dev score of every evaluation, greater is better: the RSUM, or what ``eval.best`` names. The
            training appends to it.

    Raises:
        ValueError: ``warmup_epochs`` is negative.

    >>> Step(milestones=[15], factor=0.1)(15.0)
    0.1
    """

    def __init__(self, warmup_epochs: float = 0.0) -> None:
        check_at_least("warmup_epochs", warmup_epochs, 0)
        self.warmup_epochs = warmup_epochs
        self.history: list[float] = []

    def __call__(self, time: float, step: float = 0.0) -> float:
        """Return the factor.

        Args:
            time: Time since the start of training, in epochs.
            step: Duration of a training step, in epochs.

        Returns:
            The factor.
        """
        warm = min(1.0, (time + step) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return warm * self.factor_at(time)

    def factor_at(self, time: float) -> float:
        """Return the factor without the warm-up."""
        return 1.0


class Step(Schedule):
    """Multiply by a factor at each milestone.

    Args:
        milestones: Times in epochs, counted from 0.
        factor: What the learning rate is multiplied by.
        warmup_epochs: As in :class:`Schedule`.

    Raises:
        ValueError: ``factor`` is not positive, or a milestone is negative.

    >>> Step(milestones=[2, 4], factor=0.1)(3.0)
    0.1
    """

    def __init__(self, milestones: list[float], factor: float = 0.1, warmup_epochs: float = 0.0) -> None:
        super().__init__(warmup_epochs)
        check_positive("factor", factor)
        check_at_least("milestones", min(milestones, default=0), 0)
        self.milestones, self.factor = milestones, factor

    def factor_at(self, time: float) -> float:  # noqa: D102
        passed = [milestone for milestone in self.milestones if milestone <= time]
        return float(self.factor ** len(passed))


class Cosine(Schedule):
    """Half a cosine, from 1 at the end of the warm-up to ``final`` at the end of training.

    Args:
        epochs: Length of training.
        final: The factor at the end.
        warmup_epochs: As in :class:`Schedule`.

    Raises:
        ValueError: ``final`` is outside [0, 1], or the warm-up is not shorter than the training.

    >>> Cosine(epochs=10)(5.0)
    0.5
    """

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
        """Return the part of the time after the warm-up that has passed, 0 to 1."""
        length = max(self.epochs - self.warmup_epochs, 1e-8)
        return min(1.0, max(0.0, (time - self.warmup_epochs) / length))


class Linear(Cosine):
    """A straight line, from 1 at the end of the warm-up to ``final`` at the end of training, as for BERT.

    Arguments and errors are those of :class:`Cosine`.

    >>> Linear(epochs=10)(2.5)
    0.75
    """

    def factor_at(self, time: float) -> float:  # noqa: D102
        return 1 - (1 - self.final) * self.progress(time)


class Plateau(Schedule):
    """Multiply by a factor whenever the dev score has not risen above its best for some time.

    Args:
        factor: What the learning rate is multiplied by.
        patience: The number of evaluations without a new best that are tolerated; by default there is one an epoch.
        warmup_epochs: As in :class:`Schedule`.

    Raises:
        ValueError: ``factor`` is outside (0, 1), or ``patience`` is negative.

    >>> schedule = Plateau(factor=0.5, patience=1)
    >>> schedule.history = [10, 9, 8]
    >>> schedule(3.0)
    0.5
    """

    def __init__(self, factor: float = 0.5, patience: int = 10, warmup_epochs: float = 0.0) -> None:
        super().__init__(warmup_epochs)
        if not 0 < factor < 1:
            raise ValueError(f"factor must be in (0, 1), got {factor}")
        check_at_least("patience", patience, 0)
        self.factor, self.patience = factor, patience

    def factor_at(self, time: float) -> float:  # noqa: D102
        factor, best, waited = 1.0, -math.inf, 0
        for score in self.history:
            if score > best:
                best, waited = score, 0
            else:
                waited += 1
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
