import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    ROOT,
    SMALL,
    WORDS,
    Outcome,
    without_word_vectors,
    write_clip,
    write_precomp,
    write_tokenizer,
    write_transformer,
)

# The tests' models are tiny: a second thread only waits, for long when the machine is busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a connection


LONGEST = (
    "test_readme.py",
    "test_torchrun.py",
    "test_processes.py",
    "test_golden.py",
    "test_stop.py",
    "test_extraction.py",
    "test_runs_on_pictures.py",
    "test_extraction_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: at the end of a parallel run, no process waits for another's."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test touches the user's cache folder."""
    os.environ["VSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> None:
    """What a test writes need not survive a power cut, and most of it is removed before it reaches the disk."""
    os.fsync = lambda fd: None


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a script in this process: cli("train", "configs/demo.yaml", "train.epochs=1")."""

    def run(script: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in this process: command("train", "demo", "--dry-run")."""
    from vse.cli import main

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    return write_precomp(tmp_path / "data")


@pytest.fixture
def tiny(corpus_folder: Path, tmp_path: Path) -> list[str]:
    """Config and overrides of a run that takes a second: cli("train", *tiny)."""
    config = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
    settings = {
        "run.dir": tmp_path / "run",
        "data.root": corpus_folder,
        "data.workers": 0,
        "data.vocabulary.min_count": 1,
        "model.embed_dim": 8,
        "model.text.encoder.word_dim": 6,
        "train.epochs": 2,
        "train.batch_size": 16,
        "run.log_steps": 3,
        "optim.schedule.milestones": [1],
    }
    return [str(config), *(f"{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that no test changes."""
    return write_precomp(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Callable[..., Path]:
    """Make the folder of a run that has learned nothing yet: make_run("vse_infty", "run.seed=2")."""
    from vse.build import read_config
    from vse.checkpoints.native import save_checkpoint
    from vse.training.trainer import Training

    def make(system: str = "vse_infty", *settings: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        small = {
            "run.dir": folder,
            "data.root": data_folder,
            "data.workers": 0,
            "data.vocabulary.min_count": 1,
            "model.embed_dim": 8,
            "model.text.encoder.word_dim": 6,
            "train.batch_size": 16,
        }
        path = ROOT / "configs" / system / "f30k_region_bigru.yaml"
        overrides = [f"{key}={value}" for key, value in small.items()] + without_word_vectors(path)
        config = read_config(path, [*overrides, *settings])
        save_checkpoint(folder / "best.pt", Training(config).run_state())
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random BERT."""
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(vocab_size=90, max_position_embeddings=32, **SMALL)
    folder = write_transformer(tmp_path_factory.mktemp("bert"), config, weights=True)
    return write_tokenizer(folder, WORDS)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random CLIP."""
    return write_clip(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random SigLIP."""
    return write_clip(tmp_path_factory.mktemp("siglip"), "siglip")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random ViT, for pictures of 32 x 32."""
    from transformers import ViTConfig

    torch.manual_seed(0)
    return write_transformer(tmp_path_factory.mktemp("vit"), ViTConfig(image_size=32, patch_size=8, **SMALL), True)
