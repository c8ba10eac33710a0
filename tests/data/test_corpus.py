"""What a corpus and a source of images are."""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_gif, write_precomp
from PIL import Image

from vse.build import read_config, read_corpus
from vse.data import corpus as corpus_module
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


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of features that counts as a large one."""
    monkeypatch.setenv("VSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus_module, "_LARGE", 1)
    monkeypatch.setattr(corpus_module, "_BLOCK", 4)
    np.save(tmp_path / "x.npy", np.ones((10, 2, 3), np.float16))
    return tmp_path / "x.npy"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bits_tell_what_is_finite(dtype: type) -> None:
    values: np.ndarray = np.array([0, -0.0, 1, 65504, -65504, 6e-8, np.nan, -np.nan, np.inf, -np.inf], dtype)
    assert corpus_module._finite(values).tolist() == np.isfinite(values).tolist() == [True] * 6 + [False] * 4


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_file_is_checked_once(large: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """A later run does not read it again, unless size or time have changed."""
    scans: list[Path] = []
    scan = Features._rows_not_finite

    def counted(self: Features) -> np.ndarray:
        scans.append(self.path)
        return scan(self)

    monkeypatch.setattr(Features, "_rows_not_finite", counted)
    for _ in range(2):
        assert Features(large).checked().read(np.arange(10)).sum() == 60
    assert len(scans) == 1
    about = large.stat()
    damaged = np.ones((10, 2, 3), np.float16)
    damaged[6, 1, 2] = value
    np.save(large, damaged)
    os.utime(large, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    for _ in range(2):
        features = Features(large, rows=np.array([1, 6]), ids="ab")
        with pytest.raises(InputError, match=r"x.npy: NaN or Inf in the features of image b \(row 6\)"):
            features.checked()
    assert len(scans) == 2
    assert Features(large, rows=np.array([1, 5])).checked().read(np.arange(2)).sum() == 12  # row 6 is not needed
    assert len(scans) == 2


def test_rows_are_compared(tmp_path: Path) -> None:
    """A row with a NaN equals its copy, so that a repeated row is recognised before it is refused."""
    rows = np.ones((3, 2, 3), np.float32)
    rows[:2, 1, 1], rows[2, 0, 0] = np.nan, 2
    np.save(tmp_path / "x.npy", rows)
    features = Features(tmp_path / "x.npy")
    assert features.same_rows(0, 1) and not features.same_rows(0, 2)


def test_a_row_without_an_id_is_named_by_its_number(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 2, 3), np.inf, np.float32))
    with pytest.raises(InputError, match=r"features of image 1 \(row 3\)"):
        Features(tmp_path / "x.npy", rows=np.array([0, 3])).read(np.array([1]))


def test_small_files_are_not_remembered(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "_LARGE", 10_000)
    Features(large).checked()
    assert not (large.parent / "cache").exists()


@pytest.mark.parametrize("change", ["values", "shorter", "longer", "removed", "replaced"])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_file_that_changes_is_noticed(large: Path, change: str, is_open: bool) -> None:
    features = pickle.loads(pickle.dumps(Features(large).checked()))  # as in a worker
    if is_open:
        features.read(np.arange(10))
    time = large.stat().st_mtime_ns
    if change == "values":
        array = np.lib.format.open_memmap(large, mode="r+")
        array[3] = 5
        array.flush()
    elif change == "removed":
        large.unlink()
    elif change == "replaced":
        np.save(large.with_name("y.npy"), np.zeros((10, 2, 3), np.float16))
        large.with_name("y.npy").replace(large)
    else:
        content = large.read_bytes()
        large.write_bytes(content[:-60] if change == "shorter" else content + b"more")
    if large.exists():
        os.utime(large, ns=(time, time + 1))  # a coarse clock may not have moved
    with pytest.raises(InputError, match="x.npy: has changed while it was in use; start again when it is complete"):
        features.read(np.array([3]))


def test_features_as_stored(large: Path) -> None:
    features = Features(large)
    assert features.read(np.arange(2)).dtype == np.float32
    assert features.as_stored().read(np.arange(2)).dtype == np.float16
    assert features.as_stored().in_memory().read(np.arange(2)).dtype == np.float16


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
        ({"captions": ["a", b"b", "c"]}, "mine: caption 2 must be a str, got bytes b'b'"),
        ({"captions": ["a", "b", 3]}, "mine: caption 3 must be a str, got int 3"),
        ({"image_of_caption": [0, 1, 1]}, "image_of_caption must be an array of whole numbers .*, got list; np.array"),
        (
            {"image_of_caption": np.array([0.0, 1.0, 1.0])},
            r"mine: image_of_caption must .*, got float64 of shape \(3,\)",
        ),
        ({"image_of_caption": np.zeros((3, 1), int)}, r"mine: image_of_caption must .*, got int64 of shape \(3, 1\)"),
        ({"image_of_caption": np.array([0, 1, 2])}, "mine: image_of_caption holds 2, but there are 2 images"),
        ({"image_of_caption": np.array([0, -1, 1])}, "mine: image_of_caption holds -1, but there are 2 images"),
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_features_in_memory(dtype: type) -> None:
    """Floats are read as they are, bytes as values from -1 to 1."""
    array: Any = np.arange(24).reshape(3, 2, 4).astype(dtype)
    images = ArrayFeatures(array)
    read = images.read(np.array([2, 0]))
    expected = array[[2, 0]].astype(np.float32)
    if dtype == np.uint8:
        expected = expected / 127.5 - 1
    assert read.dtype == np.float32 and np.array_equal(read, expected)
    assert (len(images), images.width) == (3, 4) and np.array_equal(images[2], read[0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, 4), np.float32),
            r"ArrayFeatures takes .* \(images, regions, width\), got float32 of shape \(3, 4\)",
        ),
        (np.zeros((3, 2, 4)), "got float64 of shape"),
        (np.zeros((3, 0, 4), np.float32), r"got float32 of shape \(3, 0, 4\)"),
        ([[1.0]], "ArrayFeatures takes a float32, float16 or uint8 array .* got list"),
        (np.array([[[0.0]], [[np.nan]]], np.float32), "NaN or Inf in the features of image 1"),
        (np.array([[[0.0]], [[np.inf]]], np.float16), "NaN or Inf in the features of image 1"),
    ],
)
def test_arrays_that_are_no_features(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrayFeatures(array)


def test_a_path_and_an_array_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="^Features takes the path of a .npy file, got ndarray; ArrayFeatures takes an"
    ):
        Features(np.zeros((100, 36, 2048), np.float32))  # type: ignore[arg-type]
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 4), np.float32))
    assert Features(str(tmp_path / "a.npy")).read(np.array([1])).shape == (1, 2, 4)


def test_what_is_printed_is_short(tmp_path: Path) -> None:
    """In a notebook or a debugger; not the numbers, and not all captions."""
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 4), np.float32))
    images = ArrayFeatures(np.zeros((2000, 2, 4), np.uint8))
    corpus = Corpus("mine", images, ["a dog"] * 3000, np.arange(3000) % 2000, range(2000), range(3000))
    assert repr(images) == "ArrayFeatures(2,000 images, 2 regions, 4 wide)"
    assert repr(Features(tmp_path / "a.npy")) == f"Features('{tmp_path}/a.npy', 3 images, 2 regions, 4 wide)"
    assert repr(corpus) == "Corpus('mine', 2,000 images, 3,000 captions)"


def test_a_digest_is_of_the_captions_and_their_images() -> None:
    def digest(captions: list[str], image_of_caption: list[int], kind: type = np.int64) -> str:
        images = ArrayFeatures(np.ones((2, 2, 3), np.float32))
        return Corpus("a", images, captions, np.array(image_of_caption, kind), "xy", range(len(captions))).digest

    first = digest(["a", "b", "c"], [0, 1, 1])
    assert first == digest(["a", "b", "c"], [0, 1, 1], np.int32) and len(first) == 64
    assert first != digest(["a", "b", "d"], [0, 1, 1]) and first != digest(["a", "b", "c"], [0, 0, 1])


def test_every_split_is_read_by_its_name(tmp_path: Path) -> None:
    config = read_config("vse_infty/f30k_region_bigru", [f"data.root={write_precomp(tmp_path)}"])
    names = [read_corpus(config, split).name for split in ("train", "dev", "test")]
    assert names == [str(tmp_path / "precomp" / split) for split in ("train", "dev", "test")]
    with pytest.raises(InputError, match="testall_ims.npy: no such file"):
        read_corpus(config, "testall")
    with pytest.raises(InputError, match="split 'valid': known: dev, test, testall, train"):
        read_corpus(config, "valid")


def test_the_public_names_of_data() -> None:
    import vse.data

    assert vse.data.Corpus is Corpus and vse.data.ArrayFeatures is ArrayFeatures and vse.data.Features is Features
    for name in vse.data.__all__:
        assert name in (vse.data.__doc__ or ""), name
