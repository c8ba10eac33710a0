"""CxC and ECCV Caption: on the whole of COCO's 5K test, equal to eccv_caption's own output and to slow definitions."""

import csv
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eccv_caption
import numpy as np
import pytest
import torch
from helpers import WORDS, Outcome, random_embeddings, save_vse_infty, words_file
from torch import Tensor

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.encode import CorpusEmbeddings
from vse.evaluation.ensemble import ensemble
from vse.evaluation.judgements import (
    Judgements,
    cxc_metrics,
    cxc_within,
    eccv_metrics,
    read_judgements,
    within_metrics,
)
from vse.evaluation.protocols import PROTOCOLS, check_protocol, report
from vse.evaluation.score import CorpusScores, score
from vse.evaluation.score import judgements as module
from vse.similarity import cosine, smooth_chamfer

PUBLISHED_CXC = os.environ.get("VSE_CXC")


@pytest.fixture(scope="module")
def judged() -> Iterator[Any]:
    """The package's object, made once: it reads its files anew each time, and nothing in it changes."""
    metrics = eccv_caption.Metrics()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eccv_caption, "Metrics", lambda: metrics)
        yield metrics


@pytest.fixture(scope="module")
def coco(judged: Any) -> Corpus:
    """The ids of COCO's 5K test; its images and captions are not needed."""
    metrics = judged
    captions = metrics.coco_ids.tolist()
    images = [metrics.coco_gts["t2i"][caption][0] for caption in captions[::5]]
    return Corpus("coco", images, ["a"] * 25_000, np.repeat(np.arange(5000), 5), images, captions)


def test_equal_to_the_package(coco: Corpus) -> None:
    """The package itself, given full rankings."""
    images, captions = random_embeddings(coco.image_of_caption)
    scores = score(cosine, images, captions, progress=False)
    ids, labels = np.array(coco.image_ids), np.array(coco.caption_ids)
    rows, columns = (matrix.topk(100, dim=1).indices.numpy() for matrix in (scores, scores.T.contiguous()))
    i2t = dict(zip(ids.tolist(), labels[rows].tolist(), strict=True))
    t2i = dict(zip(labels.tolist(), ids[columns].tolist(), strict=True))
    asked = ("cxc_recalls", "eccv_map_at_r", "eccv_rprecision", "eccv_r1", "coco_5k_recalls")
    theirs = eccv_caption.Metrics().compute_all_metrics(i2t, t2i, target_metrics=asked)
    member = CorpusScores("a", scores)
    eccv, cxc, own = (report(member, coco, PROTOCOLS[name]) for name in ("eccv", "cxc", "coco_5k"))
    for side in ("i2t", "t2i"):
        assert 5 < eccv[side]["map_at_r"] < 95
        for key in ("map_at_r", "rprecision", "r1"):
            assert eccv[side][key] == pytest.approx(100 * theirs[f"eccv_{key}"][side], abs=1e-9)
        for k in (1, 5, 10):
            assert cxc[side][f"r{k}"] == pytest.approx(100 * theirs[f"cxc_r{k}"][side], abs=1e-9)
            assert own[side][f"r{k}"] == pytest.approx(100 * theirs[f"coco_5k_r{k}"][side], abs=1e-9)


def test_a_collapsed_model_scores_nothing(coco: Corpus) -> None:
    scores = torch.full((5000, 25_000), 0.3)
    for protocol in ("eccv", "cxc"):
        metrics = report(CorpusScores("a", scores), coco, PROTOCOLS[protocol])
        assert max(value for side in metrics.values() for value in side.values()) == 0.0


def test_ids_that_do_not_fit_are_named(coco: Corpus) -> None:
    scores, of = torch.zeros(5000, 25_000), coco.image_of_caption
    images, captions = list(coco.image_ids), list(coco.caption_ids)
    for args, message in (
        ((["x.jpg", *images[1:]], captions), "image id 'x.jpg' is no COCO id; expected a number"),
        (([999999999, *images[1:]], captions), r"image id 999999999 is not in COCO's 5K test \(1 of 5,000 are not\)"),
        ((images, list(range(10**9, 10**9 + 25_000))), r"caption id 1000000000 is not .*25,000.*\{split\}_capids.txt"),
        ((images[:-1], captions), rf"this corpus lacks image id {images[-1]} of COCO's 5K test \(1 are missing\)"),
        ((images, [captions[5], *captions[1:5], captions[0], *captions[6:]]), "describes image .* in COCO, but image"),
    ):
        for judge in (cxc_metrics, eccv_metrics):
            with pytest.raises(InputError, match=message):
                judge(scores, args[0], args[1], of)
    with pytest.raises(InputError, match="small: image id 'x.jpg' is no COCO id; expected a number"):
        check_protocol(
            PROTOCOLS["eccv"], Corpus("small", coco.images, coco.captions, of, ["x.jpg", *images[1:]], captions)
        )


def test_the_package_is_asked_for(coco: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "eccv_caption", None)
    with pytest.raises(InputError, match="need the package eccv_caption: pip install eccv_caption"):
        eccv_metrics(torch.zeros(1, 1), [1], [1], np.array([0]))


def slow_within(scores: Tensor, positives: list[set[int]]) -> dict[str, float]:
    """Item by item: an item is never its own answer, one without a positive is left out, a tie counts against."""
    hits = {1: 0, 5: 0, 10: 0}
    asked = 0
    for i, right in enumerate(positives):
        if not right:
            continue
        asked += 1
        best = max(float(scores[i, j]) for j in right)
        rank = sum(float(scores[i, j]) >= best for j in range(len(positives)) if j != i and j not in right)
        for k in hits:
            hits[k] += rank < k
    return {f"r{k}": 100 * count / asked for k, count in hits.items()}


@pytest.mark.parametrize("group", [None, np.arange(600) // 3])
def test_within_one_kind(group: np.ndarray | None) -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 40, (600, 600)) / 40).float()  # with ties
    scores.fill_diagonal_(1.0)
    ids = rng.permutation(10_000)[:600].tolist()
    places = rng.integers(0, 600, (150, 2))
    places = places[places[:, 0] != places[:, 1]]
    positives: list[set[int]] = [set() for _ in ids]
    for a, b in places.tolist():
        positives[a].add(b)
        positives[b].add(a)
    if group is not None:
        for i in range(600):
            positives[i] |= {j for j in range(600) if group[j] == group[i] and j != i}
    assert group is not None or not all(positives)
    found = cxc_within(lambda rows: scores[rows], ids, np.array(ids)[places], group)
    assert found == pytest.approx(slow_within(scores, positives))
    assert float(scores[3, 3]) == 1.0  # the caller's scores are as they were
    with pytest.raises(InputError, match="CxC judges no two items of this corpus alike"):
        cxc_within(lambda rows: scores[rows], ids, np.array([[ids[0], ids[0]]]))
    with pytest.raises(InputError, match="CxC judges item 10001, which is not in this corpus"):
        cxc_within(lambda rows: scores[rows], ids, np.array([[ids[0], 10_001]]), group)


def write_judgements(folder: Path, corpus: Corpus) -> Path:
    """Files in the published layout, with 200 positive pairs of images, 160 of captions, and 50 other pairs each."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for name, kind, pattern, ids, least, count in (
        ("sis_test.csv", "image", "COCO_val2014_{:012d}.jpg", corpus.image_ids, 2.5, 200),
        ("sts_test.csv", "caption", "COCO_val2014:sentid:{}", corpus.caption_ids, 3.0, 160),
    ):
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f"{kind}1", f"{kind}2", "agg_score", "sampling_method"])
            for place in range(count + 50):
                a, b = rng.choice(len(ids), 2, replace=False)
                score = rng.uniform(least, 5) if place < count else rng.uniform(0, least - 0.1)
                writer.writerow([pattern.format(ids[a]), pattern.format(ids[b]), f"{score:.2f}", "x"])
    return folder


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    labels = Corpus("ids", range(500), ["a"] * 500, np.arange(500), range(7, 507), range(9000, 9500))
    return write_judgements(tmp_path / "cxc", labels)


def test_judgements(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = read_judgements(judged)
    rows = list(csv.DictReader(open(judged / "sis_test.csv")))
    assert len(pairs.images) == 200 and len(rows) == 250
    assert pairs.images[0].tolist() == [int(rows[0][f"image{i}"][-16:-4]) for i in (1, 2)]
    assert len(pairs.captions) == 160 and set(pairs.captions.ravel()) <= set(range(9000, 9500))
    plain = (judged / "sts_test.csv").read_bytes()
    (judged / "sts_test.csv").unlink()
    with gzip.open(judged / "sts_test.csv.gz", "wb") as file:
        file.write(plain)
    assert np.array_equal(read_judgements(judged).captions, pairs.captions)
    for name in ("sts_test.csv.gz", "sis_test.csv"):
        (judged / name).unlink()
        with pytest.raises(InputError, match="sis_test.csv: no such file, nor|sts_test.csv: no such file, nor sts_te"):
            read_judgements(judged)


def test_another_number_of_positives_is_worth_a_warning(
    judged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that: a corrected or reduced file of judgements can be used."""
    read_judgements(judged)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: ") and "sis_test.csv: 200 pairs have an agg_score of at least 2.5" in first
    assert "sts_test.csv: 160 pairs have" in second and second.endswith("; in the published file 16,184 have")
    monkeypatch.setattr(module, "_IMAGES", module._IMAGES._replace(published=200))
    monkeypatch.setattr(module, "_CAPTIONS", module._CAPTIONS._replace(published=160))
    read_judgements(judged)
    assert capsys.readouterr().err == ""


def test_damaged_judgements(judged: Path) -> None:
    plain = (judged / "sts_test.csv").read_bytes()
    (judged / "sts_test.csv").unlink()
    head = plain.split(b"\r\n")[0]
    for content, message in (
        (b"\x1f\x8b junk", "cannot be read after line 1"),
        (gzip.compress(b"a,b\n1,2\n"), "lacks the column agg_score, caption1, caption2"),
        (gzip.compress(plain.replace(b"sentid:", b"sentid:x", 3)), "line 2: expected caption1"),
        (gzip.compress(plain.replace(b"sentid:", b"sentid:" + b"9" * 30, 1)), "line 2: expected"),
        (gzip.compress(head + b"\n:1,:2,nan,x"), "line 2: .* agg_score of 0 to 5"),
        (gzip.compress(head + b"\n:1,:2,93,x"), "line 2: .* agg_score of 0 to 5"),
        (gzip.compress(head + b"\n:1,:2"), "line 2: .* agg_score of 0 to 5"),
        (gzip.compress(head), "holds no pair with an agg_score of at least 3.0"),
        (gzip.compress(plain)[:-20], "cannot be read after line"),
        (gzip.compress(plain)[:40] + bytes(90), "cannot be read after line"),
    ):
        (judged / "sts_test.csv.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"sts_test.csv.gz: {message}"):
            read_judgements(judged)
    (judged / "sts_test.csv").write_bytes(plain[:-12])  # a plain file that is cut off within a line
    with pytest.raises(InputError, match="sts_test.csv: line 211: expected caption1 and caption2"):
        read_judgements(judged)


def test_an_ensemble_within_one_kind(coco: Corpus) -> None:
    """The mean of its models' scores, among images and among captions as well; saved scores have neither."""
    of = np.repeat(np.arange(60), 5)
    small = Corpus("small", range(60), ["a"] * 300, of, list(range(60)), list(range(300)))
    judgements = Judgements(np.array([[0, 1], [5, 9], [7, 50]]), np.array([[0, 20], [33, 44]]))
    members = []
    for k, similarity in ((1, cosine), (2, smooth_chamfer)):
        images, captions = random_embeddings(of, k, dim=4)
        scores = score(similarity, images, captions, progress=False)
        embeddings = CorpusEmbeddings(similarity, images, captions)
        members.append(CorpusScores(f"{k}", scores, embeddings=(embeddings,)))
    both = ensemble(members)
    assert both.models == 2 and both.name == "ensemble of 2"
    found = within_metrics(both, small, judgements)
    for side, ids, pairs, group in (
        ("images", small.image_ids, judgements.images, None),
        ("captions", small.caption_ids, judgements.captions, of),
    ):
        sets = [(m.embeddings[0].similarity, getattr(m.embeddings[0], side)) for m in members]
        mean = torch.stack([similarity(x, x) for similarity, x in sets]).mean(0)
        expected = cxc_within(lambda rows, mean=mean: mean[rows], ids, pairs, group)  # type: ignore[misc]
        assert found["i2i" if side == "images" else "t2t"] == pytest.approx(expected)
    assert ensemble([members[0]._replace(embeddings=()), members[1]]).embeddings == ()


def test_command_line(cli: Callable[..., Outcome], coco: Corpus, tmp_path: Path) -> None:
    """A split of COCO's size, with COCO's ids of images and captions beside the features."""
    precomp = tmp_path / "data" / "precomp"
    precomp.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(precomp / "testall_ims.npy", rng.standard_normal((5000, 2, 12)).astype(np.float32))
    for name, lines in (
        ("ids", coco.image_ids),
        ("capids", coco.caption_ids),
        ("caps", [" ".join(rng.choice(WORDS, 3)) for _ in range(25_000)]),
    ):
        (precomp / f"testall_{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    file, words = save_vse_infty(tmp_path / "model_best.pth"), words_file(tmp_path / "v.json", 29)
    command = ["eval", file, f"data.root={tmp_path / 'data'}", "--vocabulary", words, "--split", "testall"]
    outcome = cli(
        *command, "--protocol", "eccv", "--published", "--json", tmp_path / "eccv.json", "eval.batch_size=2500"
    )
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "eccv.json").read_text())
    assert set(metrics) == {"i2t", "t2i"} and set(metrics["i2t"]) == {"map_at_r", "rprecision", "r1"}
    assert "mAP@R" in outcome.out and re.search(r"DivE .*published, single\) +36.0 +- +- +51.0", outcome.out)
    (precomp / "testall_capids.txt").unlink()
    outcome = cli(*command, "--protocol", "cxc")
    assert outcome.code == 2 and "testall: caption id 0 is not in COCO's 5K test" in outcome.error
    assert "testall_capids" in outcome.error.replace("{split}", "testall") and "encoding" not in outcome.err


@pytest.mark.skipif(not PUBLISHED_CXC, reason="VSE_CXC, the folder of CxC's published files, is not set")
def test_published_judgements(coco: Corpus) -> None:
    """All ids are COCO's 5K test's; 4,791 images have a positive among the others."""
    pairs = read_judgements(Path(str(PUBLISHED_CXC)))
    assert set(pairs.images.ravel().tolist()) <= set(coco.image_ids)
    assert set(pairs.captions.ravel().tolist()) <= set(coco.caption_ids)
    assert len(set(pairs.images.ravel().tolist())) == 4791
