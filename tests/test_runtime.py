"""Devices, precision, random states."""

import random

import numpy as np
import pytest
import torch

from vse.errors import InputError
from vse.runtime import autocast, pick_device, random_states, restore_random_states, seed_everything


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto") == torch.device(expected)
    for name in ("tpu9", "meta", "cuda:99"):
        with pytest.raises(InputError, match=f"run.device: '{name}' is not available here; expected auto, cpu, cuda"):
            pick_device(name)


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_numbered_gpu_becomes_the_current_one(
    name: str, current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))  # a machine that has every device
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device(name) == torch.device(name) and chosen == current


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast(precision: str, dtype: torch.dtype | None) -> None:
    with autocast(torch.device("cpu"), precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(np.random.standard_normal()), float(torch.rand(()))]


def test_random_states_come_back() -> None:
    seed_everything(3)
    np.random.standard_normal()  # which leaves a second number for the next call
    states = random_states()
    first = draw()
    assert draw() != first
    restore_random_states(states)
    assert draw() == first
    seed_everything(3)
    again = draw()
    seed_everything(3)
    assert draw() == again
