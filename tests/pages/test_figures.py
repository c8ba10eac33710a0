from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from vse.errors import InputError
from vse.pages.charts import Chart, Line
from vse.pages.figures import PictureFigure, WordFigure, check_figures, save_figures
from vse.pages.looks import Boxes, Cells

WEIGHTS = torch.tensor([[0.1, 0.4, 0.2, 0.1, 0.1, 0.1], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]])


def test_each_kind_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, corners = Image.new("RGB", (60, 40), "teal"), np.tile([0.1, 0.2, 0.6, 0.9], (1, 6, 1))
    figures: list[Chart | PictureFigure | WordFigure] = [
        Chart("chart", "T", "x", "y", (Line("a", [1, 2], [0.5, 1.0]), Line("b", [1, 2], [1.0, 0.5])), zero=True),
        PictureFigure("cells", picture, Cells(2, 3), 0, WEIGHTS, ["a", "b"]),
        PictureFigure("no_picture", None, Cells(2, 3), 0, WEIGHTS, ["a", "b"]),
        PictureFigure("boxes", picture, Boxes(corners), 0, WEIGHTS, ["a", "b"]),
        PictureFigure("bars", None, None, 0, WEIGHTS, ["a", "b"]),
        PictureFigure("many", picture, Cells(2, 3), 0, WEIGHTS.repeat(4, 1), list("abcdefgh")),
        WordFigure("words", ["start", "a", "dog", "&", "<b>", "end"], WEIGHTS),
        WordFigure("words", ["again"], torch.ones(1, 1)),
    ]
    assert save_figures(tmp_path, figures) == 7
    names = ("bars", "boxes", "cells", "chart", "many", "no_picture", "words")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.{end}" for n in names for end in ("png", "svg")]
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as figure:
            assert min(figure.size) > 100 and len(figure.convert("L").getcolors() or []) > 10
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--figures: cannot write in .*file"):
        check_figures(tmp_path / "file")
