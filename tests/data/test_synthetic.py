"""The demo's worlds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vse.data.formats import synthetic
from vse.data.video_formats import synthetic_clips, tgif
from vse.errors import InputError


def test_synthetic_world_is_rendered_once_and_the_same(tmp_path: Path) -> None:
    small: dict[str, Any] = {"train_scenes": 6, "eval_scenes": 4}
    first = synthetic(str(tmp_path / "a"), "train", **small)
    picture = tmp_path / "a" / "images" / "train_00003.png"
    changed = picture.stat().st_mtime_ns
    again, other = synthetic(str(tmp_path / "a"), "train", **small), synthetic(str(tmp_path / "b"), "train", **small)
    assert picture.stat().st_mtime_ns == changed
    assert first.captions == other.captions == again.captions and len(first.captions) == 30
    everything = np.arange(6)
    assert np.array_equal(first.images.read(everything), other.images.read(everything))
    assert len(synthetic(str(tmp_path / "a"), "test", **small).images) == 4
    with Image.open(picture) as opened:  # the regions are the picture's own cells, row by row
        cell = np.asarray(opened)[24:48, 48:72].astype(np.float32) / 127.5 - 1
    assert np.array_equal(first.images[3][1 * 4 + 2], cell.reshape(-1))
    with pytest.raises(InputError, match="holds another world"):
        synthetic(str(tmp_path / "a"), "train", seed=1, **small)
    with pytest.raises(InputError, match="is not empty and contains no rendered world"):
        synthetic(str(tmp_path), "train", **small)
    with pytest.raises(InputError, match="splits train, dev and test, not testall"):
        synthetic(str(tmp_path / "a"), "testall", **small)


def test_synthetic_bad_places(tmp_path: Path) -> None:
    small: dict[str, Any] = {"train_scenes": 2, "eval_scenes": 1}
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is not empty and contains no rendered world"):
        synthetic(str(tmp_path / "file"), "train", **small)
    with pytest.raises(InputError, match="cannot be written there .File exists."):
        synthetic(str(tmp_path / "file" / "x"), "train", **small)
    with pytest.raises(InputError, match="at least 1; got -1, 2 and 1"):
        synthetic(str(tmp_path / "x"), "train", seed=-1, **small)
    synthetic(str(tmp_path / "x"), "train", **small)
    (tmp_path / "x" / "images" / "train_00001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="train_00001.png: not a picture of the demo's world"):
        synthetic(str(tmp_path / "x"), "train", **small)
    (tmp_path / "x" / "world.json").write_text("{")
    with pytest.raises(InputError, match="holds another world .unreadable"):
        synthetic(str(tmp_path / "x"), "train", **small)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_clips_are_a_corpus_in_tgifs_layout(tmp_path: Path) -> None:
    small: dict[str, Any] = {"train_scenes": 3, "eval_scenes": 2}
    corpus = synthetic_clips(str(tmp_path / "world"), "dev", **small)
    assert corpus.video and corpus.images.kind == "frames" and len(corpus.images) == 2 and len(corpus.captions) == 10
    assert len(tgif(str(tmp_path / "world"), "train").images) == 3
    again = synthetic_clips(str(tmp_path / "again"), "dev", **small)
    assert again.captions == corpus.captions
    assert Path(again.images[1]).read_bytes() == Path(corpus.images[1]).read_bytes()
    with pytest.raises(InputError, match="holds another world"):  # of pictures
        synthetic(str(tmp_path / "world"), "dev", **small)
    with pytest.raises(InputError, match="splits train, dev and test, not testall"):
        synthetic_clips(str(tmp_path / "world"), "testall", **small)
