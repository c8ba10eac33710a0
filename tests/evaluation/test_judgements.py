"""CxC and ECCV Caption: on the whole of COCO's 5K test, equal to eccv_caption's own output and to slow definitions."""

import csv
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import eccv_caption
import numpy as np
import pytest
import torch
from helpers import WORDS, Outcome, save_vse_infty, words_file
from torch import Tensor

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.judgements import Judgements, cxc_metrics, cxc_within, eccv_metrics, read_judgements
from vse.evaluation.score import Encoded, Member, ensemble, report, score, score_within
from vse.similarity import cosine, smooth_chamfer

PUBLISHED_CXC = os.environ.get("VSE_CXC")


@pytest.fixture(scope="module")
def coco() -> Corpus:
    """The ids of COCO's 5K test; its images and captions are not needed."""
    metrics = eccv_caption.Metrics()
    captions = metrics.coco_ids.tolist()
    images = [metrics.coco_gts["t2i"][caption][0] for caption in captions[::5]]
    return Corpus("coco", images, ["a"] * 25_000, np.repeat(np.arange(5000), 5), images, captions)


def embed(count: int, of: np.ndarray, k: int = 1, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Embedding sets of images and captions that are somewhat alike."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, k, dim, generator=generator)
    captions = images[torch.from_numpy(of)] + 0.8 * torch.randn(len(of), k, dim, generator=generator)
    return (torch.nn.functional.normalize(x, dim=-1) for x in (images, captions))  # type: ignore[return-value]


def test_equal_to_the_package(coco: Corpus) -> None:
    """The package itself, given full rankings."""
    images, captions = embed(5000, coco.image_of_caption)
    scores = score(cosine, images, captions, progress=False)
    ids, labels = np.array(coco.image_ids), np.array(coco.caption_ids)
    i2t = {int(ids[i]): labels[scores[i].topk(100).indices.numpy()].tolist() for i in range(5000)}
    t2i = {int(labels[j]): ids[scores[:, j].topk(100).indices.numpy()].tolist() for j in range(25_000)}
    asked = ("cxc_recalls", "eccv_map_at_r", "eccv_rprecision", "eccv_r1", "coco_5k_recalls")
    theirs = eccv_caption.Metrics().compute_all_metrics(i2t, t2i, target_metrics=asked)
    member = Member("a", scores, {})
    eccv, cxc = (report(member, coco, protocol) for protocol in ("eccv", "cxc"))
    own = report(member, coco, "coco_5k")
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
        metrics = report(Member("a", scores, {}), coco, protocol)
        assert max(value for side in metrics.values() for value in side.values()) == 0.0


def test_ids_that_do_not_fit_are_named(coco: Corpus) -> None:
    scores, of = torch.zeros(5000, 25_000), coco.image_of_caption
    images, captions = list(coco.image_ids), list(coco.caption_ids)
    for args, message in (
        ((["x.jpg", *images[1:]], captions), "image id 'x.jpg' is no COCO id, a number"),
        (([999999999, *images[1:]], captions), r"image id 999999999 is not of COCO's 5K test \(1 are not\)"),
        ((images, list(range(10**9, 10**9 + 25_000))), r"caption id 1000000000 is not .*25,000.*\{split\}_capids.txt"),
        ((images[:-1], captions), rf"image id {images[-1]} of COCO's 5K test is not in this corpus"),
        ((images, [captions[5], *captions[1:5], captions[0], *captions[6:]]), "caption id .* describes image"),
    ):
        for judge in (cxc_metrics, eccv_metrics):
            with pytest.raises(InputError, match=message):
                judge(scores, args[0], args[1], of)
    more = Corpus("more", range(5000), ["a"] * 25_010, np.arange(25_010) // 6, range(5000), range(25_010))
    for protocol in ("cxc", "coco_5k", "coco"):
        with pytest.raises(InputError, match="25,000 captions, this split has 25,010; .* data.options.per_image=5"):
            report(Member("a", scores, {}), more, protocol)
    small = Corpus("small", range(10), ["a"] * 10, np.arange(10), range(10), range(10))
    with pytest.raises(InputError, match="protocol cxc is for a split of 5,000 images, this one has 10"):
        report(Member("a", scores, {}), small, "cxc")


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
    """Files with as many positives as the published ones, and some other pairs."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for name, kind, pattern, ids, least, count in (
        ("sis_test.csv", "image", "COCO_val2014_{:012d}.jpg", corpus.image_ids, 2.5, 21_816),
        ("sts_test.csv", "caption", "COCO_val2014:sentid:{}", corpus.caption_ids, 3.0, 16_184),
    ):
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f"{kind}1", f"{kind}2", "agg_score", "sampling_method"])
            for place in range(count + 500):
                a, b = rng.choice(len(ids), 2, replace=False)
                score = rng.uniform(least, 5) if place < count else rng.uniform(0, least - 0.1)
                writer.writerow([pattern.format(ids[a]), pattern.format(ids[b]), f"{score:.2f}", "x"])
    return folder


def test_judgements(coco: Corpus, tmp_path: Path) -> None:
    folder = write_judgements(tmp_path / "cxc", coco)
    pairs = read_judgements(folder)
    rows = list(csv.DictReader(open(folder / "sis_test.csv")))
    assert len(pairs.images) == 21_816 and len(rows) == 22_316
    assert pairs.images[0].tolist() == [int(rows[0][f"image{i}"][-16:-4]) for i in (1, 2)]
    assert len(pairs.captions) == 16_184 and set(pairs.captions.ravel()) <= set(coco.caption_ids)
    plain = (folder / "sts_test.csv").read_bytes()
    (folder / "sts_test.csv").unlink()
    with gzip.open(folder / "sts_test.csv.gz", "wb") as file:
        file.write(plain)
    assert np.array_equal(read_judgements(folder).captions, pairs.captions)
    for content, message in (
        (b"\x1f\x8b junk", "sts_test.csv.gz: cannot be read after line 1"),
        (gzip.compress(b"a,b\n1,2\n"), "sts_test.csv.gz: lacks the column agg_score, caption1, caption2"),
        (
            gzip.compress(plain.replace(b"sentid:", b"sentid:x", 3)),
            "sts_test.csv.gz: line 2: expected caption1",
        ),
        (gzip.compress(plain.replace(b"sentid:", b"sentid:" + b"9" * 30, 1)), "sts_test.csv.gz: line 2: expected"),
        (gzip.compress(plain.split(b"\n")[0] + b"\n:1,:2,nan,x"), "sts_test.csv.gz: line 2: .* agg_score of 0 to 5"),
        (gzip.compress(plain.split(b"\n")[0] + b"\n:1,:2,93,x"), "sts_test.csv.gz: line 2: .* agg_score of 0 to 5"),
        (gzip.compress(plain.split(b"\n")[0] + b"\n:1,:2"), "sts_test.csv.gz: line 2: .* agg_score of 0 to 5"),
        (gzip.compress(plain.split(b"\n")[0]), "sts_test.csv.gz: holds 0 pairs with .*; the published"),
        (gzip.compress(plain)[:-20], "sts_test.csv.gz: cannot be read after line"),
        (gzip.compress(plain)[:40] + bytes(90), "sts_test.csv.gz: cannot be read after line"),
    ):
        (folder / "sts_test.csv.gz").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_judgements(folder)
    (folder / "sts_test.csv").write_bytes(plain[:-4000])  # cut off: a plain file has no end to tell
    with pytest.raises(InputError, match="sts_test.csv: (line|holds)"):
        read_judgements(folder)
    (folder / "sts_test.csv").unlink()
    (folder / "sts_test.csv.gz").unlink()
    with pytest.raises(InputError, match="sts_test.csv: no such file, nor sts_test.csv.gz; expected Crisscrossed"):
        read_judgements(folder)


def test_an_ensemble_within_one_kind(coco: Corpus) -> None:
    """The mean of its models' scores, among images and among captions as well; saved scores have neither."""
    of = np.repeat(np.arange(60), 5)
    small = Corpus("small", range(60), ["a"] * 300, of, list(range(60)), list(range(300)))
    judgements = Judgements(np.array([[0, 1], [5, 9], [7, 50]]), np.array([[0, 20], [33, 44]]))
    members = []
    for k, similarity in ((1, cosine), (2, smooth_chamfer)):
        images, captions = embed(60, of, k, dim=4)
        scores = score(similarity, images, captions, progress=False)
        members.append(Member(f"{k}", scores, {}, (Encoded(similarity, images, captions),)))
    both = ensemble(members)
    assert both.models == 2 and both.name == "ensemble of 2"
    found = score_within(both, small, judgements)
    for side, ids, pairs, group in (
        ("images", small.image_ids, judgements.images, None),
        ("captions", small.caption_ids, judgements.captions, of),
    ):
        embeddings = [(m.encoded[0].similarity, getattr(m.encoded[0], side)) for m in members]
        mean = torch.stack([similarity(x, x) for similarity, x in embeddings]).mean(0)
        expected = cxc_within(lambda rows, mean=mean: mean[rows], ids, pairs, group)  # type: ignore[misc]
        assert found["i2i" if side == "images" else "t2t"] == pytest.approx(expected)
    assert ensemble([members[0]._replace(encoded=()), members[1]]).encoded == ()


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
    assert outcome.code == 2 and "testall: caption id 0 is not of COCO's 5K test" in outcome.error
    assert "testall_capids" in outcome.error.replace("{split}", "testall") and "encoding" not in outcome.err


@pytest.mark.skipif(not PUBLISHED_CXC, reason="VSE_CXC, the folder of CxC's published files, is not set")
def test_published_judgements(coco: Corpus) -> None:
    """All ids are COCO's 5K test's; 4,791 images have a positive among the others."""
    pairs = read_judgements(Path(str(PUBLISHED_CXC)))
    assert set(pairs.images.ravel().tolist()) <= set(coco.image_ids)
    assert set(pairs.captions.ravel().tolist()) <= set(coco.caption_ids)
    assert len(set(pairs.images.ravel().tolist())) == 4791
