"""The commands and snippets of the README and the pages run, in a copy of the checkout as a newcomer has it.

The demo is trained by the command lines of `make demo` in processes of their own, for half an epoch, and by a slow test
for all four. All other commands run in this process, where torch is imported already. What is made for full-size data
runs on small files in the same layouts.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    WORDS,
    Outcome,
    read_jsonl,
    save_vse_infty,
    vse_2ad_states,
    words_file,
    write_own_pictures,
    write_pictures,
    write_precomp,
)

from vse.build import read_config
from vse.cli import main

NAMES = ("data", "evaluation", "show", "training", "studies", "search", "components", "extending")
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]
DEMO_WORLD = ["data.root=data/small", "data.options.train_scenes=48", "data.options.eval_scenes=12"]
DEMO_CLIPS = ["data.root=data/small_clips", "data.options.train_scenes=24", "data.options.eval_scenes=6"]
NARROW = ["model.embed_dim=8", "model.text.encoder.word_dim=6", "data.vocabulary.min_count=1", "data.workers=0"]
SHORT_DEMO = ["train.epochs=1", "train.limit=0.3"]
SHORT = ["train.epochs=1", "train.batch_size=16"]
LITTLE_CNN = [
    *("model.image.encoder.backbone=resnet18", "model.image.encoder.weights=null"),
    "data.transform.size=32",
]


class Snippet(NamedTuple):
    code: str
    output: str | None  # the block that follows it, where there is one


def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str, language: str = "bash") -> list[str]:
    """The command lines of a page, without their comments."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page_text(page), flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def snippets(page: str) -> list[Snippet]:
    found = re.finditer(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", page_text(page), flags=re.DOTALL)
    return [Snippet(match[1], match[2]) for match in found]


def smaller(words: list[str]) -> list[str]:
    """What makes a command of `vse train` or `vse study` quick; the command itself stays as it is."""
    if words[:2] == ["vse", "study"]:  # tests/studies train some
        return ["--dry-run"]
    if words[:2] != ["vse", "train"]:
        return []
    config = words[2]
    if words[2:] == ["demo"]:
        return SHORT_DEMO
    if config == "demo_video":
        return DEMO_CLIPS
    if config.startswith(("demo", "examples/")):
        return [] if "--dry-run" in words else [*DEMO_WORLD, *SHORT]
    if config == "own_pictures":
        return [*NARROW, "train.epochs=1", "train.batch_size=4", *LITTLE_CNN]
    if "resnet152" in config:
        return [*NARROW, *SHORT, *LITTLE_CNN, "data.transform.resize=32"]
    return [*NARROW, *SHORT]


def copy_of_a_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "vse"
    ignored = shutil.ignore_patterns(".*", "data", "runs", "*.egg-info", "__pycache__", "build")

    def ignore(path: str, names: list[str]) -> set[str]:
        return set(ignored(path, names)) if Path(path) == ROOT else {n for n in names if n == "__pycache__"}

    shutil.copytree(ROOT, folder, ignore=ignore)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds."""
    return copy_of_a_clone(tmp_path_factory)


def in_a_shell(line: str, folder: Path) -> str:
    """What a command line prints; `vse` is found as after `pip install -e .`."""
    scripts = folder / ".bin"
    scripts.mkdir(exist_ok=True)
    (scripts / "vse").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vse "$@"\n')
    (scripts / "vse").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_demo(checkout: Path, *settings: str) -> str:
    """`make demo`, its set-up left out and with these settings: what it printed last."""
    steps = subprocess.run(["make", "--dry-run", "demo"], cwd=checkout, capture_output=True, text=True, check=True)
    train, evaluate = [line.split(" ", 1)[1] for line in steps.stdout.splitlines() if "scripts/" in line]
    in_a_shell(shlex.join([sys.executable, *shlex.split(train), *settings]), checkout)
    return in_a_shell(f"{shlex.quote(sys.executable)} {evaluate}", checkout)


@pytest.fixture(scope="module")
def demo(checkout: Path) -> str:
    """What the demo prints after a third of an epoch."""
    return make_demo(checkout, *SHORT_DEMO)


@pytest.fixture(scope="module")
def world(checkout: Path, demo: str) -> Path:
    """The copy with the trained demo, and with small files in the places that the commands name."""
    data = checkout / "data"
    for name in ("f30k", "mine"):
        write_precomp(data / name)
    write_pictures(data / "coco")
    write_own_pictures(checkout / "my_pictures")
    write_tab_separated(data / "mine")
    save_vse_infty(checkout / "model_best.pth")
    torch.save({"model": vse_2ad_states(), "args": Namespace()}, checkout / "vse_2ad_best.pth")
    words_file(checkout / "f30k_precomp_vocab.json", 29)
    vectors = [f"{word} " + " ".join(f"{number / 10}" for number in range(6)) for word in WORDS]
    (checkout / "glove.840B.300d.txt").write_text("\n".join(vectors) + "\n")
    return checkout


def write_tab_separated(folder: Path) -> None:
    """Features and captions as examples/my_format.py reads them."""
    rng = np.random.default_rng(0)
    lines = []
    for split, count in (("train", 24), ("dev", 6), ("test", 6)):
        np.save(folder / f"{split}.npy", rng.standard_normal((count, 5, 12)).astype(np.float32))
        lines += [f"{split}\t{i}\t{' '.join(rng.choice(WORDS, 4))}" for i in range(count) for _ in range(2)]
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The copy as the working directory, with a cache of its own."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("VSE_CACHE", str(world / ".cache"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        yield world


def run(line: str, capfd: pytest.CaptureFixture[str]) -> Outcome:
    """Run a line `vse ...`, or `PYTHONPATH=examples vse ...`, in this process."""
    words = shlex.split(line)
    if words[0].startswith("PYTHONPATH="):
        sys.path.insert(0, str(Path(words.pop(0).partition("=")[2]).resolve()))
    assert words[0] == "vse", line
    capfd.readouterr()
    code: Any = 0
    try:
        main([*words[1:], *smaller(words)])
    except SystemExit as stop:
        code = stop.code
    return Outcome(code, *capfd.readouterr())


def test_first_lines_tell_what_it_is() -> None:
    head = "\n".join(page_text("README.md").splitlines()[:25])
    for needed in ("image-text and video-text retrieval", "make demo", "make test", "pip install -e ."):
        assert needed in head


def check_demo(checkout: Path, printed: str, least: float) -> None:
    metrics = json.loads((checkout / "runs" / "demo" / "test.json").read_text())
    assert "200 images, 1,000 captions" in printed and f"{metrics['rsum']:.1f}" in printed
    assert metrics["rsum"] >= least
    assert len(list((checkout / "data" / "demo" / "images").glob("*.png"))) == 3400


def test_demo(checkout: Path, demo: str) -> None:
    """It trains, evaluates and prints the table; a third of an epoch is above chance, which is 16."""
    check_demo(checkout, demo, 40)


@pytest.mark.slow
def test_the_whole_demo(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = copy_of_a_clone(tmp_path_factory)
    check_demo(folder, make_demo(folder), 250)


@pytest.mark.parametrize("page", PAGES)
def test_a_page(page: str, inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All its commands run, and then its snippets."""
    run_commands(page, capfd)
    run_snippets(page)


def run_commands(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    lines = commands(page)
    assert lines
    for line in lines:
        if line.startswith("make "):
            assert line in ("make demo", "make test")  # the fixture, and what runs this
            continue
        outcome = run(line, capfd)
        assert outcome.code == 0, f"{line}\n{outcome.err}"


def run_snippets(page: str) -> None:
    """They print what the page shows, and a shape in a comment is the shape of what the line assigns."""
    namespace: dict[str, Any] = {}
    for code, output in snippets(page):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        if output is not None:
            assert printed.getvalue() == output
        for name, shape in re.findall(r"^(\w+) = .*# \((\d+(?:, \d+)*)\)$", code, flags=re.MULTILINE):
            assert ", ".join(map(str, namespace[name].shape)) == shape, name


def test_the_readme_has_snippets() -> None:
    assert len(snippets("README.md")) == 2
    assert [snippet.output is not None for snippet in snippets("README.md")] == [True, False]


@pytest.mark.slow  # the page of the walkthrough runs the same command in this process
def test_an_own_part_in_a_shell(world: Path) -> None:
    """The first walkthrough as a user types it."""
    line = next(line for line in commands("docs/extending.md") if line.startswith("PYTHONPATH=examples vse train"))
    printed = in_a_shell(f"{line} {' '.join([*DEMO_WORLD, *SHORT])} run.dir=runs/in_a_shell", world)
    assert "runs/in_a_shell: finished: 1 epochs" in printed


def test_the_readme_says_what_a_second_run_does(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "runs/demo: finished: 1 epochs" in run("vse train demo", capfd).out


def test_the_commands_of_the_results_are_read() -> None:
    """They need Flickr8k's features: here their configs and settings are resolved."""
    lines = [line for line in commands("docs/RESULTS.md", "") if line.startswith("python scripts/train.py")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        config = read_config(ROOT / words[2], words[3:])
        assert config.data.root == "data/flickr8k" and config.model.embed_dim == 512
        assert config.data.vocabulary.vectors is None
        assert not (config.model.text.encoder.arguments["freeze_words"])


def test_the_numbers_of_health_are_logged(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What docs/training.md says of metrics.jsonl and test.json."""
    text = page_text("docs/training.md")
    names = re.findall(r"^\| `image_(\w+)` \|", text, flags=re.MULTILINE)
    settings = [
        *("data.root=data/f30k", "run.dir=runs/health", "data.vocabulary.vectors=null"),
        *("model.image.aggregator.head_dim=4", "model.text.aggregator.head_dim=4"),
    ]
    assert run(f"vse train dive/f30k_region_bigru {' '.join(settings)}", capfd).code == 0
    records = read_jsonl(inside / "runs" / "health" / "metrics.jsonl")
    kinds = {kind for record in records for kind in record} - {"epoch", "step"}
    assert kinds == {"start", "train", "dev"} == set(re.findall(r"`(start|train|dev)`,? ", text))
    expected = {f"{side}_{name}" for side in ("image", "text") for name in names}
    start = next(record["start"] for record in records if "start" in record)
    last = [record["train"] for record in records if "train" in record][-1]
    assert start.keys() == expected and expected <= last.keys()
    assert run("vse eval runs/health", capfd).code == 0
    sets = json.loads((inside / "runs" / "health" / "test.json").read_text())["sets"]
    assert expected - sets.keys() == {"image_constant_share", "text_constant_share"}
