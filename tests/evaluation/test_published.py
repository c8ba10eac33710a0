from typing import Any

import numpy as np
import pytest
from helpers import corpus_of_ids, metrics_of, random_scores

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.protocols import PROTOCOLS
from vse.evaluation.published import PUBLISHED, published_results, published_rows
from vse.evaluation.tables import COLUMNS, Row, as_text, tables_of


def clips(per_clip: int) -> Corpus:
    return corpus_of_ids(np.repeat(np.arange(4), per_clip), clips=True, name="gifs")


def rows_of(protocol: str, data: str) -> list[Row]:
    results = published_results(PROTOCOLS[protocol], data)
    return published_rows(results, PROTOCOLS[protocol], clips(1))[0]


def test_every_result_can_be_printed() -> None:
    for result in PUBLISHED:
        assert result.protocol in PROTOCOLS and not PROTOCOLS[result.protocol].parts, result
        sides = {key: value for key, value in result.metrics.items() if key != "rsum"}
        assert sides.keys() <= {"i2t", "t2i", "i2i", "t2t"}
        assert all(side.keys() <= COLUMNS.keys() for side in sides.values()), result


def test_the_sums_are_those_of_the_recalls() -> None:
    complete = [r.metrics for r in PUBLISHED if "rsum" in r.metrics and "i2t" in r.metrics]
    assert len(complete) >= 2
    for metrics in complete:
        total = sum(metrics[side][key] for side in ("i2t", "t2i") for key in ("r1", "r5", "r10"))
        assert metrics["rsum"] == pytest.approx(total, abs=0.11)


def test_a_protocol_of_parts_shows_each_parts_results() -> None:
    protocol = PROTOCOLS["coco"]
    rows, left_out = published_rows(published_results(protocol, "karpathy"), protocol, clips(1))
    numbers = [(part, metrics.get("rsum")) for row in rows for part, metrics in row.metrics.items()]
    assert ("coco_1k", 520.8) in numbers and ("coco_5k", 421.9) in numbers and left_out == ""
    own: dict[str, Any] = metrics_of(*random_scores(20))
    table = as_text(tables_of([Row("own", {"coco_1k": own, "coco_5k": own}), *rows]))
    assert table.count("(published, ensemble of 2)") == 10 and table.count("521") + table.count("520.8") == 1


@pytest.mark.parametrize(("data", "rsum"), [("msrvtt", 174.7), ("vatex", 403.9)])
def test_sums_on_clips(data: str, rsum: float) -> None:
    """VSE∞'s table 4, on all captions of a clip."""
    results = published_results(PROTOCOLS["video"], data)
    rows, left_out = published_rows(results, PROTOCOLS["video"], clips(20))
    assert [row.metrics for row in rows] == [{"rsum": rsum}] and rows[0].name.startswith("VSE∞") and left_out == ""
    own: dict[str, Any] = metrics_of(*random_scores(20), clips=True)
    assert as_text(tables_of([Row("own", own), *rows])).split("\n")[-1].endswith(str(rsum))


@pytest.mark.parametrize("data", ["tgif", "mrw"])
def test_results_on_one_caption_per_clip(data: str) -> None:
    """They stand beside such a corpus only, and a line says why they are missing beside another."""
    results = published_results(PROTOCOLS["video"], data)
    rows, left_out = published_rows(results, PROTOCOLS["video"], clips(1))
    assert len(rows) == 2 and left_out == "" and all(row.name.startswith("PVSE") for row in rows)
    rows, left_out = published_rows(results, PROTOCOLS["video"], clips(2))
    assert rows == []
    expected = "Not shown: the published results are on one caption per clip, but gifs has several; add"
    assert left_out == f"{expected} data.options.captions=last to compare with them."


def test_where_the_papers_have_nothing() -> None:
    with pytest.raises(InputError, match="no numbers for protocol retrieval; expected f30k, coco_1k, coco_5k, coco, "):
        published_results(PROTOCOLS["retrieval"], "precomp")
    with pytest.raises(InputError, match="video on synthetic_clips; expected the data msrvtt, vatex, tgif, mrw"):
        published_results(PROTOCOLS["video"], "synthetic_clips")
    with pytest.raises(InputError, match="--published: the papers have no numbers for protocol video on precomp"):
        published_results(PROTOCOLS["video"], "precomp")


@pytest.mark.parametrize(
    ("protocol", "data", "count", "first", "best"),
    [
        ("f30k", "precomp", 12, "regions, BiGRU", 555.1),
        ("coco_1k", "coco", 16, "K = 1", 549.9),
        ("coco_5k", "coco", 15, "ResNet-152", 482.0),
    ],
)
def test_published_rows_of_pictures(protocol: str, data: str, count: int, first: str, best: float) -> None:
    rows = rows_of(protocol, data)
    assert len(rows) == count and rows[0].name.endswith(first)
    assert max(row.metrics.get("rsum", 0.0) for row in rows) == best
    assert {row.mark for row in rows if row.metrics.get("rsum") == best} == {"published, ensemble of 2"}
    assert rows[0].mark == "published, single"


def test_published_rows_of_both_parts_of_coco_and_of_clips() -> None:
    both = rows_of("coco", "coco")
    assert [list(row.metrics) for row in both] == [["coco_1k"]] * 16 + [["coco_5k"]] * 15
    assert [len(rows_of("video", data)) for data in ("tgif", "mrw")] == [2, 2]
    assert rows_of("video", "mrw")[0].metrics["i2t"] == {
        **{"r1": 0.16, "r5": 0.68, "r10": 1.8, "medr": 1586.0, "nmr": 0.32}
    }
