"""The encoder of pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from distributions import Start, check_module, linear, xavier
from torch import Tensor, nn

from vse.aggregators import GPO
from vse.encoders import Grid
from vse.encoders.backbones import Normalise
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


def test_raw_cells_without_a_context(pictures: Tensor) -> None:
    """The backbone alone: nothing is projected."""
    grid = Grid(8, "resnet18", features="raw").eval()
    assert (grid.dim, grid.context_dim) == (512, None) and not list(grid.head.parameters())
    result = grid(pictures)
    assert result.context is None and torch.equal(result.features, grid.backbone(pictures))


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


def test_batch_norm_of_a_frozen_backbone_is_trained_when_asked(pictures: Tensor) -> None:
    """PVSE's first stage: the statistics of the batch count and the running ones move, while no weight does."""
    torch.manual_seed(0)
    grid = Grid(8, "resnet18", train_norm=True, freeze_epochs=1).train()
    grid.set_epoch(0)
    assert not any(p.requires_grad for p in grid.backbone.parameters())
    backbone: Any = grid.backbone
    before = backbone.bn1.running_mean.clone()
    stem = backbone.bn1(backbone.conv1(pictures))
    torch.testing.assert_close(stem.mean((0, 2, 3)), torch.zeros(64), atol=1e-5, rtol=0)
    grid(pictures)
    assert not torch.equal(backbone.bn1.running_mean, before)


def test_a_file_of_weights_fills_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = torchvision.models.resnet18().state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    own = Grid(8, "resnet18", weights=str(tmp_path / "resnet18.pth")).backbone.state_dict()
    assert own and all(torch.equal(value, published[name]) for name, value in own.items())


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


@pytest.mark.parametrize("pixels", ["imagenet", "half", "clip", "caffe"])
def test_bytes_are_normalised(pixels: Any) -> None:
    picture = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = Grid(8, "resnet18", pixels=pixels).eval()
    with torch.no_grad():
        assert torch.equal(grid(picture).features, grid(Normalise(pixels)(picture)).features)
    assert not [key for key in grid.state_dict() if "normalise" in key]


HEADS: dict[str, dict[str, Start]] = {
    "xavier": {"fc.weight": xavier(512, 300), "fc.bias": ("constant", 0.0)},
    "torch": {"fc.weight": linear(512), "fc.bias": linear(512)},
}


@pytest.mark.parametrize("init", HEADS)
def test_initialisation(init: Any) -> None:
    """VSE∞ and VSE-2AD give fc Xavier's bounds, PVSE and DivE torch's."""
    torch.manual_seed(0)
    check_module(Grid(300, "resnet18", init=init).head, HEADS[init])
    mlp: dict[str, Start] = {
        **{"hidden.weight": linear(300), "hidden.bias": linear(300)},
        **{"norm.weight": ("constant", 1.0), "norm.bias": ("constant", 0.0)},
        **{"out.weight": linear(150), "out.bias": linear(150)},
    }
    check_module(Grid(300, "resnet18", mlp="projection", context="max", init=init).head, {**HEADS[init], **mlp})


def test_the_default_initialisation_is_xaviers() -> None:
    torch.manual_seed(0)
    check_module(Grid(300, "resnet18").head, HEADS["xavier"])


def test_cls_is_an_element_before_the_patches(tiny_vit: Path) -> None:
    """VSE-2AD's released code pools a ViT's [CLS] with its patches."""
    torch.manual_seed(0)
    grid = Grid(8, str(tiny_vit), weights="pretrained", cls=True).eval()
    plain = Grid(8, str(tiny_vit), weights="pretrained").eval()
    plain.load_state_dict(grid.state_dict())
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden = grid.backbone.net(pixel_values=pictures).last_hidden_state  # type: ignore[operator, union-attr]
        features = grid(pictures).features
        torch.testing.assert_close(features, grid.head(hidden).features)
        assert features.shape == (2, 17, 8) and torch.equal(features[:, 1:], plain(pictures).features)
    again = Grid(8, "somewhere/else", architecture=json.loads(json.dumps(grid.architecture)), cls=True).eval()
    again.load_state_dict(grid.state_dict())
    with torch.no_grad():
        assert torch.equal(again(pictures).features, features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet17"}, r"backbone must be a torchvision ResNet, got 'resnet17' \(did you mean 'resnet1"),
        ({"backbone": "caffe_resnet18"}, "'caffe_resnet18': only ResNets with bottlenecks"),
        ({"backbone": "resnet18", "drop": 1.0}, r"drop must be in \[0, 1\), got 1.0"),
        ({"backbone": "resnet18", "freeze_epochs": -1}, "freeze_epochs must be at least 0, got -1"),
        ({"backbone": "resnet18", "stage_epochs": 0}, "stage_epochs must be at least 1, got 0"),
        ({"backbone": "resnet18", "features": "raw", "dropout": 0.1}, "raw features without a context, got"),
        ({"backbone": "resnet18", "cls": True}, "cls is for a vision transformer's .CLS. token, and resnet18 has none"),
        ({"backbone": "resnet18", "pixels": "bgr"}, "pixels must be one of .*, got 'bgr'"),
        ({"backbone": "resnet18", "init": "zeros"}, "init must be one of .*, got 'zeros'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(8, **arguments)


def test_recompute_is_the_backbones(tiny_vit: Path) -> None:
    for recompute in (False, True):
        grid = Grid(dim=8, backbone=str(tiny_vit), recompute=recompute)
        assert any(getattr(part, "gradient_checkpointing", False) for part in grid.modules()) == recompute


def test_bad_pictures(pictures: Tensor) -> None:
    grid = Grid(8, "resnet18")
    with pytest.raises(ValueError, match=r"pictures must be \(B, 3, height, width\), bytes or floats, got torch.int64"):
        grid(pictures.long())
    with pytest.raises(ValueError, match=r"bytes or floats, got torch.float32 \(3, 64, 96\)"):
        grid(pictures[0])
    with pytest.raises(ValueError, match="a batch of pictures takes no mask"):
        grid(pictures, torch.ones(3, 6, dtype=torch.bool))


def test_a_model_tells_its_pixels(tiny_vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other ones are allowed, with one line that says so."""
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    statistics = folder / "preprocessor_config.json"
    statistics.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    capsys.readouterr()
    grid = Grid(8, str(folder), pixels="half")
    assert capsys.readouterr().err == ""
    Grid(8, str(folder), pixels="imagenet")
    line = f"warning: {folder} was trained with pixels: half, but the config has pixels: imagenet\n"
    assert capsys.readouterr().err == line
    Grid(8, str(folder), architecture=grid.architecture)  # as from a checkpoint: the folder is not looked at
    assert capsys.readouterr().err == ""
    statistics.write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.5] * 3}))
    Grid(8, str(folder), pixels="half")
    expected = (
        "trained with mean [0.1, 0.1, 0.1] and standard deviation [0.5, 0.5, 0.5], but the config has pixels: half"
    )
    assert expected in capsys.readouterr().err
