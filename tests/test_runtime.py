"""Devices, precision, random states."""

import os
import random
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from vse.errors import InputError
from vse.runtime import (
    autocast,
    in_one_line,
    peak_memory,
    pick_device,
    products,
    random_states,
    restore_random_states,
    seed_everything,
    set_algorithms,
)


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


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("tf32", None), ("bf16", torch.bfloat16)])
def test_autocast(precision: str, dtype: torch.dtype | None) -> None:
    with autocast(torch.device("cpu"), precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", True), ("fp16", True)])
def test_fp32_is_exact_on_a_gpu(
    precision: str, allowed: bool, monkeypatch: pytest.MonkeyPatch, restored: None, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # would look for a GPU

    def found() -> tuple[str, bool, bool]:
        backends = torch.backends
        return torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32

    before, exact = found(), ("highest", False, False)
    with autocast(torch.device("cuda"), precision):
        assert found() == (("high", True, True) if allowed else exact)
        with products(torch.device("cuda"), "fp32"):  # as scoring does
            assert found() == exact
        with autocast(torch.device("cpu"), "fp32"):  # leaves the setting alone
            assert found() == (("high", True, True) if allowed else exact)
    assert found() == before and not recwarn.list


@pytest.fixture
def restored() -> Iterator[None]:
    """A test that may change settings of the whole process."""
    precision, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = allowed
    set_algorithms(deterministic=False, is_alike=False)
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_deterministic_algorithms(restored: None) -> None:
    set_algorithms(deterministic=True, is_alike=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    for is_alike in (True, False):
        set_algorithms(deterministic=False, is_alike=is_alike)
        assert torch.backends.cudnn.benchmark is is_alike and not torch.are_deterministic_algorithms_enabled()


def test_too_little_memory_is_one_line() -> None:
    problem = "^cpu: out of memory: a batch of 128 does not fit; try less$"
    with pytest.raises(InputError, match=problem), in_one_line(torch.device("cpu"), "a batch of 128", "try less"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore")


def test_an_operation_that_is_not_deterministic_is_one_line(restored: None) -> None:
    def fail(text: str) -> None:
        with in_one_line(torch.device("cpu"), "a batch", "try less"):
            raise RuntimeError(text)

    text = "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set ..."
    with pytest.raises(RuntimeError, match="^upsample"):  # nobody asked for determinism: a bug
        fail(text)
    set_algorithms(deterministic=True, is_alike=False)
    with pytest.raises(InputError, match="^run.deterministic: upsample_bicubic2d_backward_out_cuda does not have"):
        fail(text)
    with pytest.raises(RuntimeError, match="^shapes differ"):
        fail("shapes differ")


def test_a_gpu_without_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(InputError, match="run.device: 'cuda' has no free memory"):
        pick_device("cuda")


def test_states_of_a_gpu_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can go on, and says that the draws are others."""
    states = random_states()
    assert restore_random_states(states)
    elsewhere = [torch.zeros(16, dtype=torch.uint8)] if not torch.cuda.is_available() else []
    assert not restore_random_states({**states, "cuda": elsewhere})


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


def test_memory_is_counted_in_gib() -> None:
    """A process that has imported torch takes more than 50 MB, and less than any machine has."""
    assert 0.05 < peak_memory(torch.device("cpu")) < 10_000
