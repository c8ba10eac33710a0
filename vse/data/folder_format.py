"""The data format of a user's own pictures: a table of captions, and the pictures in folders beside it."""

import hashlib
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vse.data.corpus import Corpus
from vse.data.reading import read_table
from vse.data.transforms import PictureFiles
from vse.errors import InputError, close_match

Splits = Literal["column", "auto"]

# The names under which a table's columns are recognised, the usual one first.
_NAMES = {
    "image": ("file", "image", "filename", "file_name", "path"),
    "caption": ("caption", "text"),
    "split": ("split",),
}
_PARTS = {"train": "train", "dev": "dev", "val": "dev", "validation": "dev", "test": "test"}
_SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


class _Row(NamedTuple):
    """A row of the table: its line, the picture's file, a caption, and the split if a column gives it."""

    line: int
    file: str
    caption: str
    part: str | None


def folder(
    root: str,
    split: str,
    captions: str = "captions.csv",
    pictures: str = ".",
    columns: dict[str, str] | None = None,
    splits: Splits = "column",
) -> Corpus:
    """Read a user's own pictures: a CSV or JSONL file of captions, and the pictures in folders beside it.

    The file has a caption a row, with columns (JSONL: keys) for the picture's file, the caption and the split (train,
    dev, which may be called val, or test). An image's captions may stand anywhere, any number of them.

    Args:
        root: The data set's folder.
        split: The split.
        captions: The file of captions, below ``root``; JSONL when it ends in .jsonl or .json, otherwise CSV.
        pictures: The folder, below ``root``, to which the names in ``captions`` are relative.
        columns: The names of the columns ``image``, ``caption`` and ``split``, where they are not the usual ones.
        splits: "column" reads the splits from their column. "auto" draws 80 % of the pictures for train and 10 % each
            for dev and test. The draw depends only on the files' names.

    Returns:
        The corpus.

    Raises:
        InputError: The file is missing, or a row is not as expected; file and line are named.
    """
    path = Path(root) / captions
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV or JSONL file with file, caption and split")
    rows = _read_rows(path, columns or {}, with_split=splits == "column")
    part_of = draw_splits({row.file for row in rows}) if splits == "auto" else {}
    wanted = "test" if split == "testall" else split
    chosen = [row for row in rows if (row.part or part_of[row.file]) == wanted]
    if not chosen:
        raise InputError(f"{path}: no caption in split {split}")
    place: dict[str, int] = {}
    image_of_caption = np.array([place.setdefault(row.file, len(place)) for row in chosen])
    images = PictureFiles([Path(root) / pictures / file for file in place])
    texts, lines = [row.caption for row in chosen], [row.line for row in chosen]
    return Corpus(f"{path} ({split})", images, texts, image_of_caption, list(place), lines)


def draw_splits(files: set[str]) -> dict[str, str]:
    """Draw 80 % of some files for train and 10 % each for dev and test.

    The files are put in the order of their names' hashes and cut there, so that nothing but the names counts: not their
    order in a table, and no random state.

    Args:
        files: The names of the files.

    Returns:
        The split of each file. Dev and test get one file at least, as long as there are three.

    >>> list(draw_splits({f"{number}.jpg" for number in range(20)}).values()).count("train")
    16
    """
    ordered = sorted(files, key=lambda file: hashlib.sha256(file.encode("utf-8", "surrogatepass")).digest())
    test = max(1, round(_SHARES["test"] * len(ordered)))
    dev = max(1, round(_SHARES["dev"] * len(ordered)))
    parts = ["test"] * test + ["dev"] * dev + ["train"] * max(0, len(ordered) - test - dev)
    return dict(zip(ordered, parts, strict=False))


def _read_rows(path: Path, columns: dict[str, str], with_split: bool) -> list[_Row]:
    """The rows of a table of captions."""
    rows: list[_Row] = []
    names: dict[str, str] = {}
    for line, content in read_table(path):
        if not isinstance(content, dict):
            raise InputError(
                f"{path}: line {line}: expected texts for file, caption and split, found {content!r}"[:300]
            )
        names = names or _find_columns(path, list(content), columns, with_split)
        values = {role: content.get(name) for role, name in names.items()}
        if not all(isinstance(value, str) and value.strip() for value in values.values()):
            expected = " and ".join(", ".join(names.values()).rsplit(", ", 1))
            raise InputError(f"{path}: line {line}: expected texts for {expected}, found {content!r}"[:300])
        part = str(values["split"]).strip() if with_split else None
        if part is not None and part.lower() not in _PARTS:
            raise InputError(f"{path}: line {line}: the split is {part!r}, expected train, dev (or val) or test")
        file = os.path.normpath(str(values["image"]).strip())
        rows.append(_Row(line, file, str(values["caption"]).strip(), None if part is None else _PARTS[part.lower()]))
    return rows


def _find_columns(path: Path, header: list[Any], columns: dict[str, str], with_split: bool) -> dict[str, str]:
    """The column of each thing that is needed: the one that the user names, or else the first with a usual name."""
    for role in columns:
        if role not in _NAMES:
            raise InputError(f"data.options.columns.{role}: unknown ({close_match(role, list(_NAMES))})")
    found: dict[str, str] = {}
    for role, usual in _NAMES.items():
        if role == "split" and not with_split:
            continue
        named = (columns[role],) if role in columns else usual
        by_name = {str(name).strip().lower(): name for name in reversed(header)}
        column = next((by_name[name.lower()] for name in named if name.lower() in by_name), None)
        if column is None:
            raise InputError(f"{path}: {_missing_column(role, named, [str(name) for name in header])}")
        found[role] = column
    return found


def _missing_column(role: str, names: tuple[str, ...], header: list[str]) -> str:
    """What to say of a table that lacks a column."""
    problem = f"has no column {' or '.join(names)}; found {', '.join(header)}"[:200]
    if role == "split":
        return f"{problem}; add one with train, dev or test, or set data.options.splits=auto to draw 80/10/10"
    return f"{problem}; name it with data.options.columns.{role}, or write the columns' names into the first line"
