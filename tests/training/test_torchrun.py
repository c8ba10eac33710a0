"""torchrun: real trainings of two processes, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Outcome, read_jsonl, write_precomp
from torch.distributed import TCPStore  # type: ignore[attr-defined]

Cli = Callable[..., Outcome]


def launch(processes: int, script: str, *words: object) -> subprocess.Popen[str]:
    """A script under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return start([*command, str(ROOT / "scripts" / f"{script}.py"), *map(str, words)], {})


@pytest.fixture
def store() -> TCPStore:
    """What torchrun keeps for its processes to find one another, and lives on when one of them ends."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def launch_alone(store: TCPStore, *words: object, path: Path = ROOT) -> list[subprocess.Popen[str]]:
    """A training of two processes as torchrun starts them, but without torchrun, which would end both."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, words)]
    return [start(command, {**place, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]


def start(command: list[str], more: dict[str, str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def errors_in(err: str) -> list[str]:
    return [line for line in err.replace("\r", "\n").split("\n") if line.startswith("error:")]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()


def test_two_processes_train_as_one(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """Nearly the same first losses as of one process (in float32), each line said and written once."""
    still = [*tiny, "model.image.encoder.drop=0"]
    code, out, err = finish(launch(2, "train", *still))
    assert code == 0, err
    assert out.count("epoch 2/2") == 1 and "2 processes" in out and "Traceback" not in err
    one = f"run.dir={tmp_path / 'one'}"
    assert cli("train", *still, one).code == 0
    ours, theirs = (read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("run", "one"))
    assert [(r["epoch"], r["step"], sorted(r)) for r in ours] == [(r["epoch"], r["step"], sorted(r)) for r in theirs]
    first, one_first = (next(r["train"] for r in log if "train" in r) for log in (ours, theirs))
    for name in ("total", "gradient_norm", "plateau"):
        assert first[name] == pytest.approx(one_first[name], rel=1e-4)
    outcome = cli("train", *still, "train.epochs=3")
    assert outcome.code == 0 and "epoch 3/3" in outcome.out
    assert "2 processes saved it and 1 go on" in outcome.out


@pytest.mark.slow
def test_two_processes_evaluate_as_one(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    assert cli("train", *tiny).code == 0
    code, out, err = finish(launch(2, "eval", tmp_path / "run"))
    assert code == 0 and out.count("RSUM") == 1, err
    metrics = json.loads((tmp_path / "run" / "test.json").read_text())
    assert cli("eval", tmp_path / "run").code == 0
    assert json.loads((tmp_path / "run" / "test.json").read_text()) == metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.batch_size=2", "optim.lr=1e30", "train.clip_norm=null"], "the loss is"),
        (["optim.lr=none"], "optim.lr"),
        (["data.root=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_said_once(tiny: list[str], settings: list[str], message: str) -> None:
    code, _, err = finish(launch(2, "train", *tiny, *settings))
    assert code != 0 and len(errors_in(err)) == 1 and message in errors_in(err)[0], err


BROKEN = """
from vse.distributed import rank

def broken(scores, positives):
    if rank() == 1 and scores.requires_grad:
        raise KeyError("a bug")
    return scores.sum()
"""


@pytest.mark.slow
def test_a_bug_in_one_process_ends_all(tiny: list[str], tmp_path: Path, store: TCPStore) -> None:
    (tmp_path / "own_loss.py").write_text(BROKEN)
    processes = launch_alone(store, *tiny, "loss.ranking={name: 'own_loss:broken'}", path=tmp_path)
    ends = [finish(process) for process in processes]
    assert all(code != 0 for code, _, _ in ends), ends
    assert [err.count("Traceback") for _, _, err in ends] == [0, 1] and "KeyError: 'a bug'" in ends[1][2], ends
    assert not any(errors_in(err) for _, _, err in ends)


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_leaves(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    process = launch(2, "train", *tiny, "train.epochs=500")
    wait_for((tmp_path / "run" / "last.pt").exists, process)
    process.terminate()
    code, out, err = finish(process)
    assert code != 0 and out.count("stopped and saved") == 1 and not errors_in(err), err
    goes_on(cli, tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "rank"),
    [
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_process_ends_all(
    cli: Cli, tiny: list[str], tmp_path: Path, store: TCPStore, number: signal.Signals, rank: int
) -> None:
    processes = launch_alone(store, *tiny, "train.epochs=500")
    wait_for((tmp_path / "run" / "last.pt").exists, processes[0])
    processes[rank].send_signal(number)
    ends = [finish(process) for process in processes]
    said = [line for _, out, err in ends for line in [*errors_in(err), *out.split("\n")] if is_last_word(line)]
    assert all(code != 0 for code, _, _ in ends) and len(said) == 1, ends
    assert not any("Traceback" in err for _, _, err in ends)
    goes_on(cli, tiny, tmp_path / "run")


@pytest.mark.slow
def test_what_one_process_is_told_all_do(cli: Cli, tiny: list[str], tmp_path: Path, store: TCPStore) -> None:
    """A signal to the second process in mid-epoch: both stop after the same step, and the first one saves it."""
    data = write_precomp(tmp_path / "long", train=2000)
    settings = [*tiny, f"data.root={data}", "run.save_minutes=0.005"]
    processes = launch_alone(store, *settings)
    wait_for((tmp_path / "run" / "last.pt").exists, processes[0])
    processes[1].terminate()
    (code, out, err), (other, _, _) = (finish(process) for process in processes)
    assert (code, other) == (143, 143) and out.count("stopped and saved") == 1 and not errors_in(err), err
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["epoch"] == 0 and state["step"] > 0
    assert cli("train", *settings, "--dry-run").code == 0


def is_last_word(line: str) -> bool:
    return "stopped and saved" in line or "another process of this training has ended" in line


def goes_on(cli: Cli, tiny: list[str], run: Path) -> None:
    """What the processes saved is whole: one process can go on from it."""
    epoch = torch.load(run / "last.pt", weights_only=True)["epoch"]
    assert cli("train", *tiny, f"train.epochs={epoch + 1}").code == 0
