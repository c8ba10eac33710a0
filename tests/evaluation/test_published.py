from typing import Any

import numpy as np
import pytest
from helpers import random_scores

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.folds import fold_metrics
from vse.evaluation.protocols import PROTOCOLS
from vse.evaluation.published import PUBLISHED, published_results, published_rows
from vse.evaluation.tables import COLUMNS, Row, format_rows


def clips(per_clip: int) -> Corpus:
    of = np.repeat(np.arange(4), per_clip)
    names = list(range(len(of)))
    return Corpus("gifs", range(4), ["a"] * len(of), of, range(4), names, video=True)


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
    own: dict[str, Any] = fold_metrics(*random_scores(20))
    table = format_rows([Row("own", {"coco_1k": own, "coco_5k": own}, "single"), *rows])
    assert table.count("(published, ensemble of 2)") == 6 and table.count("521") + table.count("520.8") == 1


@pytest.mark.parametrize(("data", "rsum"), [("msrvtt", 174.7), ("vatex", 403.9)])
def test_sums_on_clips(data: str, rsum: float) -> None:
    """VSE∞'s table 4, on all captions of a clip."""
    results = published_results(PROTOCOLS["video"], data)
    rows, left_out = published_rows(results, PROTOCOLS["video"], clips(20))
    assert [row.metrics for row in rows] == [{"rsum": rsum}] and rows[0].name.startswith("VSE∞") and left_out == ""
    own: dict[str, Any] = fold_metrics(*random_scores(20), clips=True)
    assert format_rows([Row("own", own, "single"), *rows]).split("\n")[-1].endswith(str(rsum))


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
