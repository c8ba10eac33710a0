import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, Outcome, corpus_of_ids, metrics_of, random_scores

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation import tables
from vse.evaluation.protocols import PROTOCOLS, Protocol, check_split, find_protocol, own_pairs, report
from vse.evaluation.score import CorpusScores

MakeRun = Callable[..., Path]


def corpus(images: int, per_image: int, clips: bool = False) -> Corpus:
    return corpus_of_ids(np.repeat(np.arange(images), per_image), clips)


def test_the_table_is_consistent() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and all(not PROTOCOLS[part].parts for part in protocol.parts)
        for part in protocol.parts:
            assert (PROTOCOLS[part].images, PROTOCOLS[part].captions) == (protocol.images, protocol.captions)
        assert not (protocol.plain and (protocol.folds > 1 or protocol.parts))
    coco = {name: (p.images, p.captions) for name, p in PROTOCOLS.items() if p.captions is not None}
    assert coco == dict.fromkeys(("coco_1k", "coco_5k", "coco", "cxc", "eccv"), (5000, 25_000))
    assert [name for name, p in PROTOCOLS.items() if p.plain] == ["retrieval", "f30k", "coco_5k", "video"]
    assert [name for name, p in PROTOCOLS.items() if not p.bootstrap] == ["cxc", "eccv"]
    assert [name for name, p in PROTOCOLS.items() if p.judgements] == ["cxc"]
    assert PROTOCOLS["coco_1k"].folds == 5 and PROTOCOLS["f30k"].images == 1000


def test_metrics_under_each_of_cocos_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a split of 50 images instead of 5,000."""
    for name in ("coco_1k", "coco_5k", "coco"):
        monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], images=50, captions=100))
    scores, of = random_scores(50, per_image=2)
    member = CorpusScores("a", scores, sets={"image_slots_used": 1.0})
    found = report(member, corpus(50, 2), PROTOCOLS["coco"])
    expected = {"coco_1k": metrics_of(scores, of, folds=5), "coco_5k": metrics_of(scores, of)}
    assert found == {**expected, "sets": member.sets} and found["coco_1k"]["rsum"] > found["coco_5k"]["rsum"]
    for name, metrics in expected.items():
        assert report(replace(member, sets={}), corpus(50, 2), PROTOCOLS[name]) == metrics


def test_clips_have_their_metric_under_any_protocol() -> None:
    scores, of = random_scores(20, per_image=2)
    for name in ("retrieval", "video"):
        found = report(CorpusScores("a", scores), corpus(20, 2, clips=True), PROTOCOLS[name])
        assert found == metrics_of(scores, of, clips=True) and "nmr" in found["i2t"]


@pytest.mark.parametrize(
    ("protocol", "images", "captions", "message"),
    [
        ("f30k", 999, 4995, "protocol f30k is for a split of 1,000 images, this one has 999"),
        ("coco_1k", 1000, 5000, "protocol coco_1k is for a split of 5,000 images, this one has 1,000"),
        ("coco_5k", 4999, 25_000, "protocol coco_5k is for a split of 5,000 images, this one has 4,999"),
        ("coco", 10, 25_000, "protocol coco is for a split of 5,000 images, this one has 10"),
        ("cxc", 5000, 24_999, "protocol cxc is for 25,000 captions, this split has 24,999$"),
        ("coco_5k", 5000, 24_999, "protocol coco_5k is for 25,000 captions, this split has 24,999$"),
        ("coco", 5000, 25_001, "protocol coco is for 25,000 captions, this split has 25,001;"),
        ("coco", 5000, 25_010, "25,000 captions, this split has 25,010; with karpathy, data.options.per_image=5 takes"),
        ("video", 10, 10, "protocol video is for clips, but this corpus has pictures"),
    ],
)
def test_a_protocol_refuses_another_split(protocol: str, images: int, captions: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_split(PROTOCOLS[protocol], images, captions, clips=False)


def test_other_splits_are_fine() -> None:
    check_split(PROTOCOLS["f30k"], 1000, 4999, clips=False)
    check_split(PROTOCOLS["retrieval"], 5000, 7, clips=False)
    check_split(PROTOCOLS["video"], 5000, 7, clips=True)
    for name in ("coco", "coco_5k"):
        check_split(PROTOCOLS[name], 5000, 25_000, clips=False)


def test_a_protocol_is_found_by_its_name() -> None:
    assert find_protocol("f30k") is PROTOCOLS["f30k"]
    with pytest.raises(InputError, match="protocol 'cocoa': did you mean 'coco'?"):
        find_protocol("cocoa")


def worst_rank(scored: CorpusScores, corpus: Corpus, protocol: Protocol, judgements: Any) -> dict[str, Any]:
    """A metric that no other protocol has."""
    ranks = (scored.scores > scored.scores.diagonal()[:, None]).sum(1)
    return {"i2t": {"worst": float(ranks.max()) + 1}}


def test_a_new_protocol_is_one_record(cli: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a choice at the command line, checks its split, is evaluated, printed, bootstrapped and kept."""
    run = make_run()
    monkeypatch.setitem(PROTOCOLS, "halves", Protocol("halves", own_pairs, images=10, folds=2, bootstrap=True))
    both = replace(PROTOCOLS["coco"], name="both", images=10, captions=None, parts=("retrieval", "halves"))
    monkeypatch.setitem(PROTOCOLS, "both", both)
    monkeypatch.setitem(PROTOCOLS, "worst", Protocol("worst", worst_rank))
    monkeypatch.setitem(tables.COLUMNS, "worst", tables.Column("Worst"))

    outcome: Outcome = cli("eval", run, "--protocol", "halves", "--bootstrap", 20)
    assert outcome.code == 0 and "50 captions, mean of 2 folds" in outcome.out and "20 samples" in outcome.out
    halves = json.loads((run / "test_halves.json").read_text())
    assert halves["folds"] == 2 and halves["bootstrap"]["samples"] == 20

    outcome = cli("eval", run, "--protocol", "both", "--bootstrap", 20)
    assert outcome.code == 0 and "captions, retrieval\n" in outcome.out and "captions, halves, mean of 2" in outcome.out
    found = json.loads((run / "test_both.json").read_text())
    assert found["halves"] == halves and found["retrieval"]["bootstrap"]["samples"] == 20

    second = make_run("vse_infty", "run.seed=2")
    outcome = cli("eval", run, second, "--protocol", "both", "--bootstrap", 20, "--csv", "--json", run / "all.json")
    assert outcome.code == 0 and '(n = 2, 2 folds)",halves,' in outcome.out and "captions, halves, mean" in outcome.out
    group, others = (json.loads((folder / "test_both.json").read_text()) for folder in (run, second))
    means = json.loads((run / "all.json").read_text())
    for part in ("retrieval", "halves"):
        assert means[part]["rsum"] == pytest.approx((group[part]["rsum"] + others[part]["rsum"]) / 2, abs=1e-4)
        assert means[part]["deviation"]["rsum"] >= 0 and means[part]["bootstrap"]["samples"] == 20

    outcome = cli("eval", run, "--protocol", "worst", "--markdown")
    assert outcome.code == 0 and "|  | I2T Worst |" in outcome.out and "   Worst\n" in outcome.out
    assert set(json.loads((run / "test_worst.json").read_text())["i2t"]) == {"worst"}
    assert "--protocol worst" in cli("eval", run, "--protocol", "worst", "--bootstrap", 9).error
    assert "no numbers for protocol worst" in cli("eval", run, "--protocol", "worst", "--published").error


def test_no_code_asks_for_a_protocol_by_name() -> None:
    """What differs between protocols stands in their records."""
    for path in (*(ROOT / "vse" / "evaluation").glob("*.py"), ROOT / "vse" / "cli.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
                assert not named & PROTOCOLS.keys(), f"{path}: line {node.lineno}"
