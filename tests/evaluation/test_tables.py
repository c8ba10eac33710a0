from typing import Any

import pytest
from helpers import random_scores

from vse.evaluation.bootstrap import bootstrap
from vse.evaluation.folds import fold_metrics
from vse.evaluation.tables import Row, format_rows, format_table, label, parts_of


@pytest.fixture
def metrics() -> dict[str, Any]:
    return fold_metrics(*random_scores(20))


@pytest.fixture
def two_parts(metrics: dict[str, Any]) -> dict[str, Any]:
    return {"coco_1k": {**metrics, "folds": 5}, "coco_5k": metrics}


def test_a_table_of_one_result(metrics: dict[str, Any]) -> None:
    side = metrics["i2t"]
    lines = format_table(metrics, "run").split("\n")
    assert lines[0] == "run" and lines[1].split() == ["R@1", "R@5", "R@10", "MedR", "MeanR"]
    assert lines[2] == "Image to text " + "".join(f"{side[key]:8.1f}" for key in ("r1", "r5", "r10", "medr", "meanr"))
    assert lines[3].startswith("Text to image ") and lines[4] == f"RSUM          {metrics['rsum']:8.1f}"
    assert len(lines) == 5


def test_a_table_of_clips() -> None:
    metrics = fold_metrics(*random_scores(20), clips=True)
    lines = format_table(metrics, "run").split("\n")
    assert lines[1].split()[-1] == "nMR" and lines[2].startswith("Video to text ") and lines[3].startswith("Text to v")
    assert lines[2].split()[3] == f"{metrics['i2t']['r1']:.2f}"
    assert lines[2].split()[-1] == f"{metrics['i2t']['nmr']:.2f}"


def test_a_table_for_each_part_and_the_sets_below(two_parts: dict[str, Any]) -> None:
    sets = {"image_slots_used": 3.5, "image_log_variance": -2.1, "image_rsum": [401.26, 8.0], "text_rsum": [7.0, 6.0]}
    lines = format_table({**two_parts, "sets": sets}, "run").split("\n")
    assert lines[0] == "run, coco_1k, mean of 5 folds" and lines[5] == "run, coco_5k"
    assert [line.split()[0] for line in lines].count("RSUM") == 2
    assert lines[10:] == [
        "Image sets      log within-set variance -2.10, 3.5 embeddings used",
        "Image sets      RSUM of each embedding alone: 401.3, 8.0",
        "Text sets       RSUM of each embedding alone: 7.0, 6.0",
    ]


def test_intervals_stand_below_what_they_are_of() -> None:
    scores, of = random_scores(20)
    for place, intervals in enumerate(bootstrap([scores, scores], of, samples=30)):
        lines = format_table({**fold_metrics(scores, of), "bootstrap": intervals}, "run").split("\n")
        low, high = intervals["t2i"]["r5"]
        assert lines[3].startswith("  95 %") and lines[5].split()[3] == f"±{(high - low) / 2:.1f}"
        low, high = intervals["rsum"]
        assert lines[7] == f"  95 %        {low:8.1f} to {high:.1f} (30 samples of the images)"
        assert lines[8:] == [[], ["                  +0.0 to +0.0 compared with the first"]][place]


def test_rows(metrics: dict[str, Any], two_parts: dict[str, Any]) -> None:
    rows = [Row("a|b", two_parts, "single"), Row("two", two_parts, "ensemble of 2")]
    first, second = format_rows(rows, markdown=True).split("\n\n")
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
    lines = format_rows(rows).split("\n")
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["paper", "(published,", "single)", *"------", "498.1"]
    assert lines[3].split() == ["recalls", "(published,", "single)", "70.0", *"------"]


def test_parts_and_labels(metrics: dict[str, Any], two_parts: dict[str, Any]) -> None:
    assert parts_of(metrics) == {"": metrics} and parts_of({**two_parts, "sets": {"a": 1.0}}) == two_parts
    assert parts_of({"i2t": {"map_at_r": 1.0}}).keys() == {""} and parts_of({"word2idx": {"a": 1}}) == {}
    assert label("a", "single") == "a (single)" and label("ensemble of 2", "ensemble of 2") == "ensemble of 2"
