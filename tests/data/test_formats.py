import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, karpathy_file, write_pictures, write_precomp

from vse.build import build_corpus, read_config
from vse.data.corpus import Corpus
from vse.data.formats import coco, id_mapping, karpathy, precomp
from vse.errors import InputError


def write(folder: Path, features: np.ndarray, captions: int, ids: Iterable[Any], split: str = "dev") -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{split}_ims.npy", features)
    (folder / f"{split}_caps.txt").write_text("".join(f"caption {i}\n" for i in range(captions)))
    (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))


def paths(corpus: Corpus) -> list[Any]:
    assert corpus.images.kind == "pictures"
    return [corpus.images[image] for image in range(len(corpus.images))]


def images(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 2, width)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_row_per_image(tmp_path: Path, dtype: type) -> None:
    features: np.ndarray = images(4).astype(dtype)
    write(tmp_path, features, 20, ["a", "b", "c", "d"])
    corpus = precomp(str(tmp_path), "dev")
    assert len(corpus.images) == 4 and corpus.images.width == 3
    assert corpus.image_of_caption.tolist() == np.repeat(range(4), 5).tolist()
    assert list(corpus.image_ids) == ["a", "b", "c", "d"]
    read = np.asarray(corpus.images.read(np.array([3, 1])))
    assert read.dtype == np.float32 and np.array_equal(read, features[[3, 1]].astype(np.float32))
    assert np.array_equal(corpus.images[2], features[2].astype(np.float32))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (range(4), [0, 1, 2, 3]),  # per image
        (np.repeat([7, 5, 9, 2], 5), [7, 5, 9, 2]),  # per row, equal within an image
        (range(20), [0, 5, 10, 15]),  # per row, all different: the rows themselves tell
    ],
)
def test_repeated_rows_are_recognised(tmp_path: Path, ids: Any, expected: list[int]) -> None:
    features = images(4)
    write(tmp_path, np.repeat(features, 5, axis=0), 20, list(ids))
    corpus = precomp(str(tmp_path), "dev")
    assert len(corpus.images) == 4 and [int(i) for i in corpus.image_ids] == expected
    assert corpus.image_of_caption.tolist() == np.repeat(range(4), 5).tolist()
    assert np.array_equal(corpus.images.read(np.arange(4)), features)
    assert corpus.positives.sum() == 20 and corpus.positives[1, 5:10].all()


def test_ragged_repeats(tmp_path: Path) -> None:
    features = images(3)
    write(tmp_path, np.repeat(features, [1, 3, 2], axis=0), 6, ["a", "b", "b", "b", "c", "c"])
    corpus = precomp(str(tmp_path), "dev")
    assert corpus.image_of_caption.tolist() == [0, 1, 1, 1, 2, 2]
    assert np.array_equal(corpus.images.read(np.arange(3)), features)


def test_rows_with_one_id_are_one_image_wherever_they_stand(tmp_path: Path) -> None:
    features = images(3)
    write(tmp_path, features[[0, 1, 0, 2]], 8, ["a", "b", "a", "c"])
    corpus = precomp(str(tmp_path), "dev")
    assert list(corpus.image_ids) == ["a", "b", "c"]
    assert corpus.image_of_caption.tolist() == [0, 0, 1, 1, 0, 0, 2, 2]
    assert np.array_equal(corpus.images.read(np.arange(3)), features)


def test_one_caption_per_image(tmp_path: Path) -> None:
    write(tmp_path, images(6), 6, range(6))
    corpus = precomp(str(tmp_path), "dev")
    assert len(corpus.images) == 6 and corpus.image_of_caption.tolist() == list(range(6))


def test_ids_per_caption(tmp_path: Path) -> None:
    write(tmp_path, images(2), 6, ["x", "x", "x", "y", "y", "y"])
    assert list(precomp(str(tmp_path), "dev").image_ids) == ["x", "y"]


@pytest.mark.parametrize(
    ("rows", "captions", "ids", "message"),
    [
        (4, 18, range(4), "ims.npy holds 4 rows but .*caps.txt 18 captions"),
        (6, 4, range(6), "ims.npy holds 6 rows but .*caps.txt 4 captions"),
        (4, 20, range(3), "ids.txt holds 3 ids, which fits neither the 4 rows nor 20 captions"),
        (6, 6, range(3), r"rows 0 and 1 are both image 0 \(by dev_ids.txt\), but they differ"),
        (4, 20, [1, 2, 3, 1], r"rows 0 and 3 are both image 1 \(by dev_ids.txt\), but they differ"),
        (2, 4, ["x", "y", "x", "y"], "ids.txt: line 2 has id y, but its image has x"),
    ],
)
def test_counts_that_do_not_fit(tmp_path: Path, rows: int, captions: int, ids: Any, message: str) -> None:
    write(tmp_path, images(rows), captions, list(ids))
    with pytest.raises(InputError, match=message):
        precomp(str(tmp_path), "dev")


def test_karpathy(tmp_path: Path) -> None:
    root = karpathy_file(tmp_path / "tiny")
    train = karpathy(str(root), "train")
    assert list(train.image_ids) == [0, 1] and len(train.captions) == 12
    assert train.image_of_caption.tolist() == [0] * 5 + [1] * 7
    assert train.captions[0] == "Caption 0 0" and list(train.caption_ids)[-1] == 16
    assert train.images[1] == root / "images" / "val2014" / "1.jpg"
    assert [len(karpathy(str(root), split).captions) for split in ("dev", "test")] == [1, 20]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentences": [{"raw": " ", "sentid": 4}]}, "entry 0 of 'images': caption 4 is empty"),
        ({"sentences": [{"sentid": 4}]}, "entry 0 of 'images': 'raw' is missing"),
        ({"imgid": 1}, "2 images but 1 different image ids"),
        ({"imgid": [1]}, r"entry 0 of 'images': the imgid must be a number or a text, got \[1\]"),
        ({"split": "trian"}, "entry 0 of 'images': the split 'trian' is not one of train, restval, val and test"),
        ({"sentences": [{"raw": "x", "sentid": 10}]}, "8 captions but 7 different caption ids"),
    ],
)
def test_karpathy_bad_entries(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        karpathy(str(karpathy_file(tmp_path / "tiny", **changes)), "train")


def test_karpathy_keeps_a_number_of_captions(tmp_path: Path) -> None:
    """Some of COCO's images have more than the five captions that the papers test with; COCO's own ids are kept."""
    entries = []
    for number, (split, count) in enumerate([("train", 7), ("test", 6), ("test", 5), ("test", 2)]):
        sentences = [{"raw": f"c{i}", "sentid": 100 * number + i} for i in range(count)]
        about = {"split": split, "imgid": number, "cocoid": 9000 + number, "filename": f"{number}.jpg"}
        entries.append({**about, "sentences": sentences})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    (tmp_path / "images").mkdir()
    whole, cut = karpathy(str(tmp_path), "test"), karpathy(str(tmp_path), "test", per_image=5)
    assert len(whole.captions) == 13 and len(karpathy(str(tmp_path), "train", per_image=5).captions) == 7
    assert cut.caption_ids == [100, 101, 102, 103, 104, 200, 201, 202, 203, 204, 300, 301]
    assert cut.image_of_caption.tolist() == [0] * 5 + [1] * 5 + [2] * 2 and cut.image_ids == [9001, 9002, 9003]
    with pytest.raises(InputError, match="data.options.per_image: expected at least 1, got 0"):
        karpathy(str(tmp_path), "test", per_image=0)


def test_karpathy_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*; expected dataset_\*.json and a folder images/"):
        karpathy(str(tmp_path / "none"), "train")
    root = karpathy_file(tmp_path / "tiny")
    (root / "dataset_other.json").write_text("{")
    with pytest.raises(InputError, match="dataset_other.json, dataset_tiny.json; choose one with data.options"):
        karpathy(str(root), "train")
    with pytest.raises(InputError, match="dataset_other.json: not a JSON file"):
        karpathy(str(root), "train", annotations="dataset_other.json")
    for content in ("[]", "{}", '{"images": 5}'):
        (root / "dataset_other.json").write_text(content)
        with pytest.raises(InputError, match="expected a JSON object with a list 'images'"):
            karpathy(str(root), "train", annotations="dataset_other.json")
    (root / "images").rmdir()
    with pytest.raises(InputError, match="images: no such folder"):
        karpathy(str(root), "train", annotations="dataset_tiny.json")


def test_captions_keep_unusual_line_separators(tmp_path: Path) -> None:
    """Only a newline ends a caption; Windows line ends and a byte order mark are no part of one."""
    root = write_precomp(tmp_path / "data", train=1)
    lines = ["a\u2028b", "c\x0bd", "e\x85f", "g", "h"]
    (root / "precomp" / "train_caps.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert precomp(str(root), "train").captions == lines


def mapped(root: Path, ids: list[str], captions: int, mapping: Any = None) -> Path:
    (root / "precomp").mkdir(parents=True)
    mapping = {str(i): f"{i}.jpg" for i in range(9)} if mapping is None else mapping
    (root / "id_mapping.json").write_text(json.dumps(mapping))
    (root / "precomp" / "dev_ids.txt").write_text("\n".join(ids) + "\n")
    (root / "precomp" / "dev_caps.txt").write_text("".join(f"caption {i}\n" for i in range(captions)))
    return root


def write_coco(root: Path) -> Path:
    """Two JSON files of three images each, with two captions an image; ids as the field's files have them."""
    (root / "annotations").mkdir(parents=True)
    for part, first in (("train2014", 10), ("val2014", 20)):
        photos = [{"id": first + i, "file_name": f"COCO_{part}_{first + i:012}.jpg"} for i in range(3)]
        captions = [
            {"id": 10 * (first + i) + j, "image_id": first + i, "caption": f" Caption {first + i} {j}. "}
            for j in range(2)
            for i in range(3)
        ]
        content = {"info": {}, "images": photos, "annotations": captions}
        (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))
    ids = {"train": [120, 100, 101], "restval": [201], "dev": [211, 210], "test": [220, 221]}
    for part, numbers in ids.items():
        np.save(root / ("annotations" if part != "dev" else "") / f"coco_{part}_ids.npy", np.array(numbers))
    return root


def test_coco(tmp_path: Path) -> None:
    """In the order of the id files; train and restval; ids and pictures are COCO's."""
    corpus = coco(str(write_coco(tmp_path)), "train")
    assert corpus.captions == ["Caption 12 0.", "Caption 10 0.", "Caption 10 1.", "Caption 20 1."]
    assert corpus.image_of_caption.tolist() == [0, 1, 1, 2]
    assert list(corpus.image_ids) == [12, 10, 20] and list(corpus.caption_ids) == [120, 100, 101, 201]
    assert corpus.images[0] == tmp_path / "images" / "train2014" / "COCO_train2014_000000000012.jpg"
    assert corpus.images[2] == tmp_path / "images" / "val2014" / "COCO_val2014_000000000020.jpg"
    assert coco(str(tmp_path), "dev").captions == ["Caption 21 1.", "Caption 21 0."]
    test = coco(str(tmp_path), "test")
    assert test.caption_ids == coco(str(tmp_path), "testall").caption_ids == [220, 221]


def test_bad_coco(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    ids, captions = root / "annotations" / "coco_test_ids.npy", root / "annotations" / "captions_val2014.json"
    content = json.loads(captions.read_text())

    def fails(message: str) -> None:
        with pytest.raises(InputError, match=message):
            coco(str(root), "test")

    for numbers, message in (
        (np.array([220, 999]), "coco_test_ids.npy: caption 999 is in neither captions_train2014 nor captions_val2014"),
        (np.array([0.5]), "expected a list of whole numbers, found float64"),
        (np.array([[220]]), r"expected a list of whole numbers, found int64 of shape \(1, 1\)"),
        (np.array([220, 220]), "2 captions but 1 different caption ids"),
        (np.array([print]), "not a complete .npy file of numbers"),
    ):
        np.save(ids, numbers)
        fails(message)
    ids.write_bytes(ids.read_bytes()[:50])
    fails("coco_test_ids.npy: not a complete .npy file of numbers")
    ids.unlink()
    fails("coco_test_ids.npy: no such file; expected the ids of the split's captions")
    np.save(ids, np.array([220]))
    for change, message in (
        ({"images": content["images"][:1]}, "captions_val2014.json: has captions of image 21, which is not among"),
        ({"annotations": [{"id": 220, "image_id": 22, "caption": " "}]}, "caption 220 is empty"),
        (
            {"annotations": [{"id": 220, "caption": "a"}]},
            "captions_val2014.json: 'image_id' is missing; expected COCO's lists 'images' and",
        ),
        ({"annotations": 5}, "captions_val2014.json: a value has the wrong type"),
    ):
        captions.write_text(json.dumps({**content, **change}))
        fails(message)
    captions.write_text("{")
    fails("captions_val2014.json: not a JSON file")
    captions.unlink()
    fails("captions_val2014.json: no such file; expected COCO's captions for both train2014 and val2014")


@pytest.mark.parametrize("repeated", [True, False])
def test_id_mapping(tmp_path: Path, repeated: bool) -> None:
    ids = ["7", "7", "2", "2"] if repeated else ["7", "2"]
    corpus = id_mapping(str(mapped(tmp_path / "m", ids, 4)), "dev")
    assert paths(corpus) == [tmp_path / "m" / "images" / f"{i}.jpg" for i in (7, 2)]
    assert corpus.image_of_caption.tolist() == [0, 0, 1, 1] and corpus.image_ids == ["7", "2"]


@pytest.mark.parametrize(
    ("ids", "captions", "mapping", "message"),
    [
        (["7", "2"], 5, None, "dev_ids.txt holds 2 ids of 2 images, .*dev_caps.txt 5 captions"),
        (["7", "2", "7", "2"], 4, None, "dev_ids.txt: the ids are not repeated image by image, 2 times each"),
        (["7", "99"], 4, None, "id_mapping.json: has no file for id 99 of dev_ids.txt"),
        (["7", "2"], 4, ["a.jpg"], "id_mapping.json: expected a JSON object of ids and file names"),
    ],
)
def test_bad_id_mapping(tmp_path: Path, ids: list[str], captions: int, mapping: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        id_mapping(str(mapped(tmp_path / "m", ids, captions, mapping)), "dev")
    with pytest.raises(InputError, match=r"train_ids.txt: no such file; expected id_mapping.json and images/ in"):
        id_mapping(str(tmp_path / "m"), "train")


def test_two_pictures_alike_are_not_repeated_rows(tmp_path: Path) -> None:
    """One caption per image: the first two rows are equal by chance, the others are not."""
    features = images(6)
    features[1] = features[0]
    write(tmp_path, features, 6, range(6))
    assert list(precomp(str(tmp_path), "dev").image_ids) == [str(i) for i in range(6)]


@pytest.mark.parametrize("counts", [[3, 1, 2], [1, 1, 4], [4, 1, 1], [1, 3, 3]])
def test_ids_per_caption_need_not_be_even(tmp_path: Path, counts: list[int]) -> None:
    """A row of features an image and an id a caption: each caption goes to the image that its id names."""
    features = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    owners = np.repeat([0, 1, 2], counts)
    np.save(tmp_path / "dev_ims.npy", features)
    (tmp_path / "dev_caps.txt").write_text("".join(f"caption {i}\n" for i in range(len(owners))))
    (tmp_path / "dev_ids.txt").write_text("".join(f"image {owner}\n" for owner in owners))
    corpus = precomp(str(tmp_path), "dev")
    assert corpus.image_of_caption.tolist() == owners.tolist()
    assert list(corpus.image_ids) == ["image 0", "image 1", "image 2"]
    assert np.array_equal(corpus.images.read(np.arange(3)), features)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_bare_carriage_return_ends_no_caption(tmp_path: Path, end: str) -> None:
    root = write_precomp(tmp_path / "data", train=1)
    lines = ["a dog\rruns", "c", "d", "e", "f"]
    (root / "precomp" / "train_caps.txt").write_bytes("".join(line + end for line in lines).encode())
    assert precomp(str(root), "train").captions == lines


OWN_FORMAT = """
import numpy as np
from vse.data.corpus import Corpus
from vse.data.transforms import PictureFiles

def pairs(root, split, bare: bool = False):
    paths = [f"{root}/images/{i}.jpg" for i in range(4)]
    images = paths if bare else PictureFiles(paths)
    return Corpus(f"{root} ({split})", images, list("abcd"), np.arange(4), list("wxyz"), range(4))
"""


def test_a_format_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function that returns a corpus; its images must be a source of images."""
    (tmp_path / "own_format.py").write_text(OWN_FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    root = write_pictures(tmp_path / "data", train=4, others=1)
    settings = ["data.format=own_format:pairs", f"data.root={root}", "data.options={}", "data.transform.size=16"]
    config = ROOT / "configs" / "demo_pictures.yaml"
    corpus = build_corpus(read_config(config, settings), "train")
    assert np.asarray(corpus.images.read(np.arange(4))).shape == (4, 3, 16, 16)
    bare = read_config(config, [*settings, "data.options.bare=true"])
    with pytest.raises(
        InputError, match=r"data.format: own_format:pairs returns images as list; expected .* PictureFiles"
    ):
        build_corpus(bare, "train")


def test_options_are_checked_against_the_format(tmp_path: Path) -> None:
    config = ROOT / "configs" / "pvse" / "tgif.yaml"
    resolved = read_config(config, ["data.options.captions=last", "data.transform.fps=8"])
    assert resolved.data.options["captions"] == "last"
    assert resolved.data.transform is not None and resolved.data.transform.arguments["fps"] == 8
    with pytest.raises(InputError, match="data.options.captions: input should be 'all' or 'last', got 'first'"):
        read_config(config, ["data.options.captions=first"])
