"""The data formats: one function each, which returns a :class:`vse.data.corpus.Corpus`. The table is FORMATS.

The formats of clips are in :mod:`vse.data.video_formats`, and that of one's own pictures in
:mod:`vse.data.folder_format`. A format's arguments beside ``root`` and ``split`` are
``data.options`` of a config.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vse.data.corpus import ArrayFeatures, Corpus, Features
from vse.data.folder_format import folder
from vse.data.reading import malformed, read_ids, read_json, read_lines
from vse.data.synthetic import read_patches, render_world, world_sizes
from vse.data.transforms import PictureFiles
from vse.data.video_formats import mrw, msrvtt, synthetic_clips, tgif, vatex
from vse.errors import InputError

_SAMPLED_ROWS = 64  # how many repeated rows are compared: the file may be larger than memory


def precomp(root: str, split: str) -> Corpus:
    """Read precomputed region features in the layout that the field shares (SCAN, VSE∞, ...).

    ``root`` or ``root/precomp`` holds ``{split}_ims.npy`` (rows, regions, width), ``{split}_caps.txt`` (UTF-8, one
    caption a line, image by image) and ``{split}_ids.txt`` (one id per row, per image or per caption). It may hold
    ``{split}_capids.txt`` (one caption id a line). Dev and test files often repeat each image once per caption: that is
    recognised, checked on a sample of rows, and one row is kept.

    Args:
        root: The data set's folder.
        split: The split.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing, or the files do not fit together; the file is named.
    """
    folder = _precomp_folder(root)
    layout = f"expected {split}_ims.npy, {split}_caps.txt and {split}_ids.txt in {root} or {Path(root) / 'precomp'}"
    if not folder.is_dir():
        raise InputError(f"data.root: no folder {root}; {layout}")
    features, texts, names = (folder / f"{split}_{kind}" for kind in ("ims.npy", "caps.txt", "ids.txt"))
    for path in (features, texts, names):
        if not path.is_file():
            raise InputError(f"{path}: no such file; {layout}")
    captions = read_lines(texts, "caption")
    files = _Precomp(features, texts, names, Features(features), captions, read_lines(names, "id"))
    first_row, image_of_caption, image_ids = _group(files)
    images = Features(features, first_row, image_ids)
    caption_ids = _caption_ids(folder, split, captions)
    return Corpus(str(folder / split), images, captions, image_of_caption, image_ids, caption_ids)


def _precomp_folder(root: str) -> Path:
    inner = Path(root) / "precomp"
    return inner if inner.is_dir() else Path(root)


def _caption_ids(folder: Path, split: str, captions: list[str]) -> Sequence[Any]:
    """The captions' own ids, when there is a file of them (CxC's and ECCV Caption's judgements go by COCO's)."""
    path = folder / f"{split}_capids.txt"
    if not path.exists() and not path.is_symlink():
        return range(len(captions))
    ids = read_lines(path, "id")
    if len(ids) != len(captions):
        raise InputError(f"{path} holds {len(ids)} ids, but there are {len(captions)} captions")
    return ids


class _Precomp(NamedTuple):
    """The files of one split in the precomp layout, and what they hold."""

    features_file: Path
    captions_file: Path
    ids_file: Path
    features: Features
    captions: list[str]
    ids: list[str]


def _group(files: _Precomp) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Each image's first row, each caption's image, and the images' ids: rows with one id are one image."""
    runs = _runs(files.ids)
    rows, count = len(files.features), len(files.captions)
    if len(files.ids) == count and rows < count and runs[-1] + 1 == rows == len(set(files.ids)):
        return np.arange(rows), runs, list(dict.fromkeys(files.ids))  # an id per caption, any number of them per image
    per_row = _captions_per_row(files)
    ids = _ids_of_rows(files, per_row)
    first_row: dict[str, int] = {}
    for row, label in enumerate(ids):
        first_row.setdefault(label, row)
    _check_repeated_rows(files, ids, first_row)
    image_of_id = {label: image for image, label in enumerate(first_row)}
    image_of_caption = np.repeat([image_of_id[label] for label in ids], per_row)
    return np.array(list(first_row.values())), image_of_caption, list(first_row)


def _runs(ids: list[str]) -> np.ndarray:
    """For each id, the number of the run of equal ids that it stands in.

    >>> _runs(["a", "a", "b", "a"]).tolist()
    [0, 0, 1, 2]
    """
    changes = [label != before for before, label in zip(ids, ids[1:], strict=False)]
    return np.cumsum([False, *changes])


def _captions_per_row(files: _Precomp) -> int:
    """How many captions each row has, the same number for every row."""
    rows, count = len(files.features), len(files.captions)
    if rows > count or count % rows:
        raise InputError(
            f"{files.features_file} holds {rows} rows but {files.captions_file} {count} captions; expected one row per "
            f"caption, or a fixed number of captions per row"
        )
    return count // rows


def _ids_of_rows(files: _Precomp, per_row: int) -> list[str]:
    """The id of each row, from a file with one per caption, per row or per image."""
    ids, rows, count = files.ids, len(files.features), len(files.captions)
    if len(ids) == count and per_row > 1:
        return _ids_of_blocks(files, per_row)
    if len(ids) == rows == count and len(set(ids)) == rows:  # nothing but the rows themselves tells which repeat
        repeats = _repeats(files)
        return [ids[row - row % repeats] for row in range(rows)]
    if len(ids) == rows:
        return ids
    if rows == count and rows % len(ids) == 0:
        return [label for label in ids for _ in range(rows // len(ids))]
    raise InputError(f"{files.ids_file} holds {len(ids)} ids, which fits neither the {rows} rows nor {count} captions")


def _ids_of_blocks(files: _Precomp, per_row: int) -> list[str]:
    """The id of each row, from one per caption; the captions of a row must agree."""
    for line, label in enumerate(files.ids):
        expected = files.ids[line - line % per_row]
        if label != expected:
            raise InputError(f"{files.ids_file}: line {line + 1} has id {label}, but its image has {expected}")
    return files.ids[::per_row]


def _repeats(files: _Precomp) -> int:
    """How often each image's row is repeated, as the rows themselves show."""
    features, rows = files.features, len(files.features)
    repeats = next((row for row in range(1, rows) if not features.same_rows(0, row)), rows)
    if repeats == 1:
        return 1
    step = max(repeats, rows // _SAMPLED_ROWS // repeats * repeats)
    if not all(features.same_rows(row, row + 1) for row in range(0, rows - 1, step)):
        return 1  # the first images are alike, and no others
    if rows % repeats:
        raise InputError(
            f"{files.features_file}: its first {repeats} rows are equal, but {rows} rows are no multiple of that"
        )
    return repeats


def _check_repeated_rows(files: _Precomp, ids: list[str], first_row: dict[str, int]) -> None:
    """Raise InputError when rows with one id differ, as far as a sample of them tells."""
    repeated = [row for row, label in enumerate(ids) if first_row[label] != row]
    for row in repeated[:: len(repeated) // _SAMPLED_ROWS + 1]:
        first = first_row[ids[row]]
        if not files.features.same_rows(first, row):
            raise InputError(
                f"{files.features_file}: rows {first} and {row} are both image {ids[row]} (by {files.ids_file.name}), "
                f"but they differ"
            )


def karpathy(
    root: str, split: str, annotations: str | None = None, pictures: str = "images", per_image: int | None = None
) -> Corpus:
    """Read Karpathy's split files (COCO, Flickr30K, Flickr8k): ``root/dataset_*.json`` and a folder of pictures.

    ``restval`` counts as train, ``val`` is dev. An image may have any number of captions.

    Args:
        root: The data set's folder.
        split: The split.
        annotations: Name of the JSON file, needed when ``root`` holds several.
        pictures: The folder of pictures, below ``root``.
        per_image: Number of captions that count of each image in dev and test, the first ones; None counts all. Some
            of COCO's images have more than the five that the papers use.

    Returns:
        The corpus.

    Raises:
        InputError: A file or a folder is missing, or an entry is not as expected; the file is named.
    """
    if per_image is not None and per_image < 1:
        raise InputError(f"data.options.per_image: expected at least 1, got {per_image}")
    path = _karpathy_file(Path(root), annotations, pictures)
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a JSON object with a list 'images'")
    wanted = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",), "testall": ("test",)}[split]
    most = None if split == "train" else per_image
    images, ids, captions, image_of_caption, caption_ids = [], [], [], [], []
    for number, entry in enumerate(entries):
        try:
            _check_karpathy_entry(entry)
            if entry["split"] not in wanted:
                continue
            images.append(Path(root) / pictures / entry.get("filepath", "") / entry["filename"])
            ids.append(entry.get("cocoid", entry["imgid"]))
            for sentence in entry["sentences"][:most]:
                captions.append(_karpathy_caption(sentence))
                caption_ids.append(sentence["sentid"])
                image_of_caption.append(len(images) - 1)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: entry {number} of 'images': {malformed(error)}") from None
        except ValueError as error:
            raise InputError(f"{path}: entry {number} of 'images': {error}") from None
    if not images:
        raise InputError(f"{path}: no image in split {split} (looked for {' or '.join(wanted)})")
    places = np.array(image_of_caption, dtype=np.int64)
    return Corpus(f"{path} ({split})", PictureFiles(images), captions, places, ids, caption_ids)


def _karpathy_file(root: Path, annotations: str | None, pictures: str) -> Path:
    """The JSON file of Karpathy's layout; the folder of pictures must be there, too."""
    layout = f"expected dataset_*.json and a folder {pictures}/ in {root}"
    if not root.is_dir():
        raise InputError(f"data.root: no folder {root}; {layout}")
    found = [root / annotations] if annotations else sorted(root.glob("dataset_*.json"))
    if len(found) > 1:
        raise InputError(f"{root}: holds {', '.join(p.name for p in found)}; choose one with data.options.annotations")
    if not found or not found[0].is_file():
        raise InputError(f"{found[0] if found else root}: no annotations; {layout}")
    if not (root / pictures).is_dir():
        raise InputError(f"{root / pictures}: no such folder; {layout}")
    return found[0]


def _check_karpathy_entry(entry: Any) -> None:
    """Raise ValueError for an image's entry with values that it cannot have."""
    if entry["split"] not in ("train", "restval", "val", "test"):
        raise ValueError(f"the split {entry['split']!r} is not one of train, restval, val and test")
    for key in ("imgid", "cocoid"):
        if not isinstance(entry.get(key, entry["imgid"]), int | str):
            raise ValueError(f"the {key} must be a number or a text, got {entry[key]!r}")
    if not isinstance(entry["filename"], str) or not entry["filename"]:
        raise ValueError(f"the filename must be a text, got {entry['filename']!r}")


def _karpathy_caption(sentence: Any) -> str:
    """A sentence's text. Raises ValueError when it is empty or its id is not one."""
    if not isinstance(sentence["sentid"], int | str):
        raise ValueError(f"the sentid must be a number or a text, got {sentence['sentid']!r}")
    caption: str = sentence["raw"].strip()
    if not caption:
        raise ValueError(f"caption {sentence['sentid']} is empty")
    return caption


def coco(root: str, split: str, year: int = 2014, annotations: str = "annotations", pictures: str = "images") -> Corpus:
    """Read COCO's own captions with the id files of the field's splits (VSE++, PVSE, ECCV Caption).

    ``root/annotations`` has ``captions_train2014.json`` and ``captions_val2014.json``. It, or ``root`` itself, has
    ``coco_train_ids.npy``, ``coco_restval_ids.npy``, ``coco_dev_ids.npy`` and ``coco_test_ids.npy``: the ids of the
    captions of a split, in its order; restval counts as train. Pictures are ``root/pictures/train2014/*.jpg`` and
    ``val2014``. Ids are COCO's.

    Args:
        root: The data set's folder.
        split: The split.
        year: The year in the names of files and folders.
        annotations: The folder of captions and ids, below ``root``.
        pictures: The folder of pictures, below ``root``.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing, or the files do not fit together; the file is named.
    """
    folder = Path(root) / annotations
    found: dict[int, tuple[str, int]] = {}  # caption and image of a caption id
    files: dict[int, Path] = {}  # picture of an image id
    for part in (f"train{year}", f"val{year}"):
        path = folder / f"captions_{part}.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected COCO's captions for both train{year} and val{year}")
        names, captions = _coco_captions(path)
        files |= {image: Path(root) / pictures / part / name for image, name in names.items()}
        found |= captions
    numbers = _coco_ids(Path(root), folder, split, year, found)
    empty = next((number for number in numbers if not found[number][0]), None)
    if empty is not None:
        raise InputError(f"{folder}: caption {empty} is empty")
    place: dict[int, int] = {}
    image_of_caption = np.array([place.setdefault(found[number][1], len(place)) for number in numbers])
    texts = [found[number][0] for number in numbers]
    images = PictureFiles([files[i] for i in place])
    return Corpus(f"{root} ({split})", images, texts, image_of_caption, list(place), numbers)


def _coco_captions(path: Path) -> tuple[dict[int, str], dict[int, tuple[str, int]]]:
    """The file name of each image's id, and the caption and the image of each caption's id."""
    content = read_json(path)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions = {entry["id"]: (entry["caption"].strip(), entry["image_id"]) for entry in content["annotations"]}
        lost = next((image for _, image in captions.values() if image not in names), None)
        if not all(isinstance(name, str) for name in names.values()):
            raise TypeError("a file_name is not a text")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {malformed(error)}; expected COCO's lists 'images' and 'annotations'") from None
    if lost is not None:
        raise InputError(f"{path}: has captions of image {lost}, which is not among its images")
    return names, captions


def _coco_ids(root: Path, folder: Path, split: str, year: int, known: dict[int, tuple[str, int]]) -> list[int]:
    """The ids of a split's captions, in the order of its files."""
    numbers: list[int] = []
    parts = {"train": ("train", "restval"), "dev": ("dev",), "test": ("test",), "testall": ("test",)}[split]
    for part in parts:
        name = f"coco_{part}_ids.npy"
        path = root / name if (root / name).is_file() and not (folder / name).is_file() else folder / name
        ids = read_ids(path)
        unknown = next((number for number in ids if number not in known), None)
        if unknown is not None:
            raise InputError(
                f"{path}: caption {unknown} is in neither captions_train{year} nor captions_val{year}.json"
            )
        numbers += ids
    return numbers


def id_mapping(root: str, split: str, pictures: str = "images") -> Corpus:
    """Read pictures in the layout of VSE∞'s and DivE's grid models: ``root/id_mapping.json``, ids and captions.

    ``id_mapping.json`` gives each id's file below ``root/pictures``. ``{split}_ids.txt`` (an id per image, or repeated
    per caption) and ``{split}_caps.txt`` (one caption a line, the same number for each image, image by image) lie in
    ``root`` or ``root/precomp``, perhaps with ``{split}_capids.txt`` (an id per caption).

    Args:
        root: The data set's folder.
        split: The split.
        pictures: The folder of pictures, below ``root``.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing, or the files do not fit together; the file is named.
    """
    folder = _precomp_folder(root)
    layout = f"expected id_mapping.json and {pictures}/ in {root}, {split}_ids.txt and {split}_caps.txt in {folder}"
    mapping_file = Path(root) / "id_mapping.json"
    ids_file, captions_file = folder / f"{split}_ids.txt", folder / f"{split}_caps.txt"
    for path in (mapping_file, ids_file, captions_file):
        if not path.is_file():
            raise InputError(f"{path}: no such file; {layout}")
    mapping = read_json(mapping_file)
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise InputError(f"{mapping_file}: expected a JSON object of ids and file names")
    captions, ids = read_lines(captions_file, "caption"), read_lines(ids_file, "id")
    unique = list(dict.fromkeys(ids))
    if len(captions) % len(unique) or len(ids) not in (len(unique), len(captions)):
        raise InputError(
            f"{ids_file} holds {len(ids)} ids of {len(unique)} images, {captions_file} {len(captions)} captions; "
            f"expected the same number of captions for each image"
        )
    per_image = len(captions) // len(unique)
    if len(ids) > len(unique) and ids != [label for label in unique for _ in range(per_image)]:
        raise InputError(f"{ids_file}: the ids are not repeated image by image, {per_image} times each")
    for label in unique:
        if label not in mapping:
            raise InputError(f"{mapping_file}: has no file for id {label} of {ids_file.name}")
    images = PictureFiles([Path(root) / pictures / mapping[label] for label in unique])
    image_of_caption = np.repeat(np.arange(len(images)), per_image)
    caption_ids = _caption_ids(folder, split, captions)
    return Corpus(f"{root} ({split})", images, captions, image_of_caption, unique, caption_ids)


def synthetic(
    root: str, split: str, seed: int = 0, train_scenes: int = 3000, eval_scenes: int = 200, pictures: bool = False
) -> Corpus:
    """Read the demo's own small world (see :mod:`vse.data.synthetic`), rendered once under ``root``.

    Args:
        root: The folder to render into.
        split: The split: train, dev or test.
        seed: The seed of the scenes.
        train_scenes: Number of scenes to train on.
        eval_scenes: Number of scenes in dev, and in test.
        pictures: Whether the images are pictures. Otherwise they are the pictures' patches, as region features.

    Returns:
        The corpus.

    Raises:
        InputError: There is no such split or world, or ``root`` cannot be written.
    """
    render_world(Path(root), world_sizes(split, seed, train_scenes, eval_scenes), seed)
    corpus = karpathy(root, split)
    if pictures:
        return corpus
    paths = [corpus.images[image] for image in range(len(corpus.images))]
    return replace(corpus, images=ArrayFeatures(read_patches(paths)))


FORMATS: dict[str, Callable[..., Corpus]] = {
    "precomp": precomp,
    "karpathy": karpathy,
    "coco": coco,
    "id_mapping": id_mapping,
    "folder": folder,
    "synthetic": synthetic,
    "tgif": tgif,
    "mrw": mrw,
    "msrvtt": msrvtt,
    "vatex": vatex,
    "synthetic_clips": synthetic_clips,
}
