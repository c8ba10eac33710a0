"""CxC and ECCV Caption: on the whole of COCO's 5K test, equal to eccv_caption's own output and to slow definitions."""

import csv
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import eccv_caption
import numpy as np
import pytest
import torch
from helpers import WORDS, Outcome, corpus_of_ids, random_embeddings, save_vse_infty, words_file
from torch import Tensor

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation import judgements as module
from vse.evaluation.blocks import blocks_of_matrix
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
from vse.similarity import chamfer, cosine, order

PUBLISHED_CXC = os.environ.get("VSE_CXC")


@pytest.fixture(scope="module")
def package() -> Iterator[Any]:
    """The package's object, made once: it reads its files anew each time, and nothing in it changes."""
    metrics = eccv_caption.Metrics()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eccv_caption, "Metrics", lambda: metrics)
        yield metrics


@pytest.fixture(scope="module")
def coco(package: Any) -> Corpus:
    """The ids of COCO's 5K test; its images and captions are not needed."""
    metrics = package
    captions = metrics.coco_ids.tolist()
    images = [metrics.coco_gts["t2i"][caption][0] for caption in captions[::5]]
    return corpus_of_ids(np.repeat(np.arange(5000), 5), name="coco", image_ids=images, caption_ids=captions)


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


@pytest.mark.slow
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
        ((images, ["y", *captions[1:]]), r"caption id 'y' is no COCO id; .*\{split\}_capids.txt"),
        (([999999999, *images[1:]], captions), r"image id 999999999 is not in COCO's 5K test \(1 of 5,000 are not\)"),
        ((images, list(range(10**9, 10**9 + 25_000))), r"caption id 1000000000 is not .*25,000.*\{split\}_capids.txt"),
        ((images[:-1], captions), rf"this corpus lacks image id {images[-1]} of COCO's 5K test \(1 are missing\)"),
        ((images, [captions[5], *captions[1:5], captions[0], *captions[6:]]), "describes image .* in COCO, but image"),
    ):
        for judge in (cxc_metrics, eccv_metrics):
            with pytest.raises(InputError, match=message):
                judge(blocks_of_matrix(scores), args[0], args[1], of)
    small = Corpus("small", coco.images, coco.captions, of, ["x.jpg", *images[1:]], captions)
    for name in ("eccv", "cxc"):
        with pytest.raises(InputError, match="small: image id 'x.jpg' is no COCO id; expected a number"):
            check_protocol(PROTOCOLS[name], small)


def test_the_package_is_asked_for(coco: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "eccv_caption", None)
    with pytest.raises(InputError, match="need the package eccv_caption: pip install eccv_caption"):
        eccv_metrics(blocks_of_matrix(torch.zeros(1, 1)), [1], [1], np.array([0]))


SIZE = 600  # more than what is ranked at a time


def slow_recalls(scores: Tensor, positives: list[set[int]]) -> dict[str, float]:
    """Sort the other items of each item that has a positive, a positive after its equals, and look for the first."""
    table = scores.tolist()
    ranks = []
    for item, right in enumerate(positives):
        if right:
            others = [other for other in range(len(table)) if other != item]
            others.sort(key=lambda other: (-table[item][other], other in right))
            ranks.append(next(place for place, other in enumerate(others) if other in right))
    return {f"r{k}": 100 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}


def partners(pairs: list[list[int]], group: np.ndarray | None, size: int) -> list[set[int]]:
    """The positives of each item: what it is paired with in either column, and its group; never itself."""
    found: list[set[int]] = [set() for _ in range(size)]
    for a, b in pairs:
        found[a].add(b)
        found[b].add(a)
    if group is not None:
        for i in range(size):
            found[i] |= {j for j in range(size) if group[j] == group[i]}
    return [right - {i} for i, right in enumerate(found)]


def middling_scores(positives: list[set[int]], signal: float) -> Tensor:
    """Scores in which an item is most like itself, and somewhat more like its positives than like others."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(positives), len(positives))).round(1)  # with ties
    for item, right in enumerate(positives):
        scores[item, list(right)] += signal
    np.fill_diagonal(scores, 9.0)
    return torch.from_numpy(scores).float()


def assert_in_the_middle(recalls: dict[str, float]) -> None:
    assert 10 < recalls["r1"] < recalls["r5"] < recalls["r10"] < 95


# Two of a group stand far apart, and no two groups need have the same size.
GROUPS = np.random.default_rng(5).integers(0, 250, SIZE)


@pytest.mark.parametrize("group", [None, GROUPS], ids=["pairs", "pairs and groups"])
def test_recalls_are_those_of_sorted_lists(group: np.ndarray | None) -> None:
    rng = np.random.default_rng(1)
    places = rng.integers(0, SIZE, (170, 2)).tolist()
    places += [[7, 7], [511, 3], [4, 512]]  # an item is no answer to itself; 512 are ranked at a time
    positives = partners(places, group, SIZE)
    scores = middling_scores(positives, 2.5)
    ids = (rng.permutation(10_000)[:SIZE]).tolist()
    found = cxc_within(blocks_of_matrix(scores), ids, np.array(ids)[np.array(places)], group)
    assert_in_the_middle(found)
    assert found == pytest.approx(slow_recalls(scores, positives))
    assert bool((scores.diagonal() == 9.0).all())  # the caller's scores are as they were


def test_each_pair_counts_both_ways() -> None:
    """Of one pair, one item finds the other at once and the other one does not."""
    scores = torch.zeros(30, 30)
    scores[3, 20], scores[20, 3] = 1.0, -1.0
    for pair in ([3, 20], [20, 3]):
        found = cxc_within(blocks_of_matrix(scores), range(30), np.array([pair]))
        assert found == {"r1": 50.0, "r5": 50.0, "r10": 50.0}


def test_an_item_is_neither_its_own_answer_nor_in_its_own_way() -> None:
    scores = torch.eye(30) * 5
    for place, other in ((2, 9), (9, 2)):
        scores[place, other] = 1.0  # second to the item itself
    assert cxc_within(blocks_of_matrix(scores), range(30), np.array([[2, 9]]))["r1"] == 100
    scores[9, 2] = scores[2, 9] = -1.0
    group = np.arange(30)
    group[9] = 2
    assert cxc_within(blocks_of_matrix(scores), range(30), np.zeros((0, 2), dtype=int), group)["r10"] == 0


def test_ids_of_other_items() -> None:
    equal = blocks_of_matrix(torch.zeros(30, 30))
    with pytest.raises(InputError, match="CxC judges no two items of this corpus alike"):
        cxc_within(equal, range(30), np.array([[4, 4]]))
    with pytest.raises(InputError, match="CxC judges item 31, which is not in this corpus"):
        cxc_within(equal, range(30), np.array([[4, 31]]))


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
def judged_folder(tmp_path: Path) -> Path:
    ids = corpus_of_ids(np.arange(500), image_ids=range(7, 507), caption_ids=range(9000, 9500))
    return write_judgements(tmp_path / "cxc", ids)


def test_judgements(judged_folder: Path) -> None:
    pairs = read_judgements(judged_folder)
    rows = list(csv.DictReader(open(judged_folder / "sis_test.csv")))
    assert len(pairs.images) == 200 and len(rows) == 250
    assert pairs.images[0].tolist() == [int(rows[0][f"image{i}"][-16:-4]) for i in (1, 2)]
    assert len(pairs.captions) == 160 and set(pairs.captions.ravel()) <= set(range(9000, 9500))
    plain = (judged_folder / "sts_test.csv").read_bytes()
    (judged_folder / "sts_test.csv").unlink()
    with gzip.open(judged_folder / "sts_test.csv.gz", "wb") as file:
        file.write(plain)
    assert np.array_equal(read_judgements(judged_folder).captions, pairs.captions)
    for name, missing in (("sts_test.csv.gz", "sts_test.csv"), ("sis_test.csv", "sis_test.csv")):
        (judged_folder / name).unlink()
        with pytest.raises(InputError, match=f"{missing}: no such file, nor {missing}.gz; expected Crisscrossed"):
            read_judgements(judged_folder)


def test_another_number_of_positives_is_worth_a_warning(
    judged_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that: a corrected or reduced file of judgements can be used."""
    read_judgements(judged_folder)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: ") and "sis_test.csv: 200 pairs have an agg_score of at least 2.5" in first
    assert "sts_test.csv: 160 pairs have" in second and second.endswith("; in the published file 16,184 have")
    monkeypatch.setattr(module, "_IMAGES", module._IMAGES._replace(published=200))
    monkeypatch.setattr(module, "_CAPTIONS", module._CAPTIONS._replace(published=160))
    read_judgements(judged_folder)
    assert capsys.readouterr().err == ""


def write_pairs(folder: Path, images: list[float], captions: list[float]) -> None:
    """CxC's two files with these scores, pair by pair; the ids count up."""
    for name, kind, pattern, scores in (
        ("sis", "image", "COCO_val2014_{:012d}.jpg", images),
        ("sts", "caption", "COCO_val2014:sentid:{}", captions),
    ):
        with open(folder / f"{name}_test.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f"{kind}1", f"{kind}2", "agg_score", "sampling_method"])
            writer.writerows([pattern.format(i), pattern.format(7 * i + 1), s, "x"] for i, s in enumerate(scores))


def test_a_pair_at_the_threshold_is_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 2.5 on for images, from 3 on for captions; nothing below, and in the order of the file."""
    images, captions = [2.5] * 21_816, [3.0] * 16_184  # as many as are published
    write_pairs(tmp_path, [2.49, *images, 0.0], [2.99, *captions, 2.5])
    found = read_judgements(tmp_path)
    for pairs, count in ((found.images, 21_816), (found.captions, 16_184)):
        first = np.arange(1, count + 1)
        assert np.array_equal(pairs, np.stack([first, 7 * first + 1], axis=1))
    assert capsys.readouterr().err == ""
    write_pairs(tmp_path, [*images, 2.5], captions[1:])
    read_judgements(tmp_path)
    first_line, second_line = capsys.readouterr().err.splitlines()
    assert "sis_test.csv: 21,817 pairs have" in first_line and "sts_test.csv: 16,183 pairs have" in second_line
    write_pairs(tmp_path, [*images, 5.01], captions)
    with pytest.raises(InputError, match="sis_test.csv: line 21818: "):
        read_judgements(tmp_path)


def test_damaged_judgements(judged_folder: Path) -> None:
    plain = (judged_folder / "sts_test.csv").read_bytes()
    (judged_folder / "sts_test.csv").unlink()
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
        (judged_folder / "sts_test.csv.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"sts_test.csv.gz: {message}"):
            read_judgements(judged_folder)
    (judged_folder / "sts_test.csv").write_bytes(plain[:-12])  # a plain file that is cut off within a line
    with pytest.raises(InputError, match="sts_test.csv: line 211: expected caption1 and caption2"):
        read_judgements(judged_folder)


def test_i2i_and_t2t_of_models_and_their_ensemble() -> None:
    """The row is the query, also where a similarity is not symmetric; an ensemble's scores are the mean."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    of = rng.permutation(np.repeat(np.arange(60), 3))
    corpus = corpus_of_ids(of)
    image_places, caption_places = rng.integers(0, 60, (40, 2)), rng.integers(0, 180, (50, 2))
    judgements = Judgements(np.array(corpus.image_ids)[image_places], np.array(corpus.caption_ids)[caption_places])
    members = []
    for name, similarity, size in (("a", chamfer, 2), ("b", order, 1)):
        images = torch.randn(60, size, 5, generator=generator)
        captions = images[torch.from_numpy(of)] + torch.randn(180, size, 5, generator=generator)
        for place, other in image_places.tolist():
            images[other] = 0.7 * images[place] + 0.6 * images[other]
        members.append(
            CorpusScores(name, torch.zeros(60, 180), embeddings=(CorpusEmbeddings(similarity, images, captions),))
        )
    results = []
    for member in (*members, ensemble(members)):
        expected = {}
        for key, pairs, group in (("i2i", image_places, None), ("t2t", caption_places, of)):
            sides = [(part.similarity, part.images if key == "i2i" else part.captions) for part in member.embeddings]
            mean = torch.stack([similarity(items, items) for similarity, items in sides]).mean(0)
            expected[key] = slow_recalls(mean, partners(pairs.tolist(), group, len(mean)))
        found = within_metrics(member, corpus, judgements)
        assert found["i2i"] == pytest.approx(expected["i2i"]) and found["t2t"] == pytest.approx(expected["t2t"])
        results.append(found)
    for key in ("i2i", "t2t"):
        assert_in_the_middle(results[0][key])
        assert results[0][key] != results[1][key] != results[2][key]
    lost = judgements._replace(captions=np.array([[5000, 1]]))
    with pytest.raises(InputError, match="small: CxC judges item 1, which is not in this corpus"):
        within_metrics(members[0], corpus, lost)


def test_only_cxc_with_judgements_and_embeddings_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's own test is 5,000 images, too many for here: the protocol's other half is replaced."""
    corpus = corpus_of_ids(np.arange(40))
    judgements = Judgements(np.array([[100, 101]]), np.array([[5000, 4999]]))
    embeddings = torch.randn(40, 1, 4)
    member = CorpusScores("a", torch.zeros(40, 40), embeddings=(CorpusEmbeddings(chamfer, embeddings, embeddings),))
    for name in ("cxc_metrics", "eccv_metrics"):
        monkeypatch.setattr(f"vse.evaluation.protocols.{name}", lambda *_: {"i2t": {}, "t2i": {}})
    for protocol, given, own, sides in (
        ("cxc", judgements, member, {"i2t", "t2i", "i2i", "t2t"}),
        ("cxc", None, member, {"i2t", "t2i"}),
        ("cxc", judgements, replace(member, embeddings=()), {"i2t", "t2i"}),
        ("eccv", judgements, member, {"i2t", "t2i"}),
    ):
        anywhere = replace(PROTOCOLS[protocol], images=None, captions=None)
        assert set(report(own, corpus, anywhere, given)) == sides


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
