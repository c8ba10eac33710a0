import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, corpus_of_ids, grey_frames, write_gif
from PIL import Image

from vse.build import read_config
from vse.data.clips import ClipFiles
from vse.errors import InputError
from vse.pages.pictures import Gallery, find_pictures, read_picture, show


def red() -> Image.Image:
    return Image.new("RGB", (640, 480), "red")


def test_a_picture_is_in_the_page_once_in_the_largest_size_that_is_needed() -> None:
    gallery = Gallery()
    first, again = gallery.add("a", red, 160), gallery.add("a", red, 320)
    assert first is not None and first == again and (first.width, first.height) == (320, 240)
    gallery.add("b", red, 160)
    content = gallery.content()
    data = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', content)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in data]
    assert sizes == [(320, 240), (160, 120)]
    assert f'<use href="#{first.label}">' in show(first, "x") and f'id="{first.label}"' in content


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    def damaged() -> Image.Image:
        raise InputError("damaged")

    gallery = Gallery()
    assert gallery.add("a", damaged) is None and gallery.picture("a") is None
    assert "image" not in gallery.content()


def test_the_first_frame_of_a_clip(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", 3)
    (tmp_path / "b").mkdir()
    for number, frame in enumerate(grey_frames(12)):
        frame.save(tmp_path / "b" / f"{number + 2}.png")  # 2.png comes before 10.png
    for path in (tmp_path / "a.gif", tmp_path / "b"):
        assert np.asarray(read_picture(path)).max() == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_pictures_beside_features(mapped: bool, tmp_path: Path) -> None:
    """By id_mapping.json, or by names that are the ids."""
    config = read_config(ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml", [f"data.root={tmp_path}"])
    corpus = corpus_of_ids(np.array([0, 1, 2, 2]))  # with the ids 100, 101 and 102
    assert find_pictures(config, corpus, "test") == {}
    (tmp_path / "images").mkdir()
    names = (
        {"101": "one.jpg", "102": "two.png", "100": "missing.jpg"} if mapped else {"101": "101.jpg", "102": "102.png"}
    )
    for label in ("101", "102"):
        red().save(tmp_path / "images" / names[label])
    if mapped:
        (tmp_path / "id_mapping.json").write_text(json.dumps(names))
    found = find_pictures(config, corpus, "test")
    assert {image: path.name for image, path in found.items()} == {1: names["101"], 2: names["102"]}


def test_files_are_their_own_pictures(tmp_path: Path) -> None:
    config = read_config(ROOT / "configs" / "demo.yaml")
    corpus = corpus_of_ids(np.array([0, 1]), images=ClipFiles([tmp_path / "a.gif", tmp_path / "b"]))
    assert find_pictures(config, corpus, "test") == {0: tmp_path / "a.gif", 1: tmp_path / "b"}
