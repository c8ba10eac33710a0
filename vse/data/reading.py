"""Read the text, JSON, CSV and id files of data sets; every error names the file, and the line if there is one."""

import csv
import io
import json
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from vse.errors import InputError, first_line

# The errors that NumPy raises for a damaged file.
NOT_NPY = (ValueError, OSError, EOFError, SyntaxError, OverflowError, TypeError, MemoryError, tokenize.TokenError)


def read_lines(path: Path, what: str) -> list[str]:
    r"""Read the lines of a UTF-8 text file and strip each of them.

    Only a newline ends a line. A byte order mark and the carriage returns of Windows are removed.

    Args:
        path: The file.
        what: What one line holds, for the error messages, such as "caption".

    Returns:
        The lines, none of them empty.

    Raises:
        InputError: The file cannot be read, or a line is empty or not UTF-8.

    >>> Path("ids.txt").write_text("17\n4\n") and read_lines(Path("ids.txt"), "id")
    ['17', '4']
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    # The bytes are split at the newline only: str.splitlines also breaks at characters that occur inside captions.
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
    """Read a JSON file.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.

    Returns:
        The content.

    Raises:
        InputError: The file cannot be read or is not valid JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file in UTF-8 ({first_line(error)})") from None


def malformed(error: Exception) -> str:
    """Say in words what is wrong with a JSON entry whose reading raised a KeyError, TypeError or AttributeError.

    >>> malformed(KeyError("raw"))
    "'raw' is missing"
    """
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return f"a value has the wrong type ({first_line(error)})"


def read_ids(path: Path) -> list[int]:
    """Read a .npy file of whole numbers.

    Args:
        path: The file, with an array (n,) of whole numbers.

    Returns:
        The numbers.

    Raises:
        InputError: The file is missing or damaged, or holds something else; the message names it.
    """
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


def read_table(path: Path) -> list[tuple[int, Any]]:
    """Read the rows of a JSONL file (ending .jsonl or .json) or, under any other ending, of a CSV file.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.

    Returns:
        The number of each row's line, and the row: a dict by the names of the columns for CSV, the line's value for
        JSONL.

    Raises:
        InputError: The file or a row cannot be read; the message names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a CSV or JSONL file in UTF-8 ({first_line(error)})") from None
    return _jsonl_rows(path, text) if path.suffix.lower() in (".jsonl", ".json") else _csv_rows(path, text)


def _jsonl_rows(path: Path, text: str) -> list[tuple[int, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number}: not a line of JSON ({first_line(error)})") from None
    return rows


def _csv_rows(path: Path, text: str) -> list[tuple[int, Any]]:
    rows: list[tuple[int, Any]] = []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        if len(set(header)) != len(header):
            raise InputError(f"{path}: two columns have the same name; found {', '.join(header)}")
        for row in reader:
            if None in row:
                raise InputError(
                    f"{path}: line {reader.line_num} has more fields than the header; a caption with a comma needs "
                    f"quotes"
                )
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.reader.line_num}: not a CSV file ({error})") from None
    return rows
