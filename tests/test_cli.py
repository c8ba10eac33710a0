"""The commands, and the one line with exit code 2 that a user's mistake gets."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, Outcome

import vse
from vse.cli import COMMANDS
from vse.config_files import first_comment, shipped_configs
from vse.evaluation.protocols import PROTOCOLS

Cli = Callable[..., Outcome]
Command = Callable[..., Outcome]


def test_help_and_version(command: Command) -> None:
    for words in ((), ("--help",)):
        outcome = command(*words)
        assert outcome.code == 0 and all(f"  {name} " in outcome.out for name in COMMANDS)
    assert command("--version").out == f"vse {vse.__version__}\n"
    for name in COMMANDS:
        outcome = command(name, "--help")
        assert outcome.code == 0 and f"usage: vse {name}" in outcome.out
    shown = " ".join(command("eval", "--help").out.split())
    assert all(f" {name}" in shown for name in PROTOCOLS)


def test_mistakes_of_the_command_itself(command: Command) -> None:
    for words, message in (
        (("trian",), "trian: unknown command (did you mean 'train'?); see vse --help"),
        (
            ("--nothing",),
            f"--nothing: unknown command (known: {', '.join(sorted(COMMANDS))})",
        ),
        (("train",), "the following arguments are required: config; see vse train --help"),
        (("train", "dmeo"), "dmeo: no such config file (did you mean 'demo'?)"),
        (("train", "optim.lr=1", "demo"), "optim.lr=1: is a setting; expected a config or a run folder before the"),
        (("configs", "x"), "unrecognized arguments: x; see vse configs --help"),
    ):
        outcome = command(*words)
        assert outcome.code == 2 and message in outcome.error, outcome.error


def test_configs(command: Command) -> None:
    """Every shipped config is listed with the comment on its first line."""
    lines = command("configs").out.splitlines()
    files = sorted(f for f in (ROOT / "configs").rglob("*.yaml") if not {"_base", "studies"} & set(f.parts))
    assert len(lines) == len(files)
    for name, file in shipped_configs().items():
        assert any(line.startswith(f"{name} ") and line.endswith(f" {first_comment(file)}") for line in lines)
    assert all(first_comment(file) for file in files)


def test_print_config(command: Command, tiny: list[str], tmp_path: Path) -> None:
    """The printed config is that of the run, defaults filled in, and nothing is trained."""
    outcome = command("train", *tiny, "--print-config")
    assert outcome.code == 0 and not (tmp_path / "run").exists()
    printed = yaml.safe_load(outcome.out)
    assert printed["train"]["epochs"] == 2 and printed["model"]["text"]["aggregator"]["position_dim"] == 32


def test_a_run_folder_is_a_config(command: Command, tiny: list[str], tmp_path: Path) -> None:
    """Training a run's folder is training with its resolved config: more epochs continue it."""
    assert command("train", *tiny, "train.epochs=1").code == 0
    again = command("train", tmp_path / "run")
    assert again.code == 0 and "finished: 1 epochs" in again.out
    assert "going on with epoch 2" in command("train", tmp_path / "run", "train.epochs=2").out
    outcome = command("eval", tmp_path / "run", "--split", "dev")
    assert outcome.code == 0 and (tmp_path / "run" / "dev.json").exists()


def test_bad_command_lines(cli: Cli, tiny: list[str], tmp_path: Path, corpus_folder: Path) -> None:
    config, *settings = tiny
    train: list[tuple[list[object], str]] = [
        ([tmp_path / "none.yaml"], "none.yaml: no such config file"),
        ([config, *settings, "train.epoch=1"], "train.epoch: unknown key (did you mean 'epochs'?)"),
        ([config, *settings, "train.epochs"], "override 'train.epochs': expected key=value"),
        ([config, *settings, "data.workers=-1"], "data.workers: input should be greater than or equal to 0, got -1"),
        ([config, *settings, "model.image.encoder.drop=1.5"], "model.image.encoder: drop must be in [0, 1), got 1.5"),
        ([config, *settings, "model.image.encoder.name=bigru"], "bigru reads words, but the image tower is given f"),
        ([config, *settings, "model.image.encoder.dim=4"], "encoder's features, 4, but model.embed_dim is 8"),
        ([config, *settings, f"data.root={tmp_path / 'none'}"], "data.root: no folder"),
        ([config, *settings, "run.device=tpu9"], "run.device: 'tpu9' is not available here"),
        ([config, *settings, "optim.factors={text.gru: 0.1}"], "optim.factors: 'text.gru' begins no parameter's name"),
        ([config, *settings, f"data.vocabulary.file={tmp_path / 'v.json'}"], "v.json: no such file; expected a vocab"),
        ([config, *settings, f"run.dir={config}/run"], "run.dir: cannot write in"),
        ([config, *settings, "optim.betas=[2.0, 0.9]"], "optim: Invalid beta parameter"),
        ([config, *settings, "model.text.encoder.word_dim=-5"], "model.text.encoder: "),
        (
            [config, *settings, "model.image.encoder.name=vse.aggregators:GPO"],
            "is not an encoder: it has no attribute dim",
        ),
        ([config, *settings, "run.device=meta"], "run.device: 'meta' is not available here"),
        ([config, "--nothing"], "unrecognized arguments: --nothing"),
        ([], "the following arguments are required: config"),
    ]
    for arguments, message in train:
        outcome = cli("train", *arguments)
        assert outcome.code == 2 and message in outcome.error, (arguments, outcome.error)
    cli("train", *tiny, "train.epochs=1")
    run = tmp_path / "run"
    torch.save({"model": {}}, tmp_path / "other.pt")
    evaluation: list[tuple[list[object], str]] = [
        ([tmp_path / "none"], "none: no such run folder or checkpoint"),
        ([corpus_folder], "no best.pt or last.pt in this folder"),
        ([tmp_path / "other.pt"], "other.pt: not a checkpoint of vse or of an official code (found: model)"),
        ([config], "model.image.encoder: regions has parameters that are not pretrained; train it first"),
        ([], "the following arguments are required: RUN; see"),
        ([run, "--split", "tset"], "split 'tset': did you mean 'test'?"),
        ([run, "--split", "testall"], "testall_ims.npy: no such file"),
        ([run, "--protocol", "cocoa"], "protocol 'cocoa': did you mean 'coco'?"),
        ([run, "model.embed_dim=16"], "its weights do not fit this config"),
        ([run, "--json", tmp_path / "none" / "x.json"], "none: no such folder; expected a folder for x.json"),
        ([run, "--json", f"{config}/x.json"], "no such folder; expected a folder for x.json"),
        ([run, "--json", "."], ".: expected the name of a file"),
        ([run, "--json", "/dev/null"], "/dev/null: expected the name of a file"),
        ([run, "--json", run / "best.pt"], "best.pt: is there already and holds no metrics"),
    ]
    for arguments, message in evaluation:
        outcome = cli("eval", *arguments)
        assert outcome.code == 2 and message in outcome.error, (arguments, outcome.error)


def test_a_bug_keeps_its_traceback(cli: Cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import vse.training.trainer

    def broken(config: object) -> None:
        raise ValueError("a bug, not the user's mistake")

    monkeypatch.setattr(vse.training.trainer, "train", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli("train", *tiny)


def test_one_line_in_a_process_of_its_own() -> None:
    """Nothing but the line: no warnings of imported libraries, no usage."""
    command = [sys.executable, "scripts/train.py", "configs/demo.yaml", "train.epoch=3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    expected = "error: override 'train.epoch=3': train.epoch: unknown key (did you mean 'epochs'?)"
    assert done.stderr.splitlines() == [expected]
