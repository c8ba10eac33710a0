"""The grid encoder, its backbones and their published weight files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import SMALL, write_transformer
from torch import Tensor, nn

from vse.aggregators import GPO
from vse.encoders import Grid
from vse.encoders.backbones import SPLIT, Normalise, ResNetBackbone, load_backbone_weights
from vse.errors import InputError
from vse.model import Tower


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "caffe_resnet50"])
def test_batch_mates_change_nothing(name: str, pictures: Tensor) -> None:
    torch.manual_seed(0)
    tower = Tower(Grid(8, name), GPO()).eval()
    with torch.no_grad():
        together = tower(pictures).embeddings
        for row in range(3):
            torch.testing.assert_close(tower(pictures[row : row + 1]).embeddings[0], together[row], atol=1e-5, rtol=0)


def test_cells_are_rows_of_the_map(pictures: Tensor) -> None:
    """A change in the upper left corner is strongest in the first cell, one in the lower right in the last."""
    torch.manual_seed(0)
    grid = Grid(8, "resnet18").eval()
    with torch.no_grad():
        cells = grid(pictures[:1]).features
        assert cells.shape == (1, 2 * 3, 8)
        for rows, columns, cell in ((slice(0, 8), slice(0, 8), 0), (slice(56, 64), slice(88, 96), 5)):
            changed = pictures[:1].clone()
            changed[:, :, rows, columns] += 3
            assert int((grid(changed).features - cells).norm(dim=-1).argmax()) == cell


def test_raw_cells_and_their_mean(pictures: Tensor) -> None:
    """PVSE's: raw cells, and the projected average pool as the context."""
    torch.manual_seed(0)
    grid = Grid(8, "resnet18", features="raw", context="mean").eval()
    result = grid(pictures)
    assert result.features.shape == (3, 6, 512) and (grid.dim, grid.context_dim) == (512, 8)
    torch.testing.assert_close(result.context, grid.head.fc(result.features.mean(1)))


def test_geometry_of_caffe(pictures: Tensor) -> None:
    """The stride is in the first convolution; the first pooling counts what stands over."""
    plain, caffe = ResNetBackbone("resnet50"), ResNetBackbone("caffe_resnet50")
    assert plain.state_dict().keys() == caffe.state_dict().keys()
    for net, first, second in ((plain, (1, 1), (2, 2)), (caffe, (2, 2), (1, 1))):
        for stage in (net.layer2, net.layer3, net.layer4):
            assert (stage[0].conv1.stride, stage[0].conv2.stride) == (first, second)  # type: ignore[union-attr]
            assert stage[1].conv1.stride == stage[1].conv2.stride == (1, 1)  # type: ignore[union-attr]
        assert net.layer1[0].conv1.stride == net.layer1[0].conv2.stride == (1, 1)  # type: ignore[union-attr]
    assert caffe.maxpool(torch.zeros(1, 1, 32, 48)).shape == (1, 1, 16, 24)
    assert caffe.maxpool(torch.zeros(1, 1, 33, 48)).shape == (1, 1, 16, 24)


def test_batch_norm_keeps_its_statistics(pictures: Tensor) -> None:
    grid = Grid(8, "resnet18").train()
    before = {k: v.clone() for k, v in grid.backbone.state_dict().items() if "running" in k or "tracked" in k}
    grid(pictures).features.sum().backward()
    after = grid.backbone.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert grid.training and not any(m.training for m in grid.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.grad is not None for p in grid.parameters())


def test_batch_norm_is_trained_when_asked(pictures: Tensor) -> None:
    grid = Grid(8, "resnet18", train_norm=True).train()
    norms = [m for m in grid.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.training for m in norms)
    grid(pictures)
    assert all(m.num_batches_tracked == 1 for m in norms)
    grid.eval()
    assert not any(m.training for m in norms)


@pytest.mark.parametrize(
    ("freeze_epochs", "stage_epochs", "expected"),
    [
        (0, None, {0: 5, 9: 5}),
        (1, None, {0: 0, 1: 5, 2: 5}),
        (2, 1, {0: 0, 1: 0, 2: 1, 3: 2, 6: 5, 9: 5}),
        (1, 3, {0: 0, 1: 1, 3: 1, 4: 2, 7: 3}),
    ],
)
def test_freezing(freeze_epochs: int, stage_epochs: int | None, expected: dict[int, int]) -> None:
    grid = Grid(8, "resnet18", freeze_epochs=freeze_epochs, stage_epochs=stage_epochs)
    for epoch, count in expected.items():
        grid.set_epoch(epoch)
        trained = [all(p.requires_grad for p in stage) for stage in grid.backbone.stages]
        assert trained == [True] * count + [False] * (5 - count)
        assert all(p.requires_grad for p in grid.head.parameters())
    assert sum(map(len, grid.backbone.stages)) == len(list(grid.backbone.parameters()))


def test_cells_are_dropped_in_training_only() -> None:
    """With probability 0.2 none; otherwise 0.5 r of them, r uniform in [0.2, 1]: 0.24 of all on average."""
    torch.manual_seed(0)
    grid = Grid(8, "resnet18", drop=0.5)
    grid.backbone.forward = lambda pictures: torch.zeros(len(pictures), 200, 512)  # type: ignore[method-assign]
    mask = grid.train()(torch.zeros(1000, 3, 1, 1)).mask
    assert mask is not None
    share = 1 - mask.float().mean(1)
    assert abs(share.mean() - 0.24) < 0.01 and abs((share == 0).float().mean() - 0.2) < 0.03
    some = share[share > 0]
    assert some.min() < 0.12 and some.max() > 0.45 and abs(some.median() - 0.3) < 0.02
    assert grid.eval()(torch.zeros(2, 3, 1, 1)).mask is None


def test_normalisation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = pixels.double().permute(0, 2, 3, 1)

    def standard(mean: list[float], deviation: list[float]) -> Tensor:
        return (rows / 255 - torch.tensor(mean)) / torch.tensor(deviation)

    expected = {
        "imagenet": standard([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "half": (rows / 255 - 0.5) / 0.5,
        "clip": standard([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        "caffe": rows.flip(-1) - torch.tensor([102.9801, 115.9465, 122.7717]),
    }
    for name, values in expected.items():
        found = Normalise(name)(pixels)  # type: ignore[arg-type]
        torch.testing.assert_close(found, values.permute(0, 3, 1, 2).float(), atol=1e-4, rtol=1e-5)
        grid = Grid(8, "resnet18", pixels=name).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.equal(grid(pixels).features, grid(found).features)
        assert not [key for key in grid.state_dict() if "normalise" in key]
    with pytest.raises(ValueError, match="pixels must be one of .*, got 'bgr'"):
        Grid(8, "resnet18", pixels="bgr")  # type: ignore[arg-type]


def test_published_files(tmp_path: Path) -> None:
    """torchvision's and WSL's state dicts with their classifier, and the detector's two states."""
    torch.manual_seed(0)
    source = ResNetBackbone("caffe_resnet50")
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in source.state_dict().items()}
    split: dict[str, dict[str, Tensor]] = {"base": {}, "top": {}}
    for theirs, ours in SPLIT.items():
        part, _, prefix = theirs.partition(".")
        split[part] |= {prefix + k.removeprefix(ours): v for k, v in state.items() if k.startswith(ours)}
    without_counters = {k: v for k, v in state.items() if "num_batches" not in k}
    files: dict[str, Any] = {
        "plain": {**state, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)},
        "nested": {"state_dict": {f"module.{k}": v for k, v in without_counters.items()}},
        "detector": split,
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        grid = Grid(8, "caffe_resnet50", weights=str(tmp_path / f"{name}.pth"))
        assert all(torch.equal(v, state[k]) for k, v in grid.backbone.state_dict().items() if k in without_counters)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = ResNetBackbone("resnet18")
    state = backbone.state_dict()
    wider = {**state, "conv1.weight": torch.zeros(32, 3, 7, 7)}
    contents: dict[str, tuple[Any, str]] = {
        "lacking": ({k: v for k, v in state.items() if "layer4" not in k}, "layer4.0.conv1.weight is missing"),
        "strange": ({**state, "head.weight": torch.zeros(1)}, "head.weight is not in this model"),
        "wider": (wider, r"conv1.weight is \(32, 3, 7, 7\) there and \(64, 3, 7, 7\) here"),
        "whole": ({k: v.long() for k, v in state.items()}, "conv1.weight is torch.int64 there and torch.float32 here"),
        "part": ({"base": None, "top": {}}, "expected a state dict, or a dict of 'base' and 'top' states"),
        "numbers": ({5: torch.zeros(1)}, "expected a state dict"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, "expected a state dict"),
        "list": ([1, 2], "expected a state dict, or a dict of 'base' and 'top' states"),
        "evil": (Evil(), "cannot be read as weights"),
    }
    for name, (content, message) in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=f"{name}.pth: .*{message}"):
            load_backbone_weights(backbone, tmp_path / f"{name}.pth")
    for number, text in enumerate(["hello\n", "https://host/x.pth", "<html>", "(", "version https://git-lfs", ""]):
        (tmp_path / f"{number}.pth").write_text(text)
        with pytest.raises(InputError, match=f"{number}.pth: cannot be read as weights .it is no torch file") as caught:
            load_backbone_weights(backbone, tmp_path / f"{number}.pth")
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (("text", "cannot be read as weights"), ("none", "no such file; expected the backbone's")):
        with pytest.raises(InputError, match=f"{name}.pth: {message}"):
            load_backbone_weights(backbone, tmp_path / f"{name}.pth")
    assert "executed" not in capsys.readouterr().out


def test_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own download; without a connection, one line."""
    torch.manual_seed(0)
    state = {**ResNetBackbone("resnet18").state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1)}
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    grid = Grid(8, "resnet18", weights="imagenet")
    assert all(torch.equal(value, state[key]) for key, value in grid.backbone.state_dict().items())

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"weights 'imagenet' cannot be downloaded \(no route\); a file may be named"):
        Grid(8, "resnet18", weights="imagenet")
    with pytest.raises(InputError, match="'imagenet' are of torchvision's geometry, not caffe_resnet50's"):
        Grid(8, "caffe_resnet50", weights="imagenet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet17"}, r"backbone must be a torchvision ResNet, got 'resnet17' \(did you mean 'resnet1"),
        ({"backbone": "caffe_resnet18"}, "'caffe_resnet18': only ResNets with bottlenecks"),
        ({"backbone": "resnet18", "drop": 1.0}, r"drop must be in \[0, 1\), got 1.0"),
        ({"backbone": "resnet18", "freeze_epochs": -1}, "freeze_epochs must not be negative, got -1"),
        ({"backbone": "resnet18", "stage_epochs": 0}, "stage_epochs must be at least 1, got 0"),
        ({"backbone": "resnet18", "features": "raw"}, "context must be 'max' or 'mean' when the features are raw"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(8, **arguments)


def test_bad_pictures(pictures: Tensor) -> None:
    grid = Grid(8, "resnet18")
    with pytest.raises(ValueError, match=r"pictures must be \(B, 3, height, width\), bytes or floats, got torch.int64"):
        grid(pictures.long())
    with pytest.raises(ValueError, match=r"bytes or floats, got torch.float32 \(3, 64, 96\)"):
        grid(pictures[0])
    with pytest.raises(ValueError, match="a batch of pictures takes no mask"):
        grid(pictures, torch.ones(3, 6, dtype=torch.bool))


SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, **SMALL}
VISION: dict[str, tuple[dict[str, Any], int]] = {  # and the number of stages
    "ViTConfig": (SIZES, 3),
    "DeiTConfig": (SIZES, 3),  # two tokens before the patches
    "Dinov2Config": (SIZES, 3),
    "Dinov2WithRegistersConfig": (SIZES, 3),  # five
    "CLIPVisionConfig": (SIZES, 3),
    "SiglipVisionConfig": (SIZES, 3),  # none
    "SwinConfig": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        3,
    ),
    "CLIPConfig": ({"vision_config": SIZES, "text_config": {"vocab_size": 9, **SMALL}}, 3),
}


@pytest.fixture(scope="module", params=VISION)
def vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a small random vision model, and its number of stages."""
    torch.manual_seed(0)
    sizes, stages = VISION[request.param]
    model = transformers.AutoModel.from_config(getattr(transformers, request.param)(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # LayerNorms, too, that a mistake would leave out
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("vision") / request.param
    model.save_pretrained(folder)
    return folder, stages


def test_transformers(vision: tuple[Path, int]) -> None:
    """The patches alone, row by row, in any batch; every parameter is used; stages are unfrozen, the last first."""
    folder, stages = vision
    torch.manual_seed(0)
    grid = Grid(8, str(folder), weights="pretrained", stage_epochs=1).eval()
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        cells = grid(pictures).features
        assert cells.shape == (3, 16, 8)
        for row in range(3):
            torch.testing.assert_close(grid(pictures[row : row + 1]).features[0], cells[row], atol=1e-5, rtol=0)
        for rows, columns, cell in ((slice(0, 8), slice(0, 8), 0), (slice(24, 32), slice(24, 32), 15)):
            changed = pictures[:1].clone()
            changed[:, :, rows, columns] += 3
            assert int((grid(changed).features - cells[:1]).norm(dim=-1).argmax()) == cell
    assert len(grid.backbone.stages) == stages
    assert sum(map(len, grid.backbone.stages)) == len(list(grid.backbone.parameters()))
    for epoch in range(stages + 1):
        grid.set_epoch(epoch)
        trained = [all(p.requires_grad for p in stage) for stage in grid.backbone.stages]
        assert trained == [number <= epoch for number in range(stages)]
    grid.train()(pictures).features.sum().backward()
    assert not [name for name, p in grid.named_parameters() if p.grad is None]


def test_a_transformer_is_the_published_one(vision: tuple[Path, int]) -> None:
    """Its weights are the folder's; from a checkpoint's description it is built again without the folder."""
    folder, _ = vision
    grid = Grid(8, str(folder), weights="pretrained")
    reference = transformers.AutoModel.from_pretrained(folder)
    reference = getattr(reference, "vision_model", reference)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference.eval()(pixel_values=pictures).last_hidden_state[:, -16:]
        torch.testing.assert_close(grid.eval().backbone(pictures), expected, atol=1e-5, rtol=0)
    own: Any = grid.backbone.net
    assert len(own.state_dict()) and all(torch.equal(v, reference.state_dict()[k]) for k, v in own.state_dict().items())
    again = Grid(8, "somewhere/else", architecture=json.loads(json.dumps(grid.architecture)))
    again.load_state_dict(grid.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pictures).features, grid.eval()(pictures).features)


@pytest.mark.parametrize("kind", ["ViTConfig", "Dinov2Config", "CLIPVisionConfig", "SiglipVisionConfig", "SwinConfig"])
def test_transformers_take_other_sizes(kind: str, tmp_path: Path) -> None:
    folder = write_transformer(tmp_path / "model", getattr(transformers, kind)(**VISION[kind][0]))
    grid = Grid(8, str(folder)).eval()
    with torch.no_grad():
        assert grid(torch.randn(2, 3, 48, 64)).features.shape == (2, 48, 8)


def test_bad_transformers(tiny_vit: Path, tiny_bert: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"backbone": str(tiny_vit), "weights": "imagenet"},
            "a model of transformers, must be pretrained or null, got",
        ),
        ({"backbone": str(tiny_vit), "train_norm": True}, "train_norm is for the BatchNorm of torchvision's backbones"),
        ({"backbone": "resnet18", "weights": "pretrained"}, "resnet18 must be a file, imagenet or null"),
        ({"backbone": "nobody/vit", "weights": "pretrained"}, "nobody/vit: neither a folder here nor a model that can"),
        ({"backbone": f"{tmp_path}/vit"}, "vit: no such folder; expected one with a model of transformers"),
        ({"backbone": str(tiny_bert)}, "bert is no vision model: it takes no pixel_values"),
        ({"backbone": str(tmp_path)}, "cannot be read as a model of transformers"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            Grid(8, **arguments)
    config = transformers.ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8)
    maps = write_transformer(tmp_path / "map", config)
    with pytest.raises(ValueError, match="gives 3-dimensional feature maps; torchvision's ResNets go by name"):
        Grid(8, str(maps))


@pytest.mark.parametrize("kind", ["Yolos", "ViTMAE"])
def test_models_whose_tokens_are_not_the_patches(kind: str, tmp_path: Path) -> None:
    """Detection tokens behind the patches, or a random part of them."""
    sizes = {**SIZES, "image_size": [32, 32] if kind == "Yolos" else 32}
    folder = write_transformer(tmp_path / kind, getattr(transformers, f"{kind}Config")(**sizes))
    with pytest.raises(ValueError, match="tokens for 16 patches; they cannot be told apart"):
        Grid(8, str(folder))(torch.zeros(1, 3, 32, 32))


def test_a_model_tells_its_pixels(tiny_vit: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    Grid(8, str(folder), pixels="half")
    with pytest.raises(ValueError, match="pixels must be half for .*, as it says, got 'imagenet'"):
        Grid(8, str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.5] * 3}))
    with pytest.raises(ValueError, match=r"pixels must be \(\[0.1, 0.1, 0.1\], .* for .*, as it says, got 'half'"):
        Grid(8, str(folder), pixels="half")


def test_torchvisions_names_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet18").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Grid(8, "resnet18").architecture is None
