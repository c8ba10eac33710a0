"""Regions from a detector."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from vse.features.detector import Detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A random Faster R-CNN whose classes differ a little more than at the start."""
    torch.manual_seed(0)
    made = Detector(weights=None, size=128)
    nn.init.normal_(made.net.roi_heads.box_predictor.cls_score.weight, std=0.01)
    return made.eval()


def photos() -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    sizes = [(60, 80), (90, 70), (60, 80)]
    return [torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def found(detector: Detector) -> dict[str, np.ndarray]:
    return detector(photos())


def test_the_best_boxes(found: dict[str, np.ndarray]) -> None:
    assert {name: array.shape for name, array in found.items()} == {
        "ims": (3, 36, 1024),
        "boxes": (3, 36, 4),
        "scores": (3, 36),
        "labels": (3, 36),
        "sizes": (3, 2),
    }
    assert found["sizes"].tolist() == [[80, 60], [70, 90], [80, 60]]
    for boxes, (width, height) in zip(found["boxes"], found["sizes"], strict=True):
        assert (
            (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width + 1e-3).all() and (boxes[:, 3] <= height + 1e-3).all()
        )
    assert (found["labels"] >= 1).all()
    assert not np.array_equal(found["boxes"][0], found["boxes"][2])


def test_the_best_box_is_the_librarys_own(
    detector: Detector, found: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's own post-processing, without its threshold, has the same first box, score and label."""
    monkeypatch.setattr(detector.net.roi_heads, "score_thresh", 0.0)
    for row, picture in enumerate(photos()):
        with torch.no_grad():
            result = detector.net([picture.float() / 255])[0]
        np.testing.assert_allclose(found["boxes"][row, 0], result["boxes"][0].numpy(), atol=1e-2)
        np.testing.assert_allclose(found["scores"][row, 0], float(result["scores"][0]), atol=1e-5)
        assert found["labels"][row, 0] == int(result["labels"][0])


def test_batch_mates_change_no_picture(detector: Detector, found: dict[str, np.ndarray]) -> None:
    for row in (0, 1):
        for name, array in detector([photos()[row]]).items():
            np.testing.assert_allclose(array[0], found[name][row], atol=1e-3)


def test_features_are_those_of_the_boxes(detector: Detector) -> None:
    picture = photos()[0]
    found = detector([picture])
    images, _ = detector.net.transform([picture.float() / 255])
    scale = torch.tensor([images.image_sizes[0][1] / 80, images.image_sizes[0][0] / 60] * 2)
    boxes = torch.from_numpy(found["boxes"][0]) * scale
    heads = detector.net.roi_heads
    with torch.no_grad():
        maps = detector.net.backbone(images.tensors)
        for k in (0, 7, 35):
            expected = heads.box_head(heads.box_roi_pool(maps, [boxes[k : k + 1]], images.image_sizes))[0]
            np.testing.assert_allclose(found["ims"][0, k], expected.numpy(), atol=1e-4)


def test_the_published_layout(tmp_path: Path) -> None:
    """A frozen BatchNorm has no counters, and in torchvision's COCO weights no epsilon."""
    torch.manual_seed(0)
    source = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            module.eps = 0.0
    state = {k: v for k, v in source.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(state, tmp_path / "coco.pth")
    made = Detector(weights=str(tmp_path / "coco.pth")).eval()
    picture = torch.rand(1, 3, 64, 64)
    assert {m.eps for m in made.net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.0}
    with torch.no_grad():
        for key, value in source.backbone(picture).items():
            torch.testing.assert_close(made.net.backbone(picture)[key], value)
    torch.save({**state, "rpn.head.conv.0.0.bias": torch.full((256,), torch.nan)}, tmp_path / "coco.pth")
    with pytest.raises(ValueError, match="coco.pth: its weights are not finite"):
        Detector(weights=str(tmp_path / "coco.pth"))
    with pytest.raises(ValueError, match="thin.png: 400 x 2 pixels are too narrow for the detector"):
        Detector(weights=None, size=96)([torch.zeros(3, 2, 400, dtype=torch.uint8)], ["thin.png"])


def test_boxes_that_overlap_come_last(detector: Detector) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 11]])
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3], [0.0, 0.6, 0.4]])
    moved = boxes[:, None].expand(-1, 3, -1)
    small = Detector(weights=None, boxes=3, size=128)
    chosen, best, labels = small._choose(moved, scores, (40, 40))
    assert chosen.tolist() == boxes[[1, 2, 3]].tolist() and labels.tolist() == [2, 1, 1]
    assert best.tolist() == pytest.approx([0.7, 0.3, 0.6])
    few = small._choose(moved[:2], scores[:2], (40, 40))[0]
    assert few.tolist() == boxes[[1, 0, 0]].tolist()  # the last one again


def test_bad_detector_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: does not fit the detector: "):
        Detector(weights=str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth: cannot be read as weights"):
        Detector(weights=str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match="must be one of torchvision's Faster R-CNNs, got 'fasterrcnn'"):
        Detector("fasterrcnn")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ValueError, match=r"weights 'coco' cannot be downloaded \(no route\); name a file of them instead"
    ):
        Detector()
