import json
from pathlib import Path

import pytest
from helpers import metrics_of, random_scores

from vse.errors import InputError
from vse.evaluation.json_file import check_json_file, rounded, write_json


def test_metrics_replace_metrics(tmp_path: Path) -> None:
    metrics, path = metrics_of(*random_scores(10)), tmp_path / "test.json"
    path.touch()  # an empty file may be replaced, too
    for content in (metrics, {"a": metrics, "ensemble of 2": metrics}, {"coco_1k": metrics, "coco_5k": metrics}):
        write_json(path, content)
        assert json.loads(path.read_text()) == rounded(content)


def test_numbers_are_rounded(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    write_json(path, {"i2t": {"r1": 7.000000000000001, "nmr": 0.014271}, "folds": 5, "difference": [-1.23456789, 2.0]})
    assert (
        path.read_text().split()
        == """{
      "i2t": { "r1": 7.0, "nmr": 0.014271 }, "folds": 5, "difference": [ -1.234568, 2.0 ]
    }""".split()
    )


@pytest.mark.parametrize(
    "content", [b"a: 1\n", b'{"word2idx": {"a": 1}}', b"\x80\x04\x95", b"[1, 2]", b"{", b'{"a": "\xff"}']
)
def test_nothing_else_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="words.json: is there already and holds no metrics; expected a new file, or"):
        write_json(path, {"rsum": 1.0})
    assert path.read_bytes() == content


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such folder; expected a folder for x.json"):
        check_json_file(tmp_path / "none" / "x.json")
    with pytest.raises(InputError, match="/dev/full: expected the name of a file"):
        check_json_file(Path("/dev/full"))
