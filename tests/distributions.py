"""Checks of how parameters start."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Start = tuple[str, float]  # "uniform" and its bound, "normal" and its deviation, or "constant" and its value

WAYS = ("", "_reverse")


def linear(fan_in: int) -> Start:
    """Torch's default for the weight and the bias of a linear layer."""
    return "uniform", 1 / math.sqrt(fan_in)


def xavier(fan_in: int, fan_out: int) -> Start:
    return "uniform", math.sqrt(6 / (fan_in + fan_out))


def check_start(parameter: Tensor, start: Start) -> None:
    """Bounds and moments of a parameter, within what chance allows at its size."""
    kind, size = start
    values = parameter.detach().double().flatten()
    if kind == "constant":
        assert torch.equal(values, torch.full_like(values, size))
        return
    deviation = size / math.sqrt(3) if kind == "uniform" else size
    error = 5 / math.sqrt(len(values))
    assert abs(values.mean()) < error * deviation, "mean"
    assert abs(values.std(correction=0) / deviation - 1) < error, "deviation"
    if kind == "uniform":
        assert values.abs().max() <= size * (1 + 1e-6), "bound"
        assert values.abs().max() > size * (1 - 20 / len(values)), "bound"
    else:
        assert values.abs().max() > 2.5 * size, "tails"


def check_module(module: nn.Module, starts: dict[str, Start]) -> None:
    """Every parameter of a module starts as told; none is left out, none is there that is not told."""
    check_parameters(dict(module.named_parameters()), starts)


def check_parameters(parameters: Mapping[str, Tensor], starts: Mapping[str, Start]) -> None:
    """Every parameter starts as told; none is left out, none is there that is not told."""
    assert parameters.keys() == starts.keys()
    for name, start in starts.items():
        try:
            check_start(parameters[name], start)
        except AssertionError as error:
            raise AssertionError(f"{name} is not {start}: {error}") from None


def gru(units: int, prefix: str = "gru.") -> dict[str, Start]:
    """Torch's default for a bidirectional GRU of one layer."""
    names = [f"{kind}_{side}_l0{way}" for kind in ("weight", "bias") for side in ("ih", "hh") for way in WAYS]
    return {f"{prefix}{name}": ("uniform", 1 / math.sqrt(units)) for name in names}
