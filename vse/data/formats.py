"""Corpora: one function per dataset format, each returning a :class:`Corpus`."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vse.data.corpus import NOT_NPY, ArrayFeatures, Corpus, Features
from vse.data.synthetic import read_patches, render_world
from vse.errors import InputError, first_line


def precomp(root: str, split: str) -> Corpus:
    """Precomputed region features in the layout that the field shares (SCAN, VSE∞, ...).

    ``root`` or ``root/precomp`` holds ``{split}_ims.npy`` (rows, regions, width), ``{split}_caps.txt`` (UTF-8, one
    caption a line, image by image) and ``{split}_ids.txt`` (one id per row, per image or per caption); perhaps
    ``{split}_capids.txt`` (one caption id a line). Dev and test
    files often repeat each image once per caption: that is recognised, checked on a sample of rows, and one is kept.
    Raises InputError, naming the file, when something is missing or does not fit.
    """
    folder = Path(root) / "precomp" if (Path(root) / "precomp").is_dir() else Path(root)
    layout = f"expected {split}_ims.npy, {split}_caps.txt and {split}_ids.txt in {root} or {Path(root) / 'precomp'}"
    if not folder.is_dir():
        raise InputError(f"data.root: no folder {root}; {layout}")
    paths = {kind: folder / f"{split}_{kind}" for kind in ("ims.npy", "caps.txt", "ids.txt")}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; {layout}")
    features = Features(paths["ims.npy"])
    captions = read_lines(paths["caps.txt"], "caption")
    ids = read_lines(paths["ids.txt"], "id")
    first_row, image_of_caption, image_ids = _group(features, captions, ids, paths)
    images = Features(paths["ims.npy"], first_row, image_ids)
    name = str(folder / split)
    return Corpus(name, images, captions, image_of_caption, image_ids, _caption_ids(folder, split, captions))


def _caption_ids(folder: Path, split: str, captions: list[str]) -> Sequence[Any]:
    """The captions' own ids, when there is a file of them (CxC's and ECCV Caption's judgements go by COCO's)."""
    path = folder / f"{split}_capids.txt"
    if not path.exists() and not path.is_symlink():
        return range(len(captions))
    ids = read_lines(path, "id")
    if len(ids) != len(captions):
        raise InputError(f"{path} holds {len(ids)} ids, but there are {len(captions)} captions")
    return ids


def _group(
    features: Features, captions: list[str], ids: list[str], paths: dict[str, Path]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Each image's first row, each caption's image, and the images' ids: rows with one id are one image."""
    rows, count = len(features), len(captions)
    ims, caps, ids_path = paths.values()
    new = [label != before for label, before in zip(ids, [None, *ids], strict=False)]
    if len(ids) == count and sum(new) == len(set(ids)) == rows < count:  # an id per caption, any number per image
        return np.arange(rows), np.cumsum(new) - 1, list(dict.fromkeys(ids))
    if rows > count or count % rows:
        raise InputError(
            f"{ims} holds {rows} rows but {caps} {count} captions; expected one row per caption, or a fixed number of "
            f"captions per row"
        )
    per_row = count // rows
    if len(ids) == count and per_row > 1:
        for line, label in enumerate(ids):
            if label != (expected := ids[line - line % per_row]):
                raise InputError(f"{ids_path}: line {line + 1} has id {label}, but its image has {expected}")
        ids = ids[::per_row]
    elif len(ids) < rows == count and rows % len(ids) == 0:
        ids = [label for label in ids for _ in range(rows // len(ids))]
    elif len(ids) != rows:
        raise InputError(f"{ids_path} holds {len(ids)} ids, which fits neither the {rows} rows nor {count} captions")
    elif rows == count and len(set(ids)) == rows:
        # Nothing but the rows themselves tells whether images repeat.
        repeats = next((row for row in range(1, rows) if not features.same_rows(0, row)), rows)
        starts = range(0, rows, max(repeats, rows // 64 // repeats * repeats))
        if not all(features.same_rows(i, i + 1) for i in starts if i + 1 < rows) and repeats > 1:
            repeats = 1  # the first images are alike, and no others
        if rows % repeats:
            raise InputError(f"{ims}: its first {repeats} rows are equal, but {rows} rows are no multiple of that")
        ids = [ids[row - row % repeats] for row in range(rows)]
    first_row: dict[str, int] = {}
    for row, label in enumerate(ids):
        first_row.setdefault(label, row)
    repeated = [row for row, label in enumerate(ids) if first_row[label] != row]
    for row in repeated[:: len(repeated) // 64 + 1]:  # a sample: the file may be larger than memory
        if not features.same_rows(first_row[ids[row]], row):
            raise InputError(
                f"{ims}: rows {first_row[ids[row]]} and {row} are both image {ids[row]} (by {ids_path.name}), "
                f"but they differ"
            )
    image_of_id = {label: image for image, label in enumerate(first_row)}
    image_of_caption = np.repeat([image_of_id[label] for label in ids], per_row)
    return np.array(list(first_row.values())), image_of_caption, list(first_row)


def karpathy(
    root: str, split: str, annotations: str | None = None, pictures: str = "images", per_image: int | None = None
) -> Corpus:
    """Karpathy's split files (COCO, Flickr30K, Flickr8k): ``root/dataset_*.json`` and a folder of pictures.

    ``annotations`` names the JSON file when ``root`` holds several; ``pictures`` is the folder below ``root``.
    ``restval`` counts as train, ``val`` is dev. Any number of captions per image; images are paths. Of an image in dev
    and test the first ``per_image`` captions count, or all: some of COCO's have more than the five that the papers use.
    Raises InputError, naming the file, when something is missing or does not fit.
    """
    if per_image is not None and per_image < 1:
        raise InputError(f"data.options.per_image: expected at least 1, got {per_image}")
    folder = Path(root)
    layout = f"expected dataset_*.json and a folder {pictures}/ in {root}"
    if not folder.is_dir():
        raise InputError(f"data.root: no folder {root}; {layout}")
    found = [folder / annotations] if annotations else sorted(folder.glob("dataset_*.json"))
    if len(found) > 1:
        raise InputError(f"{root}: holds {', '.join(p.name for p in found)}; choose one with data.options.annotations")
    if not found or not found[0].is_file():
        raise InputError(f"{found[0] if found else root}: no annotations; {layout}")
    if not (folder / pictures).is_dir():
        raise InputError(f"{folder / pictures}: no such folder; {layout}")
    path = found[0]
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a JSON object with a list 'images'")
    wanted = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",), "testall": ("test",)}[split]
    images, ids, captions, image_of_caption, caption_ids = [], [], [], [], []
    for number, entry in enumerate(entries):
        try:
            if entry["split"] not in ("train", "restval", "val", "test"):
                raise InputError(f"{path}: entry {number} of 'images' has the unknown split {entry['split']!r}")
            for key in ("imgid", "cocoid"):
                if not isinstance(entry.get(key, entry["imgid"]), int | str):
                    raise InputError(f"{path}: entry {number} of 'images' has the {key} {entry[key]!r}")
            if not isinstance(entry["filename"], str) or not entry["filename"]:
                raise InputError(f"{path}: entry {number} of 'images' has the filename {entry['filename']!r}")
            if entry["split"] not in wanted:
                continue
            images.append(folder / pictures / entry.get("filepath", "") / entry["filename"])
            ids.append(entry.get("cocoid", entry["imgid"]))
            for sentence in entry["sentences"][: None if split == "train" else per_image]:
                if not isinstance(sentence["sentid"], int | str):
                    raise InputError(f"{path}: entry {number} of 'images' has the sentid {sentence['sentid']!r}")
                captions.append(sentence["raw"].strip())
                caption_ids.append(sentence["sentid"])
                image_of_caption.append(len(images) - 1)
                if not captions[-1]:
                    raise InputError(f"{path}: caption {sentence['sentid']} of image {entry['imgid']} is empty")
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: entry {number} of 'images' lacks or garbles {error}") from None
    if not images:
        raise InputError(f"{path}: no image in split {split} (looked for {' or '.join(wanted)})")
    return Corpus(f"{path} ({split})", images, captions, np.array(image_of_caption, dtype=np.int64), ids, caption_ids)


def coco(root: str, split: str, year: int = 2014, annotations: str = "annotations", pictures: str = "images") -> Corpus:
    """COCO's own captions with the id files of the field's splits (VSE++, PVSE, ECCV Caption).

    ``root/annotations`` has ``captions_train2014.json`` and ``captions_val2014.json`` (or another ``year``'s) and, or
    ``root`` itself, ``coco_train_ids.npy``, ``coco_restval_ids.npy``, ``coco_dev_ids.npy`` and ``coco_test_ids.npy``:
    the ids of the captions of a split, in its order; restval counts as train. Pictures are
    ``root/pictures/train2014/*.jpg`` and ``val2014``; ids are COCO's. Raises InputError, naming the file, when
    something is missing or does not fit.
    """
    folder = Path(root) / annotations
    found: dict[int, tuple[str, int]] = {}  # caption and image of a caption id
    files: dict[int, Path] = {}  # picture of an image id
    for part in (f"train{year}", f"val{year}"):
        path = folder / f"captions_{part}.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected COCO's captions for both train{year} and val{year}")
        content = read_json(path)
        try:
            names = {image["id"]: Path(root) / pictures / part / image["file_name"] for image in content["images"]}
            captions = {entry["id"]: (entry["caption"].strip(), entry["image_id"]) for entry in content["annotations"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: 'images' or 'annotations' lack or garble {error}") from None
        lost = next((image for _, image in captions.values() if image not in names), None)
        if lost is not None:
            raise InputError(f"{path}: has captions of image {lost}, which is not among its images")
        files |= names
        found |= captions
    numbers: list[int] = []
    for part in ("train", "restval") if split == "train" else ({"testall": "test"}.get(split, split),):
        path = next((p for p in (folder, Path(root)) if (p / f"coco_{part}_ids.npy").is_file()), folder)
        path = path / f"coco_{part}_ids.npy"
        ids = read_ids(path)
        unknown = next((number for number in ids if number not in found), None)
        if unknown is not None:
            raise InputError(
                f"{path}: caption {unknown} is in neither captions_train{year} nor captions_val{year}.json"
            )
        numbers += ids
    empty = next((number for number in numbers if not found[number][0]), None)
    if empty is not None:
        raise InputError(f"{folder}: caption {empty} is empty")
    place: dict[int, int] = {}
    image_of_caption = np.array([place.setdefault(found[number][1], len(place)) for number in numbers])
    texts = [found[number][0] for number in numbers]
    return Corpus(f"{root} ({split})", [files[i] for i in place], texts, image_of_caption, list(place), numbers)


def read_ids(path: Path) -> list[int]:
    """Whole numbers of a .npy file. Raises InputError that names it."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the ids of the split's captions")
    try:
        with open(path, "rb") as file:
            ids = np.lib.format.read_array(file, allow_pickle=False)
    except NOT_NPY as error:
        raise InputError(f"{path}: not a complete .npy file of numbers ({first_line(error)})") from None
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not len(ids):
        raise InputError(f"{path}: expected a list of whole numbers, found {ids.dtype} of shape {ids.shape}")
    return [int(number) for number in ids]


def id_mapping(root: str, split: str, pictures: str = "images") -> Corpus:
    """Pictures in the layout of VSE∞'s and DivE's grid models: ``root/id_mapping.json``, the split's ids and captions.

    ``id_mapping.json`` gives each id's file below ``root/pictures``; ``{split}_ids.txt`` (an id per image, or repeated
    per caption), perhaps ``{split}_capids.txt`` (an id per caption), and ``{split}_caps.txt`` (one caption a line, the
    same number for each image, image by image) lie in ``root`` or ``root/precomp``. Raises InputError, naming the file,
    when something is missing or does not fit.
    """
    folder = Path(root) / "precomp" if (Path(root) / "precomp").is_dir() else Path(root)
    layout = f"expected id_mapping.json and {pictures}/ in {root}, {split}_ids.txt and {split}_caps.txt in {folder}"
    mapping_file, ids_file, captions_file = (
        Path(root) / "id_mapping.json",
        folder / f"{split}_ids.txt",
        folder / f"{split}_caps.txt",
    )
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
    images = [Path(root) / pictures / mapping[label] for label in unique]
    image_of_caption = np.repeat(np.arange(len(images)), per_image)
    caption_ids = _caption_ids(folder, split, captions)
    return Corpus(f"{root} ({split})", images, captions, image_of_caption, unique, caption_ids)


def folder(root: str, split: str, captions: str = "captions.csv", pictures: str = ".") -> Corpus:
    """A user's own pictures: a CSV or JSONL file of captions, and the pictures in folders beside it.

    ``root/captions`` has a caption a row, with the columns (JSONL: keys) ``file``, ``caption`` and ``split`` (train,
    dev or test); files are relative to ``root/pictures``. An image's captions may stand anywhere, any number of them.
    Raises InputError, naming file and line, when something is missing or does not fit.
    """
    path = Path(root) / captions
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV or JSONL file with file, caption and split")
    rows = _read_table(path)
    place: dict[str, int] = {}
    image_of_caption, texts, numbers = [], [], []
    for number, row in rows:
        values = [row.get(key) for key in ("file", "caption", "split")] if isinstance(row, dict) else [None]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise InputError(f"{path}: line {number}: expected texts for file, caption and split, found {row!r}"[:300])
        file, caption, part = (str(value).strip() for value in values)
        if part not in ("train", "dev", "test"):
            raise InputError(f"{path}: line {number}: the split is {part!r}, expected train, dev or test")
        if part == split or (part, split) == ("test", "testall"):
            image_of_caption.append(place.setdefault(os.path.normpath(file), len(place)))
            texts.append(caption)
            numbers.append(number)
    if not place:
        raise InputError(f"{path}: no caption in split {split}")
    images = [Path(root) / pictures / file for file in place]
    return Corpus(f"{path} ({split})", images, texts, np.array(image_of_caption), list(place), numbers)


def _read_table(path: Path) -> list[tuple[int, Any]]:
    """Rows of a JSONL or, under any other ending, a CSV file, each with its line's number."""
    rows: list[tuple[int, Any]] = []
    number = 0
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".jsonl", ".json"):
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append((number, json.loads(line)))
            return rows
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        header = reader.fieldnames or []
        if len(set(header)) != len(header):
            raise InputError(f"{path}: two columns have one name; found {', '.join(header)}")
        for row in reader:
            number = reader.line_num
            if None in row:
                raise InputError(
                    f"{path}: line {number} has more fields than the header; a caption with a comma needs quotes"
                )
            rows.append((number, row))
    except (UnicodeDecodeError, OSError, csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: line {number}: not a CSV or JSONL file in UTF-8 ({first_line(error)})") from None
    return rows


def synthetic(
    root: str, split: str, seed: int = 0, train_scenes: int = 3000, eval_scenes: int = 200, pictures: bool = False
) -> Corpus:
    """The demo's own small world (see :mod:`vse.data.synthetic`), rendered once under ``root``.

    The pictures' patches are the regions, unless the images are to be ``pictures``. Splits train (``train_scenes``),
    dev and test (``eval_scenes`` each).
    """
    if split not in ("train", "dev", "test"):
        raise InputError(f"the synthetic corpus has the splits train, dev and test, not {split}")
    check_scenes(seed, train_scenes, eval_scenes)
    render_world(Path(root), {"train": train_scenes, "dev": eval_scenes, "test": eval_scenes}, seed)
    corpus = karpathy(root, split)
    if pictures:
        return corpus
    return replace(corpus, images=ArrayFeatures(read_patches(corpus.images)))


def check_scenes(seed: int, train_scenes: int, eval_scenes: int) -> None:
    """Raise InputError for a world that cannot be rendered."""
    if seed < 0 or train_scenes < 1 or eval_scenes < 1:
        raise InputError(
            f"data.options: seed must not be negative, train_scenes and eval_scenes at least 1, "
            f"got {seed}, {train_scenes} and {eval_scenes}"
        )


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a UTF-8 text file, stripped; raises InputError with the line's number for an empty or garbled one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    # Split bytes at the newline only: str.splitlines also breaks at characters that occur inside captions.
    raw = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            lines.append(line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise InputError(f"{path}: line {number} is not UTF-8") from None
        if not lines[-1]:
            raise InputError(f"{path}: line {number} is empty; expected one {what} on every line")
    return lines


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises InputError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file in UTF-8 ({first_line(error)})") from None


CORPORA: dict[str, Callable[..., Corpus]] = {
    "precomp": precomp,
    "karpathy": karpathy,
    "coco": coco,
    "id_mapping": id_mapping,
    "folder": folder,
    "synthetic": synthetic,
}
