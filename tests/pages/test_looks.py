import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_precomp
from outline import Outline

import vse
from vse.build import build_corpus
from vse.checkpoints.load import Loaded, load_model
from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.pages.looks import Boxes, Cells, draw_look, find_layout, look, scaled, strongest
from vse.pages.pictures import Thumbnail

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def pvse(make_run: MakeRun) -> Loaded:
    return load_model(make_run("pvse"))


def own_data(loaded: Loaded, root: Path) -> Corpus:
    """The run's corpus in a folder of the test's own, where files can be put beside the features."""
    write_precomp(root)
    return build_corpus(
        loaded.config.model_copy(update={"data": loaded.config.data.model_copy(update={"root": str(root)})}), "test"
    )


def test_attention_is_the_aggregators_own(pvse: Loaded) -> None:
    inputs = torch.randn(1, 6, 12)
    found, features = look(pvse.model.image, inputs)
    assert found is not None and found.kind == "attention" and features.shape == (6, 12)
    torch.testing.assert_close(found.weights, pvse.model.image(inputs).attention[0])


def test_a_pooling_has_shares_and_the_mean_has_nothing(make_run: MakeRun) -> None:
    found, _ = look(load_model(make_run("vse_infty")).model.image, torch.randn(1, 6, 12))
    assert found is not None and found.kind == "share" and found.weights.shape == (1, 6)
    assert float(found.weights.sum()) == pytest.approx(1)
    assert look(load_model(make_run("vsepp")).model.image, torch.randn(1, 6, 12))[0] is None


def test_nothing_is_guessed_of_features(pvse: Loaded, tmp_path: Path) -> None:
    corpus = own_data(pvse, tmp_path / "data")
    assert find_layout(pvse.config, pvse.model, corpus) is None
    assert find_layout(pvse.config, pvse.model, corpus, (2, 3)) == Cells(2, 3)
    with pytest.raises(InputError, match="--grid 5x5: has 25 cells, but .* 6 regions"):
        find_layout(pvse.config, pvse.model, corpus, (5, 5))


def test_boxes_of_the_detector(pvse: Loaded, tmp_path: Path) -> None:
    """As `vse extract --detector` writes them, in pixels; dev and test files repeat each image's row."""
    corpus = own_data(pvse, tmp_path / "data")
    rng = np.random.default_rng(0)
    boxes, sizes = rng.uniform(0, 40, (50, 6, 4)), np.tile([80, 40], (50, 1))
    np.save(tmp_path / "data" / "precomp" / "test_boxes.npy", boxes)
    np.save(tmp_path / "data" / "precomp" / "test_sizes.npy", sizes)
    layout = find_layout(pvse.config, pvse.model, corpus)
    assert isinstance(layout, Boxes) and layout.corners.shape == (10, 6, 4)
    np.testing.assert_allclose(layout.corners[2], boxes[10] / [80, 40, 80, 40])
    np.save(tmp_path / "data" / "precomp" / "test_boxes.npy", boxes[:, :5])
    with pytest.raises(InputError, match="test_boxes.npy: does not fit test_ims.npy"):
        find_layout(pvse.config, pvse.model, corpus)


@pytest.mark.parametrize("extractor", [{"backbone": "resnet18"}, {"model": "resnet18"}])
@pytest.mark.parametrize(("transform", "cells"), [("square", Cells(3, 2)), ("crop", None)])
def test_the_manifest_of_extracted_cells(
    transform: str,
    cells: Cells | None,
    extractor: dict[str, str],
    pvse: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cells of a backbone lie over the whole picture where the transform keeps all of it."""
    corpus = own_data(pvse, tmp_path / "data")
    about = {"extractor": extractor, "transform": {"name": transform, "size": 64}}
    (tmp_path / "data" / "precomp" / "test_manifest.json").write_text(json.dumps(about))
    monkeypatch.setattr("vse.pages.looks._cells_of", lambda elements, aspect, whole: Cells(3, 2))
    assert find_layout(pvse.config, pvse.model, corpus) == cells


@pytest.mark.parametrize(
    ("elements", "aspect", "cells"),
    [
        (49, 1.0, Cells(7, 7)),
        (50, 1.0, Cells(7, 7, 1)),
        (12, 0.75, Cells(3, 4)),
        (13, 0.75, Cells(3, 4, 1)),
        (11, 1.0, None),
    ],
)
def test_grids_have_the_pictures_shape(elements: int, aspect: float, cells: Cells | None) -> None:
    from vse.pages.looks import _cells_of

    assert _cells_of(elements, aspect, True) == cells


def test_equal_weights_are_one_half() -> None:
    np.testing.assert_allclose(scaled(np.full(4, 0.25)), 0.5)
    np.testing.assert_allclose(scaled(np.array([0.8, 0.2, 0.0])), [1, 0.25, 0])


def test_drawings() -> None:
    weights, picture = torch.tensor([0.1, 0.5, 0.3, 0.1, 0.0, 0.0]), Thumbnail("p0", 320, 240)
    cells = Outline(draw_look(weights, Cells(2, 3), 0, picture, "x"))
    shade = cells.elements[cells.find("image")[0]][1]
    assert (shade["width"], shade["height"]) == ("320", "240") and "pixelated" in shade["style"]
    assert cells.find("use")
    plain = Outline(draw_look(weights, Cells(2, 3), 0, None, "x"))
    assert plain.find("image") and not plain.find("use")
    bars = Outline(draw_look(weights, None, 0, picture, "x"))
    heights = [float(bars.elements[place][1]["height"]) for place in bars.find("rect")]
    assert heights == [18, 90, 54, 18, 0, 0] and not bars.find("use")
    corners = np.tile(np.linspace(0, 0.5, 6)[:, None], 4)
    boxes = Outline(draw_look(weights, Boxes(corners[None]), 0, picture, "x"))
    assert len(boxes.find("rect")) == 10 and boxes.find("use")


def test_the_strongest_boxes_come_last() -> None:
    corners = np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 1.0, 1.0]])
    assert strongest(corners, np.array([1.0, 0.4]), 100, 200) == [(25, 100, 100, 200, 0.4), (0, 0, 50, 100, 1.0)]


def test_shade_follows_the_cells() -> None:
    """The cell with the most weight is clear, row by row from the upper left."""
    import base64
    import io

    from PIL import Image

    drawn = Outline(draw_look(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0]), Cells(2, 3), 0, None, "x"))
    data = drawn.elements[drawn.find("image")[0]][1]["href"].partition(",")[2]
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 1]
    assert alpha.shape == (2, 3) and alpha[1, 1] == 0 and (np.delete(alpha.ravel(), 4) == 217).all()


def test_loading_is_not_changed(pvse: Loaded) -> None:
    assert isinstance(pvse.model, vse.VSEModel) and not pvse.model.training
