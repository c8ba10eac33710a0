"""Features of one's own pictures and clips, and what is trained on them."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, Outcome, write_pictures
from PIL import Image
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from vse.batchwise import as_written
from vse.build import build_image_encoder, read_config, read_corpus
from vse.data.clips import iterate_frames, read_frames
from vse.data.formats import precomp
from vse.data.transforms import open_picture, to_tensor
from vse.encoders.backbones import ResNetBackbone
from vse.errors import InputError
from vse.features.extraction import RowWriter, extract_features
from vse.training import trainer

Cli = Callable[..., Outcome]


@pytest.fixture
def grid(tmp_path: Path) -> list[str]:
    """Config and overrides of a small grid model on pictures, its backbone from a file of weights."""
    root = write_pictures(tmp_path / "pictures")
    torch.manual_seed(0)
    torch.save(ResNetBackbone("resnet18").state_dict(), tmp_path / "resnet18.pth")
    return [
        str(ROOT / "configs" / "demo_pictures.yaml"),
        "data={format: karpathy, sampling: pair, options: {pictures: images}}",
        f"data.root={root}",
        "data.transform={name: square, size: 64, augment: false}",
        "model.image.encoder={name: grid, backbone: resnet18, freeze_epochs: 9, train_norm: false}",
        f"model.image.encoder.weights={tmp_path / 'resnet18.pth'}",
        *(
            "model.embed_dim=8",
            "train.batch_size=6",
            "train.epochs=1",
            "eval.batch_size=5",
            "optim.lr=1e-3",
            f"run.dir={tmp_path / 'run'}",
        ),
    ]


def test_training_from_extracted_cells_equals_training_online(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    """The same losses, step by step, as with the frozen encoder."""
    config, *settings = grid
    assert cli("extract_features", config, tmp_path / "out", *settings).code == 0
    online = trainer.Training(read_config(config, settings))
    frozen = [s for s in settings if not s.startswith(("data", "model.image"))]
    files = [f"data.root={tmp_path / 'out'}", "data.format=precomp", "model.image.encoder={name: regions, mlp: null}"]
    offline = trainer.Training(read_config(ROOT / "configs" / "demo.yaml", [*frozen, *files]))
    state = online.model.state_dict()
    own = {k.replace("image.encoder.head.", "image.encoder."): v for k, v in state.items() if ".backbone." not in k}
    offline.model.load_state_dict(own)
    assert offline.vocabulary.state == online.vocabulary.state
    found: dict[str, list[float]] = {"online": [], "offline": []}
    for name, training in (("online", online), ("offline", offline)):
        for epoch in (0, 1):
            training.epoch, training.step = epoch, 0
            training.start_epoch()
            for batch in training.batches():
                found[name].append(float(training.train_step(batch)["total"]))
    assert len(found["online"]) == 8 and found["online"] == pytest.approx(found["offline"], rel=1e-5)
    assert found["online"][0] != found["online"][-1]


@pytest.mark.parametrize("half", [False, True])
def test_files_are_the_corpus(grid: list[str], cli: Cli, tmp_path: Path, half: bool) -> None:
    """Order, ids and captions are the corpus's, any number of captions per image; the rows are the cells."""
    config, *settings = grid
    annotations = tmp_path / "pictures" / "dataset_small.json"
    content = json.loads(annotations.read_text())
    content["images"][1]["sentences"].append({"raw": "one  more\tcaption", "sentid": 999})
    annotations.write_text(json.dumps(content))
    options = ["--split", "train", "--split", "test", *(["--float16"] if half else [])]
    outcome = cli("extract_features", config, tmp_path / "out", *settings, *options)
    assert outcome.code == 0 and "train, test finished" in outcome.out, outcome.err
    source = read_corpus(read_config(config, settings), "train")
    made = precomp(str(tmp_path / "out"), "train")
    assert list(made.image_ids) == [str(label) for label in source.image_ids]
    pairs = sorted(zip(source.image_of_caption.tolist(), (" ".join(c.split()) for c in source.captions), strict=True))
    assert sorted(zip(made.image_of_caption.tolist(), made.captions, strict=True)) == pairs
    assert np.load(tmp_path / "out" / "train_ims.npy", mmap_mode="r").dtype == (np.float16 if half else np.float32)
    encoder: Any = build_image_encoder(read_config(config, settings), "pictures").eval()
    for row in range(len(source.images)):
        picture = to_tensor(open_picture(source.images[row]).resize((64, 64), Image.Resampling.BILINEAR))
        with torch.no_grad():
            cells = encoder.backbone(encoder.normalise(picture[None]))[0].numpy()
        np.testing.assert_allclose(made.images[row], cells, atol=2e-2 * cells.max() if half else 1e-4 * cells.max())
    manifest = json.loads((tmp_path / "out" / "train_manifest.json").read_text())
    assert manifest["extractor"]["backbone"] == "resnet18" and manifest["transform"]["size"] == 64
    assert manifest["data"]["root"].endswith("pictures") and manifest["weights"].endswith("resnet18.pth")
    assert manifest["items"] == 12 and manifest["dtype"] == ("float16" if half else "float32")
    assert not list((tmp_path / "out").glob(".*unfinished*"))


class Killed(BaseException):
    pass


def test_what_is_done_is_not_done_again(
    grid: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, *settings = grid
    arguments = [config, tmp_path / "out", *settings]
    assert cli("extract_features", config, tmp_path / "whole", *settings).code == 0
    write, seen = RowWriter.write, []

    def killed(self: RowWriter, start: int, values: Any) -> None:
        seen.append((self.split, start))
        if len(seen) == 3:
            self.arrays["ims"][start] = 7  # a batch half written
            raise Killed
        write(self, start, values)

    monkeypatch.setattr(RowWriter, "write", killed)
    with pytest.raises(Killed):
        cli("extract_features", *arguments)
    assert seen == [("train", 0), ("train", 5), ("train", 10)]
    assert not (tmp_path / "out" / "train_ims.npy").exists()
    assert cli("extract_features", *arguments).code == 0
    assert seen[3:] == [("train", 10), ("dev", 0), ("dev", 5), ("test", 0), ("test", 5)]
    for file in ("train_ims.npy", "dev_ims.npy", "train_caps.txt", "test_ids.txt"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    again = cli("extract_features", *arguments)
    assert again.code == 0 and "train is finished" in again.out and len(seen) == 8


@pytest.mark.parametrize("size", [0, 100, 300])
def test_a_damaged_unfinished_array(size: int, tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, "dev", 50, {"a": 1})
    writer.write(0, {"ims": np.ones((2, 3), dtype=np.float32)})
    with open(tmp_path / ".unfinished_dev_ims.npy", "r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=".dev_unfinished.json: an array that it lists is damaged .*; remove it"):
        RowWriter(tmp_path, "dev", 50, {"a": 1})


def test_a_full_disk_is_known_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ValueError, match="dev_ims.npy: cannot be written .No space left on device."):
        RowWriter(tmp_path, "dev", 2, {"a": 1}).write(0, {"ims": np.ones((2, 3), dtype=np.float32)})


@pytest.mark.parametrize("moved", [0, 1])
def test_killed_between_the_last_rows_and_the_manifest(moved: int, tmp_path: Path) -> None:
    values = {"ims": np.ones((2, 3), dtype=np.float32), "boxes": np.zeros((2, 4), dtype=np.float32)}
    RowWriter(tmp_path, "dev", 2, {"a": 1}).write(0, values)
    for name in ["ims", "boxes"][:moved]:
        (tmp_path / f".unfinished_dev_{name}.npy").rename(tmp_path / f"dev_{name}.npy")
    writer = RowWriter(tmp_path, "dev", 2, {"a": 1})
    assert writer.done == 2
    writer.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dev_boxes.npy", "dev_ims.npy", "dev_manifest.json"]


@pytest.mark.slow
def test_kill_9(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    """A real one, whenever it comes."""
    config, *settings = grid
    command = [sys.executable, str(ROOT / "scripts" / "extract_features.py"), config, str(tmp_path / "out"), *settings]
    command.append("eval.batch_size=1")
    journal = tmp_path / "out" / ".train_unfinished.json"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or json.loads(journal.read_text()).get("done", 0) < 2):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert cli("extract_features", *command[2:]).code == 0
    assert cli("extract_features", config, tmp_path / "whole", *command[4:]).code == 0
    assert (tmp_path / "out" / "train_ims.npy").read_bytes() == (tmp_path / "whole" / "train_ims.npy").read_bytes()


def test_mistakes_are_one_line(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    config, *settings = grid
    arguments = [config, tmp_path / "out", *settings]
    assert cli("extract_features", *arguments, "--split", "dev").code == 0
    assert cli("extract_features", *arguments, "model.image.encoder.freeze_epochs=3", "--split", "dev").code == 0
    for split in ("dev", "test"):  # all of a folder are of one kind
        for change, differs in (
            ("data.transform.size=32", "transform"),
            ("model.image.encoder.weights=null", "weights_sha256"),
            ("run.precision=bf16", "precision"),
        ):
            other = cli("extract_features", *arguments, change, "--split", split).error
            assert f"dev_manifest.json: made with another {differs}; remove it with its features" in other
        half = cli("extract_features", *arguments, "--split", split, "--float16").error
        assert "made with another dtype" in half
    shutil.copytree(tmp_path / "pictures", tmp_path / "moved")
    moved = [f"data.root={tmp_path / 'moved'}", "--split", "dev"]
    assert "dev is finished" in cli("extract_features", *arguments, *moved).out
    annotations = tmp_path / "moved" / "dataset_small.json"
    annotations.write_text(annotations.read_text().replace('"raw": "', '"raw": "new '))
    assert "made with another corpus_sha256" in cli("extract_features", *arguments, *moved).error
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "dev_ims.npy", np.zeros((5, 3)))
    own = cli("extract_features", config, tmp_path / "mine", *settings, "--split", "dev").error
    assert "dev_ims.npy: exists already, and no manifest says what made it" in own
    options = cli("extract_features", *arguments, "--split", "dev", "--boxes", "9").error
    assert "--boxes and --size need --detector" in options
    folder = cli("extract_features", config, *settings).error
    assert "expected a folder to write into, got data=" in folder
    (tmp_path / "old" / "precomp").mkdir(parents=True)
    old = cli("extract_features", config, tmp_path / "old", *settings).error
    assert "training would read this folder and not the files extracted beside it" in old
    result = tmp_path / "out" / "dev_ims.npy"
    result.rename(tmp_path / "kept.npy")
    gone = cli("extract_features", *arguments, "--split", "dev").error
    assert "dev_ims.npy: is missing, though dev_manifest.json says that the split is finished; remove that file" in gone
    (tmp_path / "kept.npy").rename(result)
    for content in ("{", "[]", "{}"):
        (tmp_path / "mine" / "dev_manifest.json").write_text(content)
        assert "dev_manifest.json: " in cli("extract_features", config, tmp_path / "mine", *settings).error
    picture = tmp_path / "pictures" / "images" / "3.jpg"
    picture.write_bytes(picture.read_bytes()[:50])
    assert "3.jpg: not a picture that can be read" in cli("extract_features", *arguments).error
    regions = cli("extract_features", *arguments, "model.image.encoder={name: regions}")
    assert "model.image.encoder.name: regions reads features, but the image tower is given pictures" in regions.error
    none = cli("extract_features", *arguments, "data.transform=null")
    assert none.code == 2
    scenes = [f"data.root={tmp_path / 'world'}", "data.options={train_scenes: 4, eval_scenes: 2}"]
    assert cli("extract_features", ROOT / "configs" / "demo.yaml", tmp_path / "x", *scenes).code == 2  # no pictures
    lost = cli("extract_features", *arguments, "--detector", "/none.pth")
    assert "/none.pth: no such file; expected the detector's published weights" in lost.error
    boxes = cli("extract_features", *arguments, "--detector", "none", "--boxes", "0")
    assert "boxes must be 1 to 1000 and size at least 32, got 0 and 800" in boxes.error


@pytest.mark.slow
def test_clips_become_files_of_frame_features(cli: Cli, tmp_path: Path) -> None:
    """All frames, pooled, as the video encoder has them; training goes on from the files; nothing is done twice."""
    world = tmp_path / "world"
    settings = [f"data.root={world}", "data.options={train_scenes: 10, eval_scenes: 4}"]
    settings += ["data.transform.size=96", "data.transform.resize=96"]  # several cells a frame
    settings += ["model.embed_dim=8", f"run.dir={tmp_path / 'run'}", "train.epochs=1", "train.batch_size=5"]
    config = ROOT / "configs" / "demo_video.yaml"
    torch.manual_seed(0)
    torch.save(ResNetBackbone("resnet18").state_dict(), tmp_path / "resnet18.pth")
    weights = f"model.image.encoder.weights={tmp_path / 'resnet18.pth'}"
    assert cli("train", config, *settings, "--dry-run").code == 0  # renders the world
    outcome = cli("extract_features", config, world, *settings, weights)
    assert outcome.code == 0, outcome.err
    encoder: Any = build_image_encoder(read_config(config, [*settings, weights]), "frames").eval()
    for gif in sorted((world / "gifs").glob("*.gif"))[::5]:
        pictures = [frame.resize((96, 96), Image.Resampling.BILINEAR) for frame in read_frames(gif, np.arange)]
        frames = torch.stack([to_tensor(picture) for picture in pictures])
        with torch.no_grad():
            expected = encoder(frames[None]).features[0].numpy()
        np.testing.assert_allclose(np.load(world / "features" / f"{gif.stem}.npy"), expected, atol=2e-2)
    times = {path: path.stat().st_mtime_ns for path in (world / "features").glob("*.npy")}
    (world / "features" / "train_00003.npy").unlink()
    (world / "train_manifest.json").rename(world / ".train_unfinished.json")  # as if it had been killed
    other = cli("extract_features", config, world, *settings)
    assert "made with another weights_sha256" in other.error
    assert cli("extract_features", config, world, *settings, weights).code == 0
    (world / "dev_manifest.json").unlink()
    stale = cli("extract_features", config, world, *settings, weights)
    assert "dev_00000.npy: exists already, and no manifest says what made it" in stale.error
    changed = [path.name for path, before in times.items() if path.stat().st_mtime_ns != before]
    assert changed == ["train_00003.npy"]
    outcome = cli("train", config, *settings, "data.options.frames=features")
    assert outcome.code == 0, outcome.err


def test_random_weights_are_the_seeds(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    """One network for all splits, and the same when it goes on."""
    config, *settings = grid
    settings.append("model.image.encoder.weights=null")
    assert cli("extract_features", config, tmp_path / "out", *settings, "--split", "dev", "--split", "dev").code == 0
    assert cli("extract_features", config, tmp_path / "out", *settings).code == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*_manifest.json")]
    assert len(manifests) == 3 and len({manifest["weights_sha256"] for manifest in manifests}) == 1


def test_numbers_that_float16_does_not_hold() -> None:
    with pytest.raises(ValueError, match="the features of image 7, or of one soon after it, are not finite in float16"):
        as_written(np.array([1e6]), True, "the features of image 7")
    assert as_written(np.array([1e6]), False, "the features of image 7").dtype == np.float32


def test_an_image_without_a_caption(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    config, *settings = grid
    annotations = tmp_path / "pictures" / "dataset_small.json"
    content = json.loads(annotations.read_text())
    content["images"][2]["sentences"] = []
    annotations.write_text(json.dumps(content))
    assert "image 2 has no caption" in cli("extract_features", config, tmp_path / "out", *settings).error


@pytest.mark.slow
def test_detected_regions_are_trained_on(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    """From a file of weights; boxes, scores, labels and sizes lie beside the features."""
    torch.manual_seed(0)
    torch.save(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), tmp_path / "detector.pth")
    shutil.rmtree(tmp_path / "pictures")
    write_pictures(tmp_path / "pictures", train=4, others=2)
    config, *settings = grid
    options = ["--detector", tmp_path / "detector.pth", "--boxes", "5", "--size", "96"]
    outcome = cli("extract_features", config, tmp_path / "out", *settings, *options)
    assert outcome.code == 0, outcome.err
    shapes = {
        name: np.load(tmp_path / "out" / f"train_{name}.npy").shape for name in ("ims", "boxes", "scores", "sizes")
    }
    assert shapes == {"ims": (4, 5, 1024), "boxes": (4, 5, 4), "scores": (4, 5), "sizes": (4, 2)}
    tiny = [
        "model.embed_dim=8",
        "train.batch_size=4",
        "train.epochs=1",
        "data.workers=0",
        "data.vocabulary.min_count=1",
    ]
    region = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
    outcome = cli("train", region, *tiny, f"data.root={tmp_path / 'out'}", f"run.dir={tmp_path / 'regions'}")
    assert outcome.code == 0, outcome.err


def test_clips_are_extracted_at_the_transforms_rate(cli: Cli, tmp_path: Path) -> None:
    """fps and a resize without antialiasing are told in the manifest; training from the files needs no rate."""
    world = tmp_path / "world"
    config = ROOT / "configs" / "demo_video.yaml"
    settings = [f"data.root={world}", "data.options={train_scenes: 4, eval_scenes: 2}", "model.embed_dim=8"]
    settings += [f"run.dir={tmp_path / 'run'}", "train.epochs=1", "train.batch_size=4", "data.workers=0"]
    rate = ["data.transform.fps=5", "data.transform.antialias=false"]
    outcome = cli("extract_features", config, world, *settings, *rate)
    assert outcome.code == 0, outcome.err
    for gif in sorted((world / "gifs").glob("*.gif")):
        frames = np.load(world / "features" / f"{gif.stem}.npy")
        assert len(frames) == len(list(iterate_frames(gif, 5))) < len(list(iterate_frames(gif)))
    manifest = json.loads((world / "dev_manifest.json").read_text())
    assert manifest["transform"] == {"name": "clip", "size": 48, "resize": 48, "fps": 5, "antialias": False}
    assert "made with another transform" in cli("extract_features", config, world, *settings).error
    refused = cli("train", config, *settings, *rate, "data.options.frames=features").error
    assert "the frame rate of frame features is unknown, so fps=5 is impossible" in refused
    outcome = cli("train", config, *settings, "data.options.frames=features")
    assert outcome.code == 0, outcome.err


def test_a_system_that_cannot_claim_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    writer = RowWriter(tmp_path, "dev", 2, {"a": 1})
    writer.write(0, {"ims": np.ones((2, 3), dtype=np.float32)})
    writer.finish()
    assert np.array_equal(np.load(tmp_path / "dev_ims.npy"), np.ones((2, 3)))


class Halves(nn.Module):
    """In the place of an encoder with a backbone: the cells are the halves of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.normalise = nn.Unflatten(1, (2, -1)), nn.Sequential(Floats(), nn.Flatten())


class Floats(nn.Module):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.float()


EXTRACTORS = [
    ("{name: grid, backbone: resnet18}", {"backbone": "resnet18", "pixels": "imagenet"}),
    ("{name: grid, backbone: a/vit, cls: true}", {"backbone": "a/vit", "pixels": "imagenet", "cls": True}),
    ("{name: timm, model: test_vit}", {"model": "test_vit"}),
    ("{name: timm, model: test_vit, image_size: 64}", {"model": "test_vit", "image_size": 64}),
]


@pytest.mark.parametrize(("encoder", "extractor"), EXTRACTORS)
def test_the_manifest_tells_what_decides_the_cells(
    encoder: str, extractor: dict[str, Any], grid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else, so that manifests of older versions stay valid; other cells are another extractor."""
    monkeypatch.setattr("vse.features.extraction.build_image_encoder", lambda config, kind: Halves())
    source, *settings = grid
    settings = [setting for setting in settings if not setting.startswith("model.image.encoder")]
    config = read_config(source, [*settings, f"model.image.encoder={encoder}"])
    extract_features(config, tmp_path / "out", ["dev"])
    assert json.loads((tmp_path / "out" / "dev_manifest.json").read_text())["extractor"] == extractor
    extract_features(config, tmp_path / "out", ["dev"])
    other = next(name for name, told in EXTRACTORS if told != extractor)
    config = read_config(source, [*settings, f"model.image.encoder={other}"])
    with pytest.raises(InputError, match="made with another extractor"):
        extract_features(config, tmp_path / "out", ["test"])
