"""What `pip install` gives: the package, its types, the command and the shipped configs, without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

TINY = [
    *("data.options.train_scenes=24", "data.options.eval_scenes=10", "train.epochs=1", "train.batch_size=16"),
    *("model.embed_dim=8", "model.text.encoder.word_dim=6", "run.device=cpu"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout: building leaves folders behind."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("vse", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", output, source], check=True)
    return next(output.glob("*.whl"))


def test_the_wheel_holds_everything(wheel: Path) -> None:
    """Every module, the configs inside the package, and the mark that it is typed."""
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "vse").rglob("*.py")}
    configs = {f"vse/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "configs").rglob("*.yaml")}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == modules | configs | {"vse/py.typed"}


def test_installed_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """The commands, a shipped config by name, and one that builds on it, in an empty folder."""
    target, folder = tmp_path / "target", tmp_path / "empty"
    folder.mkdir()
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", f"--target={target}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import vse; print(vse.__file__)").strip() == str(target / "vse" / "__init__.py")
    assert (target / "bin" / "vse").exists()
    assert "vse_infty/f30k_region_bigru VSE∞" in " ".join(run("-m", "vse", "configs").split())
    (folder / "mine.yaml").write_text("base: demo\nrun: {dir: mine}\n")
    assert "finished: 1 epochs" in run("-m", "vse", "train", "mine.yaml", *TINY)
    assert "10 images, 50 captions" in run("-m", "vse", "eval", "mine")
    assert (folder / "mine" / "test.json").exists()
