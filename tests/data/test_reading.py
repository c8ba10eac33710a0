"""Files of data sets, and the errors that name them."""

import json
from pathlib import Path

import numpy as np
import pytest

from vse.data.reading import malformed, read_ids, read_json, read_lines, read_table
from vse.errors import InputError


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(b"\xef\xbb\xbf one \r\ntwo\rhalves\n\xe2\x80\xa8three\xc2\x85 four\n")
    assert read_lines(file, "word") == ["one", "two\rhalves", "three\x85 four"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\n", "x.txt: line 2 is empty; expected one word on every line"),
        (b"", "x.txt: line 1 is empty"),
        (b"a\n\xff\n", "x.txt: line 2 is not UTF-8"),
    ],
)
def test_bad_lines(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / "x.txt", "word")
    with pytest.raises(InputError, match="none.txt: cannot be read .No such file"):
        read_lines(tmp_path / "none.txt", "word")


def test_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([3, 1]))
    found = read_ids(tmp_path / "ids.npy")
    assert found == [3, 1] and all(type(number) is int for number in found)
    np.save(tmp_path / "ids.npy", np.zeros(0, dtype=np.int64))
    with pytest.raises(InputError, match=r"ids.npy: expected a list of whole numbers, found int64 of shape \(0,\)"):
        read_ids(tmp_path / "ids.npy")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_bad_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="x.json: not a JSON file in UTF-8"):
        read_json(tmp_path / "x.json")


def test_tables(tmp_path: Path) -> None:
    """Rows with the numbers of their lines; a row of CSV may hold several, and ends at the number told."""
    (tmp_path / "a.csv").write_text('\ufefffile,caption\n1,"two\nlines"\n2,one\n', encoding="utf-8")
    assert read_table(tmp_path / "a.csv") == [
        (3, {"file": "1", "caption": "two\nlines"}),
        (4, {"file": "2", "caption": "one"}),
    ]
    (tmp_path / "a.JSONL").write_text('{"a": 1}\n\n[2]\n')
    assert read_table(tmp_path / "a.JSONL") == [(1, {"a": 1}), (3, [2])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"\xff", "x.csv: not a CSV or JSONL file in UTF-8"),
        ("x.csv", b'a\n"1" 2\n', "x.csv: line 2: not a CSV file"),
        ("x.csv", b'a\n"1\n', "x.csv: line 2: not a CSV file .unexpected end of data"),
        ("x.jsonl", b'{"a": 1}\n{"a"\n', "x.jsonl: line 2: not a line of JSON"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / name)


def test_what_is_wrong_with_an_entry() -> None:
    def problem(text: str) -> str:
        try:
            json.loads(text)["caption"].strip()
        except (KeyError, TypeError, AttributeError) as error:
            return malformed(error)
        return ""

    assert problem('{"other": 1}') == "'caption' is missing"
    assert problem('{"caption": 5}') == "a value has the wrong type ('int' object has no attribute 'strip')"
    assert problem("[1]").startswith("a value has the wrong type (list indices must be integers")
