"""Backbones, their normalisation, freezing and published weight files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import SMALL, write_transformer
from torch import Tensor, nn

from vse.encoders import backbones
from vse.encoders.backbones import (
    SPLIT,
    Normalise,
    ResNetBackbone,
    TransformerBackbone,
    Unfreezing,
    load_backbone_weights,
    make_backbone,
)
from vse.errors import InputError


def make(name: str | Path, weights: str | None = None, train_norm: bool = False, cls: bool = False) -> Any:
    return make_backbone(str(name), weights, None, train_norm, "imagenet", cls)


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
        assert Normalise(name)(found) is found  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pixels must be one of .*, got 'bgr'"):
        Normalise("bgr")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("freeze_epochs", "stage_epochs", "expected"),
    [
        (0, None, {0: 3, 9: 3}),
        (1, None, {0: 0, 1: 3, 2: 3}),
        (2, 1, {0: 0, 1: 0, 2: 1, 3: 2, 4: 3, 9: 3}),
        (1, 3, {0: 0, 1: 1, 3: 1, 4: 2, 7: 3}),
        (0, 2, {0: 1, 1: 1, 2: 2}),
    ],
)
def test_unfreezing(freeze_epochs: int, stage_epochs: int | None, expected: dict[int, int]) -> None:
    """Stage by stage, forwards and, as when a run goes on, from any epoch."""
    stages = [list(nn.Linear(2, 2).parameters()) for _ in range(3)]
    unfreezing = Unfreezing(freeze_epochs, stage_epochs)
    for epoch, count in [*expected.items(), *reversed(expected.items())]:
        unfreezing(stages, epoch)
        trained = [all(p.requires_grad for p in stage) for stage in stages]
        assert trained == [True] * count + [False] * (3 - count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, None), "freeze_epochs must be at least 0, got -1"), ((0, 0), "stage_epochs must be at least 1, got 0")],
)
def test_bad_unfreezing(arguments: tuple[int, int | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unfreezing(*arguments)


def test_stages_of_a_resnet() -> None:
    backbone = ResNetBackbone("resnet18")
    assert len(backbone.stages) == 5
    assert backbone.stages[0][0] is backbone.layer4[0].conv1.weight  # type: ignore[union-attr]
    assert sum(map(len, backbone.stages)) == len(list(backbone.parameters()))


def test_geometry_of_caffe() -> None:
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
        backbone = make("caffe_resnet50", weights=str(tmp_path / f"{name}.pth"))
        assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items() if k in without_counters)


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
        "wider": (wider, r"conv1.weight has shape \(32, 3, 7, 7\), expected \(64, 3, 7, 7\)"),
        "whole": ({k: v.long() for k, v in state.items()}, "conv1.weight has type torch.int64, expected torch.float32"),
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
        with pytest.raises(InputError, match=f"{number}.pth: cannot be read as weights .it is not a torch") as caught:
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
    backbone = make("resnet18", weights="imagenet")
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"weights 'imagenet' cannot be downloaded \(no route\); pass a file instead"):
        make("resnet18", weights="imagenet")
    with pytest.raises(InputError, match="'imagenet' do not have the geometry of caffe_resnet50"):
        make("caffe_resnet50", weights="imagenet")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("VIT", {"weights": "imagenet"}, "a model of transformers, must be pretrained or null, got 'imagenet'"),
        ("VIT", {"train_norm": True}, "train_norm is for the BatchNorm of torchvision's backbones"),
        ("resnet18", {"weights": "pretrained"}, "resnet18 must be a file, imagenet or null"),
        ("resnet18", {"cls": True}, "cls is for a vision transformer's .CLS. token, and resnet18 has none"),
        ("resnet17", {}, r"backbone must be a torchvision ResNet, got 'resnet17' \(did you mean 'resnet1"),
        ("caffe_resnet18", {}, "'caffe_resnet18': only ResNets with bottlenecks"),
    ],
)
def test_bad_backbones(name: str, arguments: dict[str, Any], message: str, tiny_vit: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_vit if name == "VIT" else name, **arguments)


def test_torchvisions_names_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet18").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(make("resnet18"), ResNetBackbone)


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


def test_patches_of_a_transformer(vision: tuple[Path, int]) -> None:
    """The patches alone, row by row, in any batch; every parameter is used and belongs to one stage."""
    folder, stages = vision
    torch.manual_seed(0)
    backbone = TransformerBackbone(str(folder)).eval()
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        cells = backbone(pictures)
        assert cells.shape == (3, 16, backbone.dim)
        for row in range(3):
            torch.testing.assert_close(backbone(pictures[row : row + 1])[0], cells[row], atol=1e-5, rtol=0)
        for rows, columns, cell in ((slice(0, 8), slice(0, 8), 0), (slice(24, 32), slice(24, 32), 15)):
            changed = pictures[:1].clone()
            changed[:, :, rows, columns] += 3
            assert int((backbone(changed) - cells[:1]).norm(dim=-1).argmax()) == cell
    assert len(backbone.stages) == stages
    assert sum(map(len, backbone.stages)) == len(list(backbone.parameters()))
    backbone.train()(pictures)[:, :, 0].sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]


def test_a_transformer_is_the_published_one(vision: tuple[Path, int]) -> None:
    """Its weights are the folder's; from a checkpoint's description it is built again without the folder."""
    folder, _ = vision
    backbone = TransformerBackbone(str(folder))
    reference = transformers.AutoModel.from_pretrained(folder)
    reference = getattr(reference, "vision_model", reference)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference.eval()(pixel_values=pictures).last_hidden_state[:, -16:]
        torch.testing.assert_close(backbone.eval()(pictures), expected, atol=1e-5, rtol=0)
    own = backbone.net
    assert len(own.state_dict()) and all(torch.equal(v, reference.state_dict()[k]) for k, v in own.state_dict().items())
    again = TransformerBackbone("somewhere/else", None, json.loads(json.dumps(backbone.architecture)))
    again.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pictures), backbone.eval()(pictures))


def test_cls_comes_first(vision: tuple[Path, int]) -> None:
    """Of DeiT, DINOv2 with registers and the others, [CLS] alone joins the patches; SigLIP and Swin have none."""
    folder, _ = vision
    pictures = torch.randn(2, 3, 32, 32)
    if folder.name in ("SiglipVisionConfig", "SwinConfig"):
        with pytest.raises(ValueError, match=r"cls: (siglip_vision_model|swin) has no \[CLS\] token"):
            TransformerBackbone(str(folder), cls=True)(pictures)
        return
    backbone = TransformerBackbone(str(folder), cls=True).eval()
    with torch.no_grad():
        found = backbone(pictures)
        hidden: Tensor = backbone.net(pixel_values=pictures).last_hidden_state
    assert found.shape == (2, 17, backbone.dim)
    assert torch.equal(found[:, 0], hidden[:, 0]) and torch.equal(found[:, 1:], hidden[:, -16:])


@pytest.mark.parametrize("kind", ["ViTConfig", "Dinov2Config", "CLIPVisionConfig", "SiglipVisionConfig", "SwinConfig"])
def test_transformers_take_other_sizes(kind: str, tmp_path: Path) -> None:
    folder = write_transformer(tmp_path / "model", getattr(transformers, kind)(**VISION[kind][0]))
    backbone = TransformerBackbone(str(folder), None).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 3, 48, 64)).shape == (2, 48, backbone.dim)


@pytest.mark.parametrize("kind", ["Yolos", "ViTMAE"])
def test_models_whose_tokens_are_not_the_patches(kind: str, tmp_path: Path) -> None:
    """Detection tokens behind the patches, or a random part of them."""
    sizes = {**SIZES, "image_size": [32, 32] if kind == "Yolos" else 32}
    folder = write_transformer(tmp_path / kind, getattr(transformers, f"{kind}Config")(**sizes))
    with pytest.raises(ValueError, match="tokens for 16 patches; they cannot be told apart"):
        TransformerBackbone(str(folder), None)(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("train_norm", [True, False])
def test_recomputed_activations_change_nothing(train_norm: bool) -> None:
    """Cells, gradients and running statistics are those of a plain step, and fewer bytes are kept for it."""
    torch.manual_seed(0)
    plain = ResNetBackbone("resnet18", train_norm).train()
    frugal = ResNetBackbone("resnet18", train_norm, recompute=True).train()
    frugal.load_state_dict(plain.state_dict())
    pictures = torch.randn(3, 3, 64, 64)
    kept = []
    for backbone in (plain, frugal):
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            cells = backbone(pictures)
        kept.append(sum(sizes))
        cells.square().sum().backward()
    for own, other in zip(plain.parameters(), frugal.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None and torch.equal(own.grad, other.grad)
    for buffer, twin in zip(plain.buffers(), frugal.buffers(), strict=True):
        assert torch.equal(buffer, twin)
    assert kept[1] < kept[0] / 3


def test_nothing_is_recomputed_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in evaluation, and not while the backbone is frozen."""
    monkeypatch.setattr(backbones, "run_and_forget", None)
    backbone = ResNetBackbone("resnet18", recompute=True).train()
    with torch.no_grad():
        backbone(torch.randn(1, 3, 32, 32))
    backbone.requires_grad_(False)
    backbone(torch.randn(1, 3, 32, 32))


def test_a_transformer_recomputes_its_layers(tiny_vit: Path) -> None:
    pictures = torch.randn(2, 3, 32, 32)
    gradients, sizes = [], []
    for recompute in (False, True):
        backbone = TransformerBackbone(str(tiny_vit), recompute=recompute).train()
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            patches = backbone(pictures)
        sizes.append(sum(kept))
        patches.square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert sizes[1] < sizes[0] / 2
