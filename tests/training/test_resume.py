"""No run is ever lost: killed, interrupted or damaged, it goes on as if nothing had happened, or says why not."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, launch_training, read_jsonl, same_weights, weights_of, write_precomp
from processes import in_processes

from vse import distributed
from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.training import trainer

Cli = Callable[..., Outcome]


LONG = ["train.epochs=12", "run.save_minutes=0.0005", "optim.schedule.milestones=[5]"]


@pytest.mark.slow
def test_kill_at_any_moment_and_go_on(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """kill -9 at random moments, with other numbers of workers each time: the same weights, the same log."""
    whole = tmp_path / "whole"
    assert cli("train", *tiny, *LONG, f"run.dir={whole}").code == 0
    expected = read_jsonl(whole / "metrics.jsonl")
    rng = random.Random(0)
    run = tmp_path / "run"
    kills = 0
    for attempt in range(20):
        process = launch_training(tiny, *LONG, f"data.workers={attempt % 3}")
        seen = time.monotonic() + 120
        mark = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
        while process.poll() is None and time.monotonic() < seen:  # wait until it trains, then a random while
            if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size != mark:
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.6)
        if process.poll() is None and kills < 4:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        out, err = process.communicate()
        assert process.returncode == 0, err
        break
    assert kills >= 2, "the run was over before it could be killed"
    assert same_weights(weights_of(run), weights_of(whole)) and same_weights(
        weights_of(run, "best.pt"), weights_of(whole, "best.pt")
    )
    found = read_jsonl(run / "metrics.jsonl")
    assert [r["step"] for r in found if "dev" in r] == [r["step"] for r in expected if "dev" in r]
    assert [r["dev"] for r in found if "dev" in r] == [r["dev"] for r in expected if "dev" in r]
    assert len({(r["step"], "dev" in r) for r in found}) == len(found)  # nothing is logged twice
    assert not list(run.glob(".*.tmp"))


QUEUE = "train.queue={size: 40, momentum: 0.9, start_epoch: 0}"
MINING = "train.mining={every: 2, start_epoch: 0}"


@pytest.mark.parametrize("more", [[], [QUEUE, MINING], ["train.queue={size: 5, start_epoch: 1}"]], ids=len)
def test_interrupted_in_this_process_equals_uninterrupted(
    more: list[str], cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of the second epoch; the model has dropout from the device's own generator."""
    tiny, whole = [*tiny, *more], tmp_path / "whole"
    cli("train", *tiny, f"run.dir={whole}")
    step = trainer.Training.train_step

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        if self.total_steps == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(trainer.Training, "train_step", interrupted)
    assert cli("train", *tiny).code == 128 + signal.SIGTERM
    monkeypatch.setattr(trainer.Training, "train_step", step)
    outcome = cli("train", *tiny, "data.workers=1")
    assert "going on with epoch 2, step 5;" in outcome.out
    a, b = load_checkpoint(tmp_path / "run" / "last.pt"), load_checkpoint(whole / "last.pt")
    assert same_weights(a["model"], b["model"]) and torch.equal(a["random"][0]["torch"], b["random"][0]["torch"])
    assert (a["queue"] is None) == (not more) and (a["confused"] is None) == (MINING not in more)
    if more:
        for side in ("images", "captions"):
            assert torch.equal(a["queue"][side]["embeddings"], b["queue"][side]["embeddings"])
    if MINING in more:
        assert same_weights(a["queue"]["slow"], b["queue"]["slow"]) and torch.equal(a["confused"], b["confused"])


@pytest.mark.slow
def test_interrupted_before_every_step_equals_uninterrupted(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command takes one step, so every step is one that a run stops at and goes on from."""
    tiny, whole = [*tiny, QUEUE, MINING, "optim.ema=0.9"], tmp_path / "whole"
    assert cli("train", *tiny, f"run.dir={whole}").code == 0
    expected = load_checkpoint(whole / "last.pt")
    steps = max(record["step"] for record in read_jsonl(whole / "metrics.jsonl"))
    step, taken = trainer.Training.train_step, 0

    def one_step(self: trainer.Training, batch: Any) -> Any:
        nonlocal taken
        os.kill(os.getpid(), signal.SIGTERM)
        taken += 1
        return step(self, batch)

    monkeypatch.setattr(trainer.Training, "train_step", one_step)
    codes = [cli("train", *tiny).code for _ in range(steps)]
    monkeypatch.setattr(trainer.Training, "train_step", step)
    assert cli("train", *tiny).code == 0
    found = load_checkpoint(tmp_path / "run" / "last.pt")
    assert taken == len(codes) > 8 and set(codes[:-1]) == {128 + signal.SIGTERM}
    assert same_weights(found["model"], expected["model"])
    assert same_weights(found["average"]["model"], expected["average"]["model"])
    assert same_weights(found["queue"]["slow"], expected["queue"]["slow"])
    assert torch.equal(found["random"][0]["torch"], expected["random"][0]["torch"])
    assert found["best"] == expected["best"]


def test_leftovers_of_a_killed_write_go(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny, "train.epochs=1")
    leftover = tmp_path / "run" / ".last.pt.123.tmp"
    leftover.touch()
    assert cli("train", *tiny).code == 0 and not leftover.exists()


def test_best_without_last_is_not_overwritten(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny)
    (tmp_path / "run" / "last.pt").unlink()
    assert "last.pt: missing, beside a best.pt that a new run would replace" in cli("train", *tiny).error


def test_a_full_disk(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """As on a full disk: a limit on file sizes that the log keeps and a checkpoint does not."""
    import resource

    assert cli("train", *tiny, "train.epochs=1").code == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        outcome = cli("train", *tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 2 and re.search(r"(best|last).pt: cannot be written \(File too large\)", outcome.error)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert cli("train", *tiny).code == 0


def test_a_truncated_checkpoint(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny)
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    outcome = cli("train", *tiny, "train.epochs=3")
    assert outcome.code == 2 and "last.pt: truncated" in outcome.error
    assert cli("eval", tmp_path / "run").code == 0  # best.pt is whole


def test_resume_under_another_config(cli: Cli, tiny: list[str], tmp_path: Path, corpus_folder: Path) -> None:
    cli("train", *tiny)
    outcome = cli("train", *tiny, "optim.lr=0.1", "model.embed_dim=16", "train.epochs=3")
    assert outcome.code == 2
    assert "model.embed_dim (8 in the run, 16 now); optim.lr (0.0005 in the run, 0.1 now)" in outcome.error
    assert "train.epochs" not in outcome.error
    moved = corpus_folder.rename(tmp_path / "moved")
    allowed = ["train.epochs=3", f"data.root={moved}", "data.workers=1", "run.log_steps=1", "run.save_minutes=3"]
    assert cli("train", *tiny, *allowed).code == 0
    other = write_precomp(tmp_path / "other", train=30)
    outcome = cli("train", *tiny, "train.epochs=4", f"data.root={other}")
    assert "this run trained on 120 captions, but" in outcome.error and "has 150" in outcome.error
    other = write_precomp(tmp_path / "as_large", seed=1)
    outcome = cli("train", *tiny, "train.epochs=4", f"data.root={other}")
    assert "last.pt: this run began with other captions of train than there are now" in outcome.error
    assert "run.resume is never, but" in cli("train", *tiny, "run.resume=never").error


def test_a_run_from_before_a_setting_existed_goes_on(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """Its config gets the default, which is what it did."""
    assert cli("train", *tiny).code == 0
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for key in ("mlp", "features", "context", "dropout"):
        del state["config"]["model"]["image"]["encoder"][key]
    del state["history"], state["version"]
    state["format"], state["random"] = "vse checkpoint 1", state["random"][0]
    torch.save(state, tmp_path / "run" / "last.pt")
    outcome = cli("train", *tiny, "train.epochs=3")
    assert outcome.code == 0 and "epoch 3/3" in outcome.out, outcome.err
    assert (
        "model.image.encoder.mlp (input in the run, None now)"
        in cli("train", *tiny, "model.image.encoder.mlp=null").error
    )


def test_a_run_folder_belongs_to_one_process(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    process = launch_training(tiny, "train.epochs=500")
    while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.02)
    assert "another process is training in" in cli("train", *tiny).error
    process.kill()
    process.communicate()


def test_another_number_of_processes_draws_other_numbers_in_each(tiny: list[str], tmp_path: Path) -> None:
    """One process saved the state, two go on: the dropout of one is not that of the other."""
    state = trainer.Training(read_config(tiny[0], tiny[1:])).state()

    def check() -> None:
        trainer.Training(read_config(tiny[0], tiny[1:])).restore(state, tmp_path / "last.pt")
        drawn = distributed.collect(torch.rand(4).tolist())
        assert not drawn or drawn[0] != drawn[1]

    in_processes(2, tmp_path, check)
