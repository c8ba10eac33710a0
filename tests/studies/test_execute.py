"""Processes: how many at once, with what, and what happens when one fails or a signal comes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT, Outcome, write_precomp

from vse.cli import main
from vse.errors import InputError
from vse.studies import execute as module
from vse.studies.command import run_study
from vse.studies.cost import cores
from vse.studies.execute import command, environment, execute
from vse.studies.plan import PlannedRun, Study, read_study

STUDY = """# Four runs.
seeds: [1, 2]
rows:
  - {name: GPO, config: demo}
  - {name: Mean, config: demo, settings: {model.image.aggregator: mean}}
"""

# In the place of Python: notes when it begins and ends, and what it was given. Row Mean, seed 1 fails.
PROCESS = """#!/bin/sh
for word; do case "$word" in run.dir=*) folder="${word#run.dir=}";; esac; done
printf '%s %s\\n' "$OMP_NUM_THREADS" "$CUDA_VISIBLE_DEVICES" > "$folder/given"
trap 'echo saved > "$folder/saved"; exit 143' TERM
echo begin >> "{events}"
i=0; while [ $i -lt {tenths} ]; do sleep 0.1; i=$((i + 1)); done
echo end >> "{events}"
case "$folder" in */mean/seed_1) echo "epoch 1"; echo "error: the loss is nan" >&2; exit 2;; esac
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "own.yaml").write_text(STUDY)
    return read_study(str(tmp_path / "own.yaml"), folder=tmp_path / "out")


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make the processes pretend, for some tenths of a second each; returns the list of runs that were measured."""

    def prepare(tenths: int = 1) -> list[str]:
        script = tmp_path / "python"
        script.write_text(PROCESS.replace("{events}", str(tmp_path / "events")).replace("{tenths}", str(tenths)))
        script.chmod(0o755)
        measured: list[str] = []
        monkeypatch.setattr(sys, "executable", str(script))
        monkeypatch.setattr(module, "measure", lambda run, _: measured.append(run.name))
        monkeypatch.setattr(module, "_POLL", 0.02)
        return measured

    return prepare


def most_at_once(events: Path) -> int:
    most = now = 0
    for line in events.read_text().split():
        now += 1 if line == "begin" else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_runs_work_at_once_and_one_may_fail(
    study: Study, pretend: Callable[..., list[str]], tmp_path: Path, jobs: int
) -> None:
    measured = pretend(3)
    failed = execute(study, study.runs, jobs)
    assert failed == {"Mean, seed 1": "error: the loss is nan (exit code 2)"}
    assert sorted(measured) == ["GPO, seed 1", "GPO, seed 2", "Mean, seed 2"]
    assert most_at_once(tmp_path / "events") == jobs
    machine = json.loads((study.runs[0].folder / "machine.json").read_text())
    assert (machine["jobs"], machine["threads"]) == (jobs, 1)
    assert (study.runs[0].folder / "study.log").read_text().startswith("vse train demo run.seed=1 run.dir=")


def test_runs_that_fail_alike_share_a_line(
    pretend: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend()
    (tmp_path / "own.yaml").write_text(STUDY)

    def refuse(run: PlannedRun, _: Study) -> None:
        raise InputError("there is no folder data/f30k")

    monkeypatch.setattr(module, "measure", refuse)
    assert run_study(str(tmp_path / "own.yaml"), folder=tmp_path / "out") == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert lines == [
        "own: GPO, seed 1 and 2 more failed: there is no folder data/f30k",
        "own: Mean, seed 1 failed: error: the loss is nan (exit code 2)",
    ]


def test_a_run_that_cannot_be_measured_has_failed(
    study: Study, pretend: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()

    def refuse(run: PlannedRun, _: Study) -> None:
        raise InputError(f"{run.row}: protocol f30k is for a split of 1,000 images")

    monkeypatch.setattr(module, "measure", refuse)
    assert execute(study, study.runs[:1], 1) == {"GPO, seed 1": "GPO: protocol f30k is for a split of 1,000 images"}


def test_an_evaluation_without_enough_memory_leaves_the_others(
    study: Study, pretend: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cached memory is given back, since the other runs work on the same GPU."""
    measured, emptied = pretend(), []

    def measure(run: PlannedRun, _: Study) -> None:
        if run.name == "GPO, seed 1":
            raise torch.OutOfMemoryError("CUDA out of memory.\nIt is all gone.")
        measured.append(run.name)

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    failed = execute(study, study.runs[:2], 1)
    assert failed == {"GPO, seed 1": "it is trained, but could not be evaluated (CUDA out of memory.)"}
    assert measured == ["GPO, seed 2"] and len(emptied) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_processes_after_they_have_saved(
    study: Study, pretend: Callable[..., list[str]], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    measured = pretend(600)
    started = module._start

    def start_and_signal(run: PlannedRun, place: int, jobs: int) -> Any:
        job = started(run, place, jobs)
        while not (run.folder / "given").exists():
            time.sleep(0.01)
        time.sleep(0.1)  # until the shell waits for the signal
        if run.name == "GPO, seed 2":
            os.kill(os.getpid(), number)
        return job

    module._start = start_and_signal
    try:
        with pytest.raises(SystemExit) as stop:
            execute(study, study.runs, 2)
    finally:
        module._start = started
    assert stop.value.code == 128 + number and not measured
    assert [(run.folder / "saved").exists() for run in study.runs] == [True, True, False, False]
    assert "stopped and saved; the same command goes on from here" in capfd.readouterr().out


def test_threads_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "cores", lambda: 16)
    assert [environment(0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 3, 16, 99)] == ["16", "5", "1", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in environment(0, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [environment(0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 16)] == ["2", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [environment(place, 4)["CUDA_VISIBLE_DEVICES"] for place in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert [environment(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["4", "6", "7"]
    assert module.default_jobs() == 3


def test_cores_are_those_of_this_process() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_the_command_is_that_of_a_user(study: Study) -> None:
    assert command(study.runs[2])[:4] == ["vse", "train", "demo", "model.image.aggregator=mean"]


SMALL = {
    "run.tracker": "none",
    "data.workers": 0,
    "data.vocabulary.min_count": 1,
    "model.embed_dim": 8,
    "model.text.encoder.word_dim": 6,
    "train.epochs": 1,
    "train.batch_size": 16,
}


def write_small_study(folder: Path, seeds: list[int], **settings: Any) -> Path:
    """Two rows on a small corpus."""
    write_precomp(folder / "data")
    config = "vse_infty/f30k_region_bigru"
    rows = [
        {"name": "GPO", "config": config},
        {"name": "Mean", "config": config, "settings": {"model.image.aggregator": "mean", **settings}},
    ]
    content = {"seeds": seeds, "settings": {**SMALL, "data.root": str(folder / "data")}, "rows": rows}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def run(capfd: pytest.CaptureFixture[str], *words: object) -> Outcome:
    capfd.readouterr()
    code: Any = 0
    try:
        main(["study", *map(str, words)])
    except SystemExit as stop:
        code = stop.code
    return Outcome(code, *capfd.readouterr())


def test_a_study_from_the_file_to_the_tables(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists what is missing, trains it in parts, and then only writes the tables."""
    file, out = write_small_study(tmp_path, [1]), tmp_path / "out"
    listed = run(capfd, file, "--dir", out, "--dry-run")
    assert listed.code == 0 and "  2 Mean, seed 1, 1 epochs: vse train vse_infty/f30k_region_bigru" in listed.out
    assert "small: 0 of 2 runs are finished, 2 are missing" in listed.out and not out.exists()

    first = run(capfd, file, "--dir", out, "--only", "1/2")
    assert first.code == 0 and "results.md: 1 of 2 runs, 1 missing" in first.out, first.err
    assert "Not trained yet: Mean, seed 1." in (out / "results.md").read_text()
    second = run(capfd, file, "--dir", out)
    assert second.code == 0 and "results.md: 2 of 2 runs" in second.out, second.err

    content, table = (out / "results.json").read_text(), (out / "results.md").read_text()
    summary = json.loads(content)
    gpo, mean = summary["rows"]
    one = json.loads((out / "gpo" / "seed_1" / "result.json").read_text())
    assert gpo["runs"]["1"]["metrics"] == one["metrics"] and one["training"]["steps"] == 7
    assert one["training"]["seconds"] > 0 and len(one["training"]["curve"]) == 1
    difference = mean["metrics"]["rsum"] - gpo["metrics"]["rsum"]
    assert mean["metrics"]["paired"] == {"mean": pytest.approx(difference), "deviation": None, "seeds": 1}
    assert f"| {difference:+.1f} | 1 | {difference:+.1f} [" in table
    assert "RSUM - GPO, by seed" in table and (out / "cost.svg").exists()

    monkeypatch.setattr(module, "_start", None)  # nothing is started any more
    again = run(capfd, file, "--dir", out)
    assert again.code == 0 and again.out == second.out
    assert (out / "results.json").read_text() == content and (out / "results.md").read_text() == table

    evaluated = [sys.executable, "-m", "vse", "eval", str(out / "gpo" / "seed_1"), "--json", str(tmp_path / "own.json")]
    assert main_of(evaluated) == 0
    assert json.loads((tmp_path / "own.json").read_text())["i2t"] == gpo["metrics"]["i2t"]

    for row in ("gpo", "mean"):
        shutil.copytree(out / row, tmp_path / "machines" / row / row)
    machines = ("--merge", tmp_path / "machines" / "gpo", "--merge", tmp_path / "machines" / "mean")
    merged = run(capfd, file, "--dir", tmp_path / "other", *machines)
    assert merged.code == 0 and "2 results added" in merged.out
    assert json.loads((tmp_path / "other" / "results.json").read_text()) == summary


def main_of(words: list[str]) -> int:
    main(words[3:])
    return 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected the name or file of a study; see "),
        (("deom",), "deom: no such study (did you mean 'demo'?)"),
        (("demo", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("demo", "--only", "3"), "--only: expected a share such as 1/3, got 3"),
        (("demo", "train.epoch=1"), "row 'Mean': override 'train.epoch=1': train.epoch: unknown key"),
        (("--report", "a.json"), "--report needs --out FILE.md, the page to write"),
    ],
)
def test_mistakes_of_the_command_line(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = ("--dir", tmp_path / "out") if words[:1] == ("demo",) else ()
    outcome = run(capfd, *words, *folder)
    assert outcome.code == 2 and message in outcome.error, outcome.error


def test_the_shipped_studies_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run(capfd, "--list")
    assert outcome.code == 0 and [line.split()[0] for line in outcome.out.splitlines()] == [
        file.stem for file in sorted((ROOT / "configs" / "studies").glob("*.yaml"))
    ]


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_a_diverged_run_is_named(tmp_path: Path) -> None:
    """SIGTERM in the middle; the same command then gives the metrics of a study that was not stopped."""
    file = write_small_study(tmp_path, [1, 2], **{"optim.lr": 1e30, "optim.name": "adamw"})
    words = [sys.executable, "-m", "vse", "study", str(file), "--jobs", "2", "train.epochs=40"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stopped = subprocess.Popen([*words, "--dir", str(tmp_path / "stopped")], env=environment, text=True, stdout=-1)
    log = tmp_path / "stopped" / "gpo" / "seed_1" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert "stopped and saved" in stopped.communicate()[0] and stopped.returncode == 143
    for folder in ("stopped", "whole"):
        done = subprocess.run(
            [*words, "--dir", str(tmp_path / folder)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1 and "2 of 4 runs, 2 missing" in done.stdout, done.stderr
        assert "own: Mean, seed 1" in done.stdout and "failed: error: epoch 1, step" in done.stdout
        assert "expected finite numbers" in done.stdout
    a, b = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("stopped", "whole"))
    assert a["rows"][0]["metrics"] == b["rows"][0]["metrics"] and len(a["failed"]) == 2
