"""The README's commands and snippets, and the demo, in a copy of the checkout as a newcomer has it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, save_vse_infty, words_file, write_pictures, write_precomp

from vse.encoders.backbones import ResNetBackbone

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds."""
    folder = tmp_path_factory.mktemp("clone") / "vse"
    ignored = shutil.ignore_patterns(".*", "data", "runs", "*.egg-info", "__pycache__", "build")

    def ignore(path: str, names: list[str]) -> set[str]:
        return set(ignored(path, names)) if Path(path) == ROOT else {n for n in names if n == "__pycache__"}

    shutil.copytree(ROOT, folder, ignore=ignore)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    words[0] = sys.executable if Path(words[0]).name == "python" else words[0]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a newcomer has
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_first_lines_tell_what_it_is() -> None:
    head = "\n".join(README.splitlines()[:30])
    for needed in ("image-text retrieval", "make demo", "make test", "pip install -e .", "GPO()(x).embeddings[:, 0]"):
        assert needed in head


@pytest.fixture(scope="module")
def demo(checkout: Path) -> str:
    """`make demo`, its set-up left out: what it printed last."""
    steps = subprocess.run(["make", "--dry-run", "demo"], cwd=checkout, capture_output=True, text=True, check=True)
    scripts = [line for line in steps.stdout.splitlines() if "scripts/" in line]
    assert len(scripts) == 2
    return [run(line, checkout).stdout for line in scripts][-1]


def test_demo(checkout: Path, demo: str) -> None:
    """It trains, evaluates and prints the table; far above chance, which is 19."""
    metrics = json.loads((checkout / "runs" / "demo" / "test.json").read_text())
    assert "200 images, 1,000 captions" in demo and f"{metrics['rsum']:.1f}" in demo
    assert metrics["rsum"] >= 250
    assert len(list((checkout / "data" / "demo" / "images").glob("*.png"))) == 3400


def test_commands(checkout: Path, demo: str, tiny_bert: Path) -> None:
    """Every command; the demo has been trained, so training it again says that it is finished."""
    for command in commands():
        if command.startswith("make "):
            assert command in ("make demo", "make test")  # above, and what runs this
        elif "model_best.pth" in command:
            if not (checkout / "model_best.pth").exists():
                write_precomp(checkout / "data" / "f30k")
                save_vse_infty(checkout / "model_best.pth")
                words_file(checkout / "f30k_precomp_vocab.json", 29)
            run(command, checkout)
        elif "data.root=" in command:  # full size: the same command on a small corpus of that layout, or a small model
            small = " train.epochs=1 train.batch_size=16 model.embed_dim=8 data.vocabulary.min_count=1"
            if "wsl" in command:
                write_pictures(checkout / "data" / "coco")
                shutil.copytree(tiny_bert, checkout / "weights" / "bert")
                published = ResNetBackbone("resnet18").state_dict()
                torch.save(published, checkout / "weights" / "ig_resnext101_32x8-c38310e5.pth")
                small += " model.image.encoder.backbone=resnet18 data.transform.size=32 data.workers=1"
            run(command + small, checkout)
        else:
            run(command, checkout)
    assert (checkout / "dev.json").exists()


def test_snippets(checkout: Path, demo: str) -> None:
    code = "\n".join(blocks("python"))
    code += (
        "\nassert pooled.shape == (8, 1024) and texts.shape == images.shape == (1, 1, 192) and scores.shape == (1, 1)"
    )
    (checkout / "snippets.py").write_text(code)
    run("python snippets.py", checkout)


def test_named_files_exist() -> None:
    for name in re.findall(r"\]\(([^)]+)\)|`((?:configs|scripts|docs)/[^` ]+)`", README):
        path = next(filter(None, name))
        assert (ROOT / path).exists(), path
