"""The Slurm script, run by bash with a stand-in for Slurm that starts two processes on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from vse.checkpoints.native import load_checkpoint

SCRIPT = ROOT / "examples" / "slurm.sbatch"

# As srun does: starts the command twice, passes SIGUSR1 on, kills at SIGTERM, and ends with the largest exit code.
SRUN = """\
while [[ $1 == -* ]]; do echo "$1" >> "$NOTES/options"; shift; done
for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number "$@" & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
trap 'kill -KILL $tasks' TERM
largest=0
for task in $tasks; do
    while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
    wait $task; code=$?
    if [ $code -gt $largest ] && [ $code -ne 127 ]; then largest=$code; fi
done
exit $largest
"""
SCONTROL = 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$NOTES/requests"; fi\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which the stand-ins are found first; the folder of what they note."""
    programs, notes = tmp_path / "programs", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    python = f'PYTHONPATH={ROOT} exec {sys.executable} -m vse "$@"\n'
    for name, content in {"srun": SRUN, "scontrol": SCONTROL, "vse": python}.items():
        (programs / name).write_text(f"#!/bin/bash\n{content}")
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = free.getsockname()[1] % 10000  # the script's port is 20000 + this
    settings = {"JOB_ID": job, "JOB_NODELIST": "node[1-2]", "NTASKS": 2, "NTASKS_PER_NODE": 2, "CPUS_PER_TASK": 1}
    for key, value in settings.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(notes))
    return notes


def launch(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=180)
    assert "Traceback" not in err and "error:" not in err, err
    return out


@pytest.mark.slow
def test_the_command_is_accepted(slurm: Path, tiny: list[str]) -> None:
    process = launch(*tiny, "--dry-run")
    out = finish(process)
    assert process.returncode == 0 and out.count("dry run:") == 1 and "; 2 processes" in out
    assert "--gpu-bind=none" in (slurm / "options").read_text() and not (slurm / "requests").exists()


def launch_and_signal(number: signal.Signals, tiny: list[str], run: Path) -> None:
    """A training that gets a signal after its first steps, and saves."""
    process = launch(*tiny, "train.epochs=500")
    log = run / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    assert "stopped and saved" in finish(process)
    assert process.returncode == 128 + signal.SIGUSR1


@pytest.mark.slow
def test_when_the_time_is_up_the_job_goes_on_later(slurm: Path, tiny: list[str], tmp_path: Path) -> None:
    launch_and_signal(signal.SIGUSR1, tiny, tmp_path / "run")
    assert (slurm / "requests").read_text() == f"requeue {os.environ['SLURM_JOB_ID']}\n"
    epochs = load_checkpoint(tmp_path / "run" / "last.pt")["epoch"] + 1
    again = launch(*tiny, f"train.epochs={epochs}")
    assert f"going on with epoch {epochs}, " in finish(again) and again.returncode == 0
    assert (slurm / "requests").read_text().count("requeue") == 1


@pytest.mark.slow
def test_a_preempted_job_saves(slurm: Path, tiny: list[str], tmp_path: Path) -> None:
    """Whether it goes on is then for Slurm to decide: after scancel it must not."""
    launch_and_signal(signal.SIGTERM, tiny, tmp_path / "run")
    assert not (slurm / "requests").exists() and (tmp_path / "run" / "last.pt").exists()


def test_what_slurm_is_asked_for() -> None:
    """The requests that the script's way of going on needs, and one process per GPU."""
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH --")
    )
    assert asked["signal"].startswith("B:USR1@") and "requeue" in asked and asked["open-mode"] == "append"
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
