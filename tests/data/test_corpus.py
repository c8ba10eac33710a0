"""What a corpus and a source of images are."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_gif
from PIL import Image

from vse.data.clips import ClipFiles, ClipTransform, FrameFeatures
from vse.data.corpus import ArrayFeatures, Corpus, Features, ImageSource
from vse.data.formats import precomp
from vse.data.transforms import Crop, PictureFiles
from vse.errors import InputError


def write(folder: Path, features: np.ndarray, captions: int, ids: Iterable[Any], split: str = "dev") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{split}_ims.npy", features)
    (folder / f"{split}_caps.txt").write_text("".join(f"caption {i}\n" for i in range(captions)))
    (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))


def images(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 2, width)).astype(np.float32)


def test_features_are_not_scanned(tmp_path: Path) -> None:
    """NaN is noticed in the rows that are read, and in no others."""
    features = images(5)
    features[3, 1, 2] = np.nan
    write(tmp_path, features, 5, ["a", "b", "c", "d", "e"])
    corpus = precomp(str(tmp_path), "dev")
    assert np.asarray(corpus.images.read(np.array([0, 4]))).shape == (2, 2, 3)
    with pytest.raises(InputError, match=r"dev_ims.npy: NaN or Inf in the features of image d \(row 3\)"):
        corpus.images.read(np.array([0, 3]))


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    """A sparse file of 33 GB, as large as COCO's, opens at once; a pickled corpus carries no features."""
    file = tmp_path / "train_ims.npy"
    with open(file, "wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (113_287, 36, 2048)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + 113_287 * 36 * 2048 * 4)
    features = Features(file)
    assert features.read(np.array([113_286])).sum() == 0
    assert len(pickle.dumps(features)) < 2_000_000
    assert np.array_equal(pickle.loads(pickle.dumps(features))[5], features[5])


def sources(folder: Path) -> dict[str, ImageSource]:
    """One of every kind, of three images."""
    write(folder / "features", images(3), 3, "abc")
    (folder / "frames").mkdir(parents=True)
    for name in "abc":
        np.save(folder / "frames" / f"{name}.npy", np.ones((5, 4), np.float32))
        Image.new("RGB", (40, 30), "red").save(folder / f"{name}.png")
        write_gif(folder / f"{name}.gif", 5)
    return {
        "features": Features(folder / "features" / "dev_ims.npy"),
        "array": ArrayFeatures(np.zeros((3, 2, 3), dtype=np.uint8)),
        "frame features": FrameFeatures(folder / "frames", list("abc")),
        "pictures": PictureFiles([folder / f"{name}.png" for name in "abc"]),
        "clips": ClipFiles([folder / f"{name}.gif" for name in "abc"]),
    }


SHAPES = {"features": (2, 3), "array": (2, 3), "frame features": (4, 4), "pictures": (3, 8, 8), "clips": (4, 3, 8, 8)}
TRANSFORMS: dict[str | None, Any] = {None: None, "pictures": Crop(8, 10), "frames": ClipTransform(4, 8, 10)}


@pytest.mark.parametrize("name", SHAPES)
def test_every_source_keeps_the_contract(name: str, tmp_path: Path) -> None:
    """Nothing but its own members is needed to know a source and to read it."""
    source = sources(tmp_path)[name]
    assert source.kind == {"pictures": "pictures", "clips": "frames"}.get(name, "features")
    assert source.takes == {"pictures": "pictures", "clips": "frames", "frame features": "frames"}.get(name)
    ready = source.transformed(TRANSFORMS[source.takes], seed=1, threads=2)
    assert (ready.kind, ready.width, len(ready)) == (source.kind, source.width, 3)
    assert (source.width is None) == (source.kind != "features")
    for epoch in (None, 0, 7):
        read = ready.read(np.array([2, 0]), epoch)
        assert [array.shape for array in read] == [SHAPES[name]] * 2
        again = ready.read(np.array([0]), epoch)
        assert np.array_equal(again[0], read[1])
    stored = source[1]
    assert isinstance(stored, np.ndarray if source.kind == "features" else Path)
    pickled = pickle.loads(pickle.dumps(ready)).read(np.array([2, 0]), 7)
    assert all(np.array_equal(a, b) for a, b in zip(pickled, ready.read(np.array([2, 0]), 7), strict=True))


def test_files_are_read_through_a_transform_alone(tmp_path: Path) -> None:
    for name, kind in (("pictures", "pictures"), ("clips", "frames")):
        with pytest.raises(ValueError, match=rf"{kind} are read through a transform; call transformed\(\) first"):
            sources(tmp_path / name)[name].read(np.array([0]))


def test_missing_files_are_noticed_with_the_transform(tmp_path: Path) -> None:
    found = sources(tmp_path)
    for name in ("a.png", "c.png", "b.gif"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"a.png: no such picture \(nor 1 others of 3\)"):
        found["pictures"].transformed(Crop(8, 10), seed=1, threads=0)
    with pytest.raises(InputError, match="b.gif: no such clip$"):
        found["clips"].transformed(ClipTransform(4, 8, 10), seed=1, threads=0)


def test_frame_features_have_no_rate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the frame rate of frame features is unknown, so fps=8 is impossible; .*null"):
        sources(tmp_path)["frame features"].transformed(ClipTransform(4, 8, 10, fps=8.0), seed=1, threads=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": []}, "mine: holds 2 images and 0 captions"),
        ({"image_ids": ["a", "a"]}, "mine: 2 images but 1 different image ids"),
        ({"caption_ids": [1, 2, 2]}, "mine: 3 captions but 2 different caption ids"),
        ({"caption_ids": [1, 2]}, "mine: 3 captions but 2 caption ids and 3 image indices"),
        ({"image_of_caption": np.array([0])}, "mine: 3 captions but 3 caption ids and 1 image indices"),
        ({"captions": ["a", "\ud83d", "c"]}, r"mine: caption 2 is not valid text: '\\ud83d'"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    two = ArrayFeatures(np.zeros((2, 1, 1), dtype=np.uint8))
    parts: dict[str, Any] = {"captions": ["a", "b", "c"], "image_of_caption": np.array([0, 1, 1])}
    parts |= {"image_ids": ["x", "y"], "caption_ids": [1, 2, 3]}
    assert Corpus("mine", two, **parts).positives.tolist() == [[True, False, False], [False, True, True]]
    with pytest.raises(InputError, match=message):
        Corpus("mine", two, **{**parts, **changes})
