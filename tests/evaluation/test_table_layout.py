"""Tables of metrics, character by character."""

from typing import Any

import pytest

from vse.errors import InputError
from vse.evaluation.tables import Row, format_rows, format_table, label, mark, published_rows

LEFT = {"r1": 12.34, "r5": 45.06, "r10": 100.0, "medr": 6.0, "meanr": 17.25}
RIGHT = {"r1": 1.0, "r5": 2.0, "r10": 3.0, "medr": 1234.0, "meanr": 4321.04}
METRICS: dict[str, Any] = {"i2t": LEFT, "t2i": RIGHT, "rsum": 163.44}
CLIPS: dict[str, Any] = {"i2t": {**LEFT, "nmr": 0.018}, "t2i": {**RIGHT, "nmr": 0.325}, "rsum": 163.44}


def lines(text: str) -> list[str]:
    return text.strip("\n").split("\n")


def test_a_plain_table() -> None:
    expected = """
run
                   R@1     R@5    R@10    MedR   MeanR
Image to text     12.3    45.1   100.0     6.0    17.2
Text to image      1.0     2.0     3.0  1234.0  4321.0
RSUM             163.4
"""
    assert lines(format_table(METRICS, "run")) == lines(expected)
    assert lines(format_table({**METRICS, "folds": 5}, "run"))[0] == "run, mean of 5 folds"


def test_a_table_of_clips() -> None:
    expected = """
run
                   R@1     R@5    R@10    MedR   MeanR     nMR
Video to text    12.34   45.06  100.00     6.0    17.2    0.02
Text to video     1.00    2.00    3.00  1234.0  4321.0    0.33
RSUM             163.4
"""
    assert lines(format_table(CLIPS, "run")) == lines(expected.replace("0.33", f"{0.325:.2f}"))


def test_a_table_with_intervals() -> None:
    """Half an interval's width under its recall; RSUM's interval and difference as they are."""
    side = {"r1": [10.0, 13.0], "r5": [40.0, 44.2], "r10": [99.0, 100.0]}
    bootstrap = {"samples": 70, "i2t": side, "t2i": {**side, "r1": [1.0, 1.0]}, "rsum": [150.04, 170.0]}
    bootstrap["difference"] = [3.26, 14.0]
    expected = """
run
                   R@1     R@5    R@10    MedR   MeanR
Image to text     12.3    45.1   100.0     6.0    17.2
  95 %            ±1.5    ±2.1    ±0.5
Text to image      1.0     2.0     3.0  1234.0  4321.0
  95 %            ±0.0    ±2.1    ±0.5
RSUM             163.4
  95 %           150.0 to 170.0 (70 samples of the images)
                  +3.3 to +14.0 against the first
"""
    assert lines(format_table({**METRICS, "bootstrap": bootstrap}, "run")) == lines(expected)


def test_the_parts_of_a_protocol_and_the_sets() -> None:
    sets = {"text_slots_used": 1.26, "text_log_variance": -6.994}
    table = lines(format_table({"coco_1k": {**METRICS, "folds": 5}, "coco_5k": METRICS, "sets": sets}, "run"))
    assert [line for line in table if line.startswith("run")] == ["run, coco_1k, mean of 5 folds", "run, coco_5k"]
    assert table[-1] == "Text sets       log within-set variance -6.99, 1.3 embeddings used" and len(table) == 11


def test_judged_retrieval_has_four_sides() -> None:
    recalls = {"r1": 1.0, "r5": 2.0, "r10": 3.0}
    expected = """
run
                   R@1     R@5    R@10
Image to text      1.0     2.0     3.0
Text to image      1.0     2.0     3.0
Image to image     9.0     2.0     3.0
Text to text       8.0     2.0     3.0
"""
    metrics = {"i2t": recalls, "t2i": recalls, "t2t": {**recalls, "r1": 8.0}, "i2i": {**recalls, "r1": 9.0}}
    assert lines(format_table(metrics, "run")) == lines(expected)


def test_rows_of_pictures_and_of_clips() -> None:
    """Pictures' rows have recalls and RSUM; clips' have the median rank, too; what is missing is a dash."""
    short = {"i2t": {"r1": 7.0}, "t2i": {}, "rsum": 5.0}
    expected = """
                   I2T R@1   R@5   R@10  T2I R@1  R@5  R@10   RSUM
a (single)            12.3  45.1  100.0      1.0  2.0   3.0  163.4
b (ensemble of 2)      7.0     -      -        -    -     -    5.0
"""
    found = format_rows([Row("a", METRICS, mark(1)), Row("b", short, mark(2))])
    assert found.split("\n") == expected.strip("\n").split("\n")
    expected = """
            I2T R@1    R@5    R@10  MedR   nMR  T2I R@1   R@5  R@10    MedR   nMR
a (single)    12.34  45.06  100.00   6.0  0.02     1.00  2.00  3.00  1234.0  0.33
"""
    clips = {key: value for key, value in CLIPS.items() if key != "rsum"}
    clips["t2i"] = {**clips["t2i"], "nmr": 0.33}
    assert format_rows([Row("a", clips, "single")]).split("\n") == expected.strip("\n").split("\n")


def test_labels() -> None:
    assert mark(1) == "single" and mark(3) == "ensemble of 3"
    assert label("a", "single", "5 folds") == "a (single, 5 folds)"
    assert label("ensemble of 2", "ensemble of 2") == "ensemble of 2"  # its name says it already


@pytest.mark.parametrize(
    ("protocol", "data", "count", "first", "best"),
    [
        ("f30k", "precomp", 6, "regions, BiGRU", 555.1),
        ("coco_1k", "coco", 10, "K = 1", 549.9),
        ("coco_5k", "coco", 9, "ResNet-152", 482.0),
    ],
)
def test_published_rows_of_pictures(protocol: str, data: str, count: int, first: str, best: float) -> None:
    rows = published_rows(protocol, data)
    assert len(rows) == count and rows[0].name.endswith(first)
    assert max(row.metrics.get("rsum", 0.0) for row in rows) == best
    assert {row.mark for row in rows if row.metrics.get("rsum") == best} == {"published, ensemble of 2"}
    assert rows[0].mark == "published, single"


def test_published_rows_of_both_parts_of_coco_and_of_clips() -> None:
    both = published_rows("coco", "coco")
    assert [list(row.metrics) for row in both] == [["coco_1k"]] * 10 + [["coco_5k"]] * 9
    assert [len(published_rows("video", data)) for data in ("tgif", "mrw")] == [2, 2]
    assert published_rows("video", "mrw")[0].metrics["i2t"] == {
        **{"r1": 0.16, "r5": 0.68, "r10": 1.8, "medr": 1586.0, "nmr": 0.32}
    }
    for protocol, data in (("retrieval", "precomp"), ("video", "precomp")):
        with pytest.raises(InputError, match="--published: the papers have nothing for"):
            published_rows(protocol, data)
