"""Several processes extract what one does, each item once, and only the main one writes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, Outcome, write_pictures
from processes import in_processes
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException

from vse import distributed
from vse.batchwise import computed
from vse.build import read_config
from vse.config import Config
from vse.encoders.backbones import ResNetBackbone
from vse.features.detector import Detector
from vse.features.extraction import RowWriter, extract_features

Cli = Callable[..., Outcome]
SPLITS = ["train", "dev"]
PICTURES, CLIPS = 12 + 7, 6 + 2  # of these splits


@pytest.fixture
def pictures(tmp_path: Path) -> Config:
    """A small backbone on few pictures, in batches that do not divide them."""
    settings = [
        "data={format: karpathy, sampling: pair, options: {pictures: images}}",
        f"data.root={write_pictures(tmp_path / 'pictures', others=7)}",
        "data.transform={name: square, size: 64, augment: false}",
        "model.image.encoder={name: grid, backbone: resnet18}",
        "eval.batch_size=2",
    ]
    return read_config(ROOT / "configs" / "demo_pictures.yaml", settings)


@pytest.fixture
def clips(cli: Cli, tmp_path: Path) -> tuple[Config, Path]:
    """A small backbone on few clips, and the folder in which they are and their features are to be."""
    world = tmp_path / "world"
    settings = [f"data.root={world}", "data.options={train_scenes: 6, eval_scenes: 2}", "data.workers=0"]
    config = ROOT / "configs" / "demo_video.yaml"
    assert cli("train", config, *settings, "model.embed_dim=8", "train.batch_size=4", "--dry-run").code == 0
    return read_config(config, settings), world


@contextmanager
def counted(folder: Path, name: str) -> Iterator[None]:
    """A block in which every process notes how many pictures or frames its backbone was given."""
    folder.mkdir(exist_ok=True)
    forward, seen = ResNetBackbone.forward, [0]

    def count(self: ResNetBackbone, images: Tensor) -> Tensor:
        seen[0] += len(images)
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResNetBackbone, "forward", count)
        yield
    (folder / f"{name}_{distributed.rank()}").write_text(str(seen[0]))


def counts(folder: Path, name: str) -> list[int]:
    return [int(file.read_text()) for file in sorted(folder.glob(f"{name}_*"))]


def check_same_files(found: Path, expected: Path, rounding: float = 0.0) -> None:
    """The same names and contents, to the last byte unless features of other batches may be rounded otherwise."""
    files = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
    assert files and files == sorted(path.relative_to(found) for path in found.rglob("*") if path.is_file())
    for file in files:
        if file.suffix == ".npy" and rounding:
            own, other = np.load(found / file), np.load(expected / file)
            assert own.dtype == other.dtype
            np.testing.assert_allclose(own, other, rtol=rounding, atol=rounding)
        else:
            assert (found / file).read_bytes() == (expected / file).read_bytes()


def with_batches_of(config: Config, size: int) -> Config:
    return config.model_copy(update={"eval": config.eval.model_copy(update={"batch_size": size})})


@pytest.mark.parametrize(
    ("world", "size", "rounding"),
    [(2, 1, 0.0), *(pytest.param(world, 2, 1e-5, marks=pytest.mark.slow) for world in (2, 3))],
)
def test_pictures(world: int, size: int, rounding: float, pictures: Config, tmp_path: Path) -> None:
    """The last round is cut into other batches than one process has, which a convolution may round otherwise."""
    pictures = with_batches_of(pictures, size)
    extract_features(pictures, tmp_path / "one", SPLITS)

    def check() -> None:
        with counted(tmp_path / "counts", "first"):
            extract_features(pictures, tmp_path / "several", SPLITS)
        with counted(tmp_path / "counts", "again"):
            extract_features(pictures, tmp_path / "several", SPLITS)

    in_processes(world, tmp_path, check)
    check_same_files(tmp_path / "several", tmp_path / "one", rounding)
    found = counts(tmp_path / "counts", "first")
    assert len(found) == world and sum(found) == PICTURES and min(found) >= PICTURES // world - 2
    assert counts(tmp_path / "counts", "again") == [0] * world


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_clips(world: int, clips: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = clips
    with counted(tmp_path / "counts", "one"):
        extract_features(config, folder, SPLITS)
    (folder / "features").rename(tmp_path / "one")
    manifests = {path: path.read_bytes() for path in folder.glob("*_manifest.json")}
    assert len(list((tmp_path / "one").glob("*.npy"))) == CLIPS and len(manifests) == 2
    for path in manifests:
        path.unlink()

    def check() -> None:
        with counted(tmp_path / "counts", "several"):
            extract_features(config, folder, SPLITS)

    in_processes(world, tmp_path, check)
    check_same_files(folder / "features", tmp_path / "one")
    assert manifests == {path: path.read_bytes() for path in folder.glob("*_manifest.json")}
    found = counts(tmp_path / "counts", "several")
    assert len(found) == world and sum(found) == counts(tmp_path / "counts", "one")[0] and min(found) > 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on(before: int, after: int, pictures: Config, tmp_path: Path) -> None:
    """Killed while the third round is written: what was written before is kept, and not computed again."""
    extract_features(pictures, tmp_path / "one", SPLITS)
    write = RowWriter.write

    def killed(self: RowWriter, start: int, values: Any) -> None:
        if start >= 4 * before:
            raise Killed
        write(self, start, values)

    def interrupted() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RowWriter, "write", killed)
            extract_features(pictures, tmp_path / "out", SPLITS)

    def go_on() -> None:
        with counted(tmp_path / "counts", "rest"):
            extract_features(pictures, tmp_path / "out", SPLITS)

    with pytest.raises((Killed, ProcessException)):
        in_processes(before, tmp_path, interrupted)
    assert not (tmp_path / "out" / "train_ims.npy").exists()
    (tmp_path / "meeting").unlink(missing_ok=True)
    in_processes(after, tmp_path, go_on)
    check_same_files(tmp_path / "out", tmp_path / "one", rounding=1e-5)
    assert sum(counts(tmp_path / "counts", "rest")) == PICTURES - 4 * before


def test_fewer_rows_than_processes(pictures: Config, tmp_path: Path) -> None:
    """A round of one row leaves two processes without work."""

    def check() -> None:
        found = list(computed(lambda rows: rows, lambda batch, first: {"rows": batch}, [range(7)], 7, 2, "rows"))
        rows = [(start, arrays["rows"].tolist()) for start, arrays in found]
        whole = [(0, [0, 1]), (2, [2, 3]), (4, [4, 5]), (6, [6])]
        assert rows == (whole if distributed.is_main() else [])

    in_processes(3, tmp_path, check)


@pytest.mark.slow
def test_detected_regions(pictures: Config, tmp_path: Path) -> None:
    """Boxes, scores and sizes come from every process as well."""
    torch.manual_seed(0)
    detector = Detector(weights=None, boxes=3, size=64)
    alone = with_batches_of(pictures, 1)  # a detector pads the pictures of a batch
    extract_features(alone, tmp_path / "one", ["dev"], detector)
    in_processes(2, tmp_path, lambda: extract_features(alone, tmp_path / "several", ["dev"], detector))
    check_same_files(tmp_path / "several", tmp_path / "one")


@pytest.mark.slow
def test_a_picture_that_only_the_second_process_reads(tmp_path: Path, pictures: Config) -> None:
    """The mistake is said once, and no process waits for another one."""
    picture = Path(pictures.data.root) / "images" / "3.jpg"
    picture.write_bytes(picture.read_bytes()[:50])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(pictures.model_dump()))
    command = [sys.executable, "-m", "vse", "extract", str(tmp_path / "config.yaml"), str(tmp_path / "out")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    launched = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **meeting, "RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    said = "".join(process.communicate(timeout=120)[1] for process in launched)
    assert [process.returncode for process in launched] == [2, 2]
    assert said.count("error:") == 1 and "3.jpg: not a picture that can be read" in said and "Traceback" not in said
