"""The benchmarks run; what they measure is not judged here."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which the benchmark would measure")
def test_a_machine_without_a_gpu_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))["main"]([]) == 0
    assert "no GPU" in capsys.readouterr().out


@pytest.mark.slow
def test_the_checks_for_a_gpu_pass_on_the_cpu(tmp_path: Path) -> None:
    words = (
        "--device",
        "cpu",
        "--small",
        "--only",
        "checks",
        "--system",
        "vse_infty",
        "--json",
        tmp_path / "found.json",
    )
    done = run("gpu.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["checks"]) == 8 and all(check["passed"] for check in found["checks"])


@pytest.mark.slow
def test_the_figures_for_a_gpu_on_the_cpu() -> None:
    done = run("gpu.py", "--device", "cpu", "--small", "--only", "figures", "--system", "dive")
    assert done.returncode == 0 and "| dive, a step |" in done.stdout, done.stderr


@pytest.mark.slow
def test_every_part_is_measured() -> None:
    done = run("cpu.py", "--only", "parts")
    assert done.returncode == 0 and "| similarity smooth_chamfer" in done.stdout, done.stderr
