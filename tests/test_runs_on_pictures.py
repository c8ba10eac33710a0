"""Models trained on pictures, end to end."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, Outcome, without_word_vectors, write_own_pictures
from PIL import Image
from torch import Tensor

import vse
from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.transforms import Square
from vse.encoders.backbones import ResNetBackbone

Cli = Callable[..., Outcome]


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    settings = {
        "run.dir": tmp_path / "run",
        "data.root": tmp_path / "world",
        "data.options": "{pictures: true, train_scenes: 12, eval_scenes: 4}",
        "data.workers": 0,
        "data.transform.size": 32,
        "data.transform.min_scale": 0.6,
        "model.embed_dim": 8,
        "train.epochs": 1,
        "train.batch_size": 4,
    }
    return [str(ROOT / "configs" / "demo_pictures.yaml"), *(f"{key}={value}" for key, value in settings.items())]


def weights(run: Path) -> dict[str, Tensor]:
    return load_checkpoint(run / "last.pt")["model"]


def test_trained_end_to_end(cli: Cli, small: list[str], tmp_path: Path) -> None:
    """Train, evaluate, go on; workers change nothing; the backbone learns; pictures become embeddings."""
    small = [*small, "optim.schedule.name=constant"]
    outcome = cli("train", *small, "train.epochs=2")
    assert outcome.code == 0, outcome.err
    assert cli("eval", tmp_path / "run").code == 0
    for settings in (["train.epochs=1", "data.workers=2"], ["train.epochs=2", "data.workers=0"]):
        assert cli("train", *small, *settings, f"run.dir={tmp_path / 'parts'}").code == 0
    parts = weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[key]) for key, value in weights(tmp_path / "run").items())

    model = vse.load(tmp_path / "run")
    paths = sorted((tmp_path / "world" / "images").glob("*.png"))[:3]
    embeddings = model.encode_images(paths, batch_size=2)
    assert embeddings.shape == (3, 1, 8)
    opened = [Image.open(path) for path in paths]
    tensors = [Square(size=32).read(path) for path in paths]
    for same in (opened, tensors, [str(path) for path in paths]):
        torch.testing.assert_close(model.encode_images(same), embeddings, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_images(paths[::-1]).flip(0), embeddings, atol=1e-5, rtol=0)


PICTURE_CONFIGS = sorted(
    str(p.relative_to(ROOT / "configs"))
    for p in (ROOT / "configs").glob("*/*.yaml")
    if "name: grid" in p.read_text() or "grid_bert" in p.read_text()
)


SLOW = "vse_infty/f30k_grid_butd_bert.yaml"  # the detector's ResNet-101


@pytest.mark.parametrize(
    "config",  # the first is their base
    [pytest.param(name, marks=pytest.mark.slow if name == SLOW else ()) for name in PICTURE_CONFIGS[1:]],
)
def test_the_recipes_for_pictures(config: str, cli: Cli, tiny_bert: Path, tiny_vit: Path, tmp_path: Path) -> None:
    """Made small, on the demo's pictures: they train without a warning, go on into the next epoch, and evaluate."""
    assert PICTURE_CONFIGS[0] == "_base/grid_bert.yaml"
    encoder = read_config(ROOT / "configs" / config).model.image.encoder.arguments
    world = ["data.format=synthetic", f"data.root={tmp_path / 'world'}"]
    world += ["data.options={pictures: true, train_scenes: 8, eval_scenes: 4}", "data.workers=0"]
    small = ["train.batch_size=8", "data.transform.size=32", "model.embed_dim=8", f"run.dir={tmp_path / 'run'}"]
    small += without_word_vectors(ROOT / "configs" / config)
    if encoder["backbone"].startswith("google/vit"):
        small += [f"model.image.encoder.backbone={tiny_vit}"]
    else:
        geometry = "caffe_resnet50" if encoder["backbone"].startswith("caffe") else "resnet18"
        small += [f"model.image.encoder.backbone={geometry}", "model.image.encoder.weights=null"]
    if config.endswith("_bert.yaml"):
        small += [f"model.text.encoder.model={tiny_bert}"]
    if config.startswith("dive"):
        small += [f"model.{side}.aggregator.head_dim=4" for side in ("image", "text")]
    for epochs in (1, 2):  # the second trains the backbone
        outcome = cli("train", ROOT / "configs" / config, *world, *small, f"train.epochs={epochs}")
        assert outcome.code == 0, outcome.err
        assert "warning" not in outcome.err
    table = cli("eval", tmp_path / "run")
    assert table.code == 0 and "RSUM" in table.out
    model = vse.load(tmp_path / "run")
    picture = next((tmp_path / "world" / "images").glob("test*.png"))
    assert torch.isfinite(model.similarity(model.encode_images([picture]), model.encode_texts(["a red circle"]))).all()


def test_own_pictures(cli: Cli, tmp_path: Path) -> None:
    """The shipped config on a folder of pictures: the splits are drawn, and the unfrozen backbone is trained."""
    root = write_own_pictures(tmp_path / "mine")
    small = [
        *("model.image.encoder.backbone=resnet18", "model.image.encoder.weights=null", "data.transform.size=32"),
        *("model.embed_dim=8", "model.text.encoder.word_dim=6", "data.vocabulary.min_count=1", "data.workers=0"),
        *("train.batch_size=4", "train.epochs=3", f"run.dir={tmp_path / 'run'}", f"data.root={root}"),
    ]
    config = ROOT / "configs" / "own_pictures.yaml"
    error = cli("train", config, *small).error
    assert f"{root}/captions.csv: has no column split; found image, caption" in error
    assert "set data.options.splits=auto to draw 80/10/10" in error
    outcome = cli("train", config, *small, "data.options.splits=auto")
    assert outcome.code == 0 and "warning" not in outcome.err, outcome.err
    assert "train 16 images, 32 captions; dev 2 images, 4 captions" in outcome.out
    table = cli("eval", tmp_path / "run")
    assert table.code == 0 and "2 images, 4 captions" in table.out
    picture = root / "holidays" / "0.png"
    assert vse.load(tmp_path / "run").encode_images(picture).shape == (1, 1, 8)


def test_a_frozen_backbone_stays(cli: Cli, small: list[str], tmp_path: Path) -> None:
    runs = {}
    for freeze in (1, 0):
        settings = [f"model.image.encoder.freeze_epochs={freeze}", f"run.dir={tmp_path / str(freeze)}"]
        assert cli("train", *small, *settings).code == 0
        runs[freeze] = weights(tmp_path / str(freeze))
    key = "image.encoder.backbone.layer4.0.conv1.weight"
    assert not torch.equal(runs[0][key], runs[1][key])
    moved = [k for k in runs[1] if "backbone" in k and "running" not in k]
    settings = ["model.image.encoder.freeze_epochs=1", f"run.dir={tmp_path / '1'}", "train.epochs=2"]
    assert cli("train", *small, *settings).code == 0
    after = weights(tmp_path / "1")
    assert any(not torch.equal(runs[1][k], after[k]) for k in moved)  # trained from the second epoch on


def test_a_checkpoint_needs_no_weights_file(cli: Cli, small: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = ResNetBackbone("resnet18").state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    settings = [f"model.image.encoder.weights={tmp_path / 'resnet18.pth'}", "model.image.encoder.freeze_epochs=9"]
    assert cli("train", *small, *settings).code == 0
    key = "layer4.0.conv1.weight"
    assert torch.equal(weights(tmp_path / "run")[f"image.encoder.backbone.{key}"], state[key])
    (tmp_path / "resnet18.pth").unlink()
    assert cli("eval", tmp_path / "run").code == 0
    assert cli("train", *small, *settings, "train.epochs=2").code == 0


def test_mistakes(cli: Cli, small: list[str], tmp_path: Path) -> None:
    assert cli("train", *small, "--dry-run").code == 0
    picture = sorted((tmp_path / "world" / "images").glob("train*.png"))[5]
    content = picture.read_bytes()
    picture.write_bytes(content[:100])
    for workers in (0, 1):
        error = cli("train", *small, f"data.workers={workers}", f"run.dir={tmp_path / str(workers)}").error
        assert f"{picture.name}: not a picture that can be read" in error
    picture.unlink()
    assert f"{picture.name}: no such picture" in cli("train", *small).error
    picture.write_bytes(content)
    features = [s for s in small if not s.startswith("data.transform")]
    assert "regions reads features, but" in cli("train", *features, "model.image.encoder={name: regions}").error
    assert "grid reads pictures, but" in cli("train", *small, "data.options.pictures=false").error
    bare = [str(ROOT / "configs" / "demo.yaml"), *features[1:], "model.image.encoder={name: grid, backbone: resnet18}"]
    missing = "data.transform: missing, and pictures need one (known: crop, pretrained, square)"
    assert missing in cli("train", *bare).error
    misspelt = cli("train", *bare, "data.transform={name: sqare}").error
    assert "transform.name: unknown name 'sqare' (did you mean 'square'?)" in misspelt
    backbone = cli("train", *small, "model.image.encoder.backbone=resnet19").error
    assert "model.image.encoder: backbone must be a torchvision ResNet, got 'resnet19' (did you mean" in backbone
    tiny_pictures = cli("train", *small, "data.transform.size=1", "model.image.encoder.backbone=caffe_resnet50").error
    assert "model.image: cannot read pictures of 1 x 1 (" in tiny_pictures and "override" not in tiny_pictures
    state = ResNetBackbone("resnet18").state_dict()
    torch.save({**state, "conv1.weight": state["conv1.weight"] * torch.nan}, tmp_path / "nan.pth")
    nan = cli("train", *small, f"model.image.encoder.weights={tmp_path / 'nan.pth'}").error
    assert "model.image.encoder.backbone.conv1.weight: the weights that it starts from are not finite" in nan
    dev = sorted((tmp_path / "world" / "images").glob("dev*.png"))
    for path in dev[1:3]:
        path.rename(path.with_suffix(".txt"))
    assert f"{dev[1].name}: no such picture (nor 1 others of 4)" in cli("train", *small, "--dry-run").error
    for path in dev[1:3]:
        path.with_suffix(".txt").rename(path)
    weights_file = cli("train", *small, "model.image.encoder.weights=/no/such.pth").error
    assert weights_file.startswith("error: override 'model.image.encoder.weights=/no/such.pth': model.image.encoder: ")
    assert "/no/such.pth: no such file; expected the backbone's published weights" in weights_file


def test_messages_of_the_library(cli: Cli, small: list[str], tmp_path: Path) -> None:
    assert cli("train", *small).code == 0
    model = vse.load(tmp_path / "run")
    for images, message in (
        ([tmp_path / "none.png"], "none.png: no such picture"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 16, 16)], r"of one size, got \(3, 16, 16\)"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 32, 32).byte()], "a list cannot hold both float tensors and bytes"),
        ([torch.zeros(16, 1728)], r"pictures must be \(3, height, width\) of one size, got \(16, 1728\)"),
        ([], "nothing to encode"),
        (str(tmp_path / "none.png"), "none.png: no such picture"),
        ([np.zeros((8, 8, 3))], r"pictures must be \(3, height, width\) of one size, got \(8, 8, 3\)"),
        ([b"bytes"], "pictures must be paths, PIL pictures, tensors or arrays, got bytes"),
        ({"a": 1}, "images must be a path, a PIL picture or a list, got dict"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode_images(images)  # type: ignore[arg-type]
