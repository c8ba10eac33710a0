import csv
import io
from typing import Any

import pytest
from helpers import metrics_of, random_scores

from vse.evaluation.tables import (
    FORMATS,
    Cell,
    Row,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    format_table,
    label,
    mark,
    parts_of,
    tables_of,
)

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
                  +3.3 to +14.0 compared with the first
"""
    assert lines(format_table({**METRICS, "bootstrap": bootstrap}, "run")) == lines(expected)
    del bootstrap["difference"]
    assert lines(format_table({**METRICS, "bootstrap": bootstrap}, "run")) == lines(expected)[:-1]


def test_the_parts_of_a_protocol_and_the_sets() -> None:
    sets = {"text_embeddings_used": 1.26, "text_log_variance": -6.994}
    table = lines(format_table({"coco_1k": {**METRICS, "folds": 5}, "coco_5k": METRICS, "sets": sets}, "run"))
    assert [line for line in table if line.startswith("run")] == ["run, coco_1k, mean of 5 folds", "run, coco_5k"]
    assert table[-1] == "Text sets       log within-set variance -6.99, embeddings used 1.3" and len(table) == 11


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
    found = as_text(tables_of([Row("a", METRICS, mark(1)), Row("b", short, mark(2))]))
    assert found.split("\n") == expected.strip("\n").split("\n")
    expected = """
            I2T R@1    R@5    R@10  MedR   nMR  T2I R@1   R@5  R@10    MedR   nMR
a (single)    12.34  45.06  100.00   6.0  0.02     1.00  2.00  3.00  1234.0  0.33
"""
    clips = {key: value for key, value in CLIPS.items() if key != "rsum"}
    clips["t2i"] = {**clips["t2i"], "nmr": 0.33}
    assert as_text(tables_of([Row("a", clips, "single")])).split("\n") == expected.strip("\n").split("\n")


def test_labels() -> None:
    assert mark(1) == "single" and mark(3) == "ensemble of 3"
    assert label("a", "single") == "a (single)" and label("a", "single", "5 folds") == "a (single, 5 folds)"
    assert label("ensemble of 2", "ensemble of 2") == "ensemble of 2"  # its name says it already
    assert label("a", "", "5 folds") == "a (5 folds)" and label("a", "") == "a"


def test_sets_beside_their_start() -> None:
    sets: dict[str, Any] = {"image_embeddings_used": 3.5, "image_log_variance": -2.1}
    sets["start"] = {"image_embeddings_used": 3.94, "image_log_variance": -2.066, "image_slots_used": 2.0}
    table = lines(format_table({**METRICS, "sets": sets}, "run"))
    expected = "log within-set variance -2.10 (at the start -2.07), embeddings used 3.5 (at the start 3.9)"
    assert table[5:] == [f"Image sets      {expected}"]


def test_each_embedding_of_a_set_alone() -> None:
    sets: dict[str, Any] = {"image_embeddings_used": 3.5, "image_log_variance": -2.1, "image_rsum": [401.26, 8.0]}
    sets |= {"text_embeddings_used": 1.0, "text_log_variance": -9.0, "text_rsum": [7.0, 6.0]}
    table = lines(format_table({**METRICS, "sets": sets}, "run"))
    assert table[5:] == [
        "Image sets      log within-set variance -2.10, embeddings used 3.5",
        "Image sets      RSUM of each embedding alone: 401.3, 8.0",
        "Text sets       log within-set variance -9.00, embeddings used 1.0",
        "Text sets       RSUM of each embedding alone: 7.0, 6.0",
    ]


@pytest.fixture
def metrics() -> dict[str, Any]:
    return metrics_of(*random_scores(20))


@pytest.fixture
def two_parts(metrics: dict[str, Any]) -> dict[str, Any]:
    return {"coco_1k": {**metrics, "folds": 5}, "coco_5k": metrics}


def test_rows(metrics: dict[str, Any], two_parts: dict[str, Any]) -> None:
    rows = [Row("a|b", two_parts, "single"), Row("two", two_parts, "ensemble of 2")]
    first, second = as_markdown(tables_of(rows)).split("\n\n")
    lines = [*first.split("\n"), *second.split("\n")]
    assert len(lines) == 8 and all(line.replace("\\|", "").count("|") == 9 for line in lines)
    assert lines[0] == "| coco_1k | I2T R@1 | R@5 | R@10 | T2I R@1 | R@5 | R@10 | RSUM |"
    assert lines[4].startswith("| coco_5k |") and lines[7].startswith("| two (ensemble of 2) |")
    assert lines[2].startswith("| a\\|b (single, 5 folds) |")
    assert lines[2].endswith(f"| {metrics['rsum']:.1f} |")


def test_rows_with_gaps(metrics: dict[str, Any]) -> None:
    """What a paper does not print is a dash; a row of another part is not there."""
    rows = [
        Row("own", metrics, "single"),
        Row("paper", {"rsum": 498.1}, "published, single"),
        Row("recalls", {"i2t": {"r1": 70.0}}, "published, single"),
        Row("other", {"coco_1k": {"rsum": 1.0}}, "published, single"),
    ]
    lines = as_text(tables_of(rows)).split("\n")
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["paper", "(published,", "single)", *"------", "498.1"]
    assert lines[3].split() == ["recalls", "(published,", "single)", "70.0", *"------"]


def test_parts(metrics: dict[str, Any], two_parts: dict[str, Any]) -> None:
    assert parts_of(metrics) == {"": metrics} and parts_of({**two_parts, "sets": {"a": 1.0}}) == two_parts
    assert parts_of({"i2t": {"map_at_r": 1.0}}).keys() == {""} and parts_of({"word2idx": {"a": 1}}) == {}


SIDE = {"r1": [10.0, 13.0], "r5": [40.0, 44.25], "r10": [99.0, 100.0]}
INTERVALS: dict[str, Any] = {"samples": 70, "i2t": SIDE, "t2i": SIDE, "rsum": [150.0, 170.0]}
DEVIATION = {"i2t": {"r1": 0.56, "r5": 0.0, "r10": 1.0, "medr": 0.0, "meanr": 2.0}, "t2i": {"r1": 0.25}, "rsum": 3.21}
MEAN: dict[str, Any] = {**METRICS, "deviation": DEVIATION}
BOTH: dict[str, Any] = {**MEAN, "bootstrap": {**INTERVALS, "difference": [-3.26, 14.0]}}


def test_a_cell() -> None:
    assert (
        Cell(None).text() == "-" and Cell(1.0).text() == "1.0" and Cell(1.25, digits=2, signed=True).text() == "+1.25"
    )
    assert Cell(62.14, deviation=0.36, interval=[60.1, 64.0]).text() == "62.1 ± 0.4 [60.1, 64.0]"
    assert Cell(62.14, deviation=0.36, interval=[60.1, 64.0]).text(intervals=False) == "62.1 ± 0.4"
    assert Cell(2.0, interval=[-1.0, 4.0], signed=True).text() == "+2.0 [-1.0, +4.0]"


def test_a_table_with_deviations() -> None:
    expected = """
run
                   R@1     R@5    R@10    MedR   MeanR
Image to text     12.3    45.1   100.0     6.0    17.2
  deviation       ±0.6    ±0.0    ±1.0    ±0.0    ±2.0
  95 %            ±1.5    ±2.1    ±0.5
Text to image      1.0     2.0     3.0  1234.0  4321.0
  deviation       ±0.2
  95 %            ±1.5    ±2.1    ±0.5
RSUM             163.4
  deviation       ±3.2
  95 %           150.0 to 170.0 (70 samples of the images)
                  -3.3 to +14.0 compared with the first
"""
    assert lines(format_table(BOTH, "run")) == lines(expected)


@pytest.fixture
def compared() -> list[Row]:
    """One run with intervals, and the mean of three with intervals, deviations and a difference."""
    return [Row("a_1", {**METRICS, "bootstrap": INTERVALS}), Row("b*", {**BOTH, "rsum": 165.0}, "n = 3")]


def test_rows_in_a_terminal_have_no_room_for_intervals(compared: list[Row]) -> None:
    expected = """
            I2T R@1         R@5         R@10    T2I R@1  R@5  R@10         RSUM  RSUM - first
a_1            12.3        45.1        100.0        1.0  2.0   3.0        163.4             -
b* (n = 3)  12.3 ± 0.6  45.1 ± 0.0  100.0 ± 1.0  1.0 ± 0.2  2.0   3.0  165.0 ± 3.2          +1.6
"""
    found = as_text(tables_of(compared)).split("\n")
    assert [line.split() for line in found] == [line.split() for line in lines(expected)]
    assert len({len(line) for line in found}) == 1


def test_markdown_has_deviations_and_intervals(compared: list[Row]) -> None:
    head, _, first, second = as_markdown(tables_of(compared)).split("\n")
    assert head.endswith("| RSUM | RSUM - first |")
    assert first.startswith("| a_1 | 12.3 [10.0, 13.0] | 45.1 [40.0, 44.2] |") and first.endswith(
        "[150.0, 170.0] | - |"
    )
    assert second.startswith("| b* (n = 3) | 12.3 ± 0.6 [10.0, 13.0] |")
    assert second.endswith("| 165.0 ± 3.2 [150.0, 170.0] | +1.6 [-3.3, +14.0] |")


def test_latex_has_deviations_and_intervals(compared: list[Row]) -> None:
    begin, top, head, mid, first, second, bottom, end = as_latex(tables_of(compared)).split("\n")
    assert begin == r"\begin{tabular}{lrrrrrrrr}" and end == r"\end{tabular}"
    assert [top, mid, bottom] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert head == r" & I2T R@1 & R@5 & R@10 & T2I R@1 & R@5 & R@10 & RSUM & RSUM - first \\"
    assert first.startswith(r"a\_1 & 12.3 [10.0, 13.0] & ") and first.endswith(r" & - \\")
    assert second.startswith(r"b* (n = 3) & 12.3 $\pm$ 0.6 [10.0, 13.0] & ")
    odd = as_latex(tables_of([Row("50%_&\\{x}~^#$ VSE∞", METRICS)])).split("\n")[4]
    assert odd.startswith(r"50\%\_\&\textbackslash{}\{x\}\textasciitilde{}\textasciicircum{}\#\$ VSE$\infty$ & 12.3")


def test_csv_has_columns_for_deviations_and_intervals(compared: list[Row]) -> None:
    first, second = csv.DictReader(io.StringIO(as_csv(tables_of(compared))))
    assert list(first)[:5] == ["name", "I2T R@1", "I2T R@1 deviation", "I2T R@1 low", "I2T R@1 high"]
    assert "T2I R@5" in first and "T2I R@5 deviation" not in first and "RSUM - first" in first
    assert first["name"] == "a_1" and first["I2T R@1"] == "12.3400" and first["I2T R@1 deviation"] == ""
    assert second["I2T R@5 high"] == "44.2500" and second["RSUM deviation"] == "3.2100"
    assert (second["RSUM - first"], second["RSUM - first low"]) == ("1.5600", "-3.2600") and first["RSUM - first"] == ""


def test_every_format_of_a_protocol_with_parts(two_parts: dict[str, Any]) -> None:
    tables = tables_of([Row("a", two_parts), Row("b", {"coco_5k": METRICS})])
    assert as_latex(tables).count(r"\toprule") == 2 and as_markdown(tables).count("|---") == 16
    records = list(csv.DictReader(io.StringIO(as_csv(tables))))
    expected = [("a (5 folds)", "coco_1k"), ("a", "coco_5k"), ("b", "coco_5k")]
    assert [(record["name"], record["part"]) for record in records] == expected
    assert set(FORMATS) == {"markdown", "latex", "csv"}
