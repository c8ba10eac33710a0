"""Protocols, ensembles, saved scores and bootstrap intervals."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Outcome
from torch import Tensor

from vse.errors import InputError
from vse.evaluation.protocols import bootstrap, evaluate_scores
from vse.evaluation.score import Member, ensemble
from vse.evaluation.tables import Row, format_rows, format_table
from vse.metrics import retrieval_metrics

Cli = Callable[..., Outcome]


def draw(images: int, per_image: int = 5, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Scores with some signal, and the image of each caption."""
    of = np.repeat(np.arange(images), per_image)
    scores = torch.randn(images, len(of), generator=torch.Generator().manual_seed(seed))
    scores[torch.from_numpy(of), torch.arange(len(of))] += 2.5
    return scores, of


def positives(images: int, of: np.ndarray) -> np.ndarray:
    return np.arange(images)[:, None] == of[None, :]


def test_folds_are_ranked_alone() -> None:
    """coco_1k is the mean over five slices in file order; coco has both; captions may stand in any order."""
    scores, of = draw(5000, per_image=1)
    order = np.random.default_rng(0).permutation(len(of))
    shuffled, of = scores[:, torch.from_numpy(order)], of[order]
    parts = []
    for fold in range(5):
        rows = slice(1000 * fold, 1000 * fold + 1000)
        parts.append(retrieval_metrics(scores[rows, rows], np.eye(1000, dtype=bool)))
    found = evaluate_scores(shuffled, of, "coco_1k")
    assert found["folds"] == 5
    for side in ("i2t", "t2i"):
        for key in ("r1", "r5", "r10", "medr", "meanr"):
            assert found[side][key] == pytest.approx(np.mean([part[side][key] for part in parts]))
    assert found["rsum"] == pytest.approx(np.mean([part["rsum"] for part in parts]))
    whole = evaluate_scores(shuffled, of, "coco_5k")
    assert whole == retrieval_metrics(shuffled, positives(5000, of))
    assert evaluate_scores(shuffled, of, "coco") == {"coco_1k": found, "coco_5k": whole}
    health = {"image_slots_used": 3.5, "image_log_variance": -2.1}
    table = format_table({"coco_1k": found, "coco_5k": whole, "sets": health}, "run")
    assert table.split("\n")[-1] == "Image sets      log within-set variance -2.10, 3.5 embeddings used"
    assert "run, coco_1k, mean of 5 folds" in table and "run, coco_5k" in table and table.count("RSUM") == 2


@pytest.mark.parametrize(
    ("protocol", "images", "message"),
    [
        ("f30k", 999, "protocol f30k is for a split of 1,000 images, this one has 999"),
        ("coco_1k", 1000, "protocol coco_1k is for a split of 5,000 images, this one has 1,000"),
        ("coco_5k", 4999, "protocol coco_5k is for a split of 5,000 images, this one has 4,999"),
        ("coco", 10, "protocol coco is for a split of 5,000 images, this one has 10"),
        ("video", 10, "protocol video is for clips"),
    ],
)
def test_a_protocol_refuses_another_split(protocol: str, images: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_scores(torch.zeros(images, images), np.arange(images), protocol)


def test_clips_have_their_normalised_median_rank() -> None:
    scores, of = draw(40)
    found = evaluate_scores(scores, of, "video", video=True)
    assert found["i2t"]["nmr"] == found["i2t"]["medr"] / 200 and found["t2i"]["nmr"] == found["t2i"]["medr"] / 40
    assert evaluate_scores(scores, of, "retrieval") == retrieval_metrics(scores, positives(40, of))


def slow_sample(scores: Tensor, of: np.ndarray, draws: np.ndarray) -> float:
    """RSUM of one sample: each query as often as its image was drawn, against all candidates."""
    total = 0.0
    for matrix, right, images in (
        (scores.numpy(), positives(len(scores), of), np.arange(len(scores))),
        (scores.numpy().T, positives(len(scores), of).T, of),
    ):
        for k in (1, 5, 10):
            hits, count = 0, 0
            for query, image in enumerate(images):
                best = matrix[query][right[query]].max()
                rank = int(((matrix[query] >= best) & ~right[query]).sum())
                hits += draws[image] * (rank < k)
                count += draws[image]
            total += 100 * hits / count
    return total


def test_bootstrap_equals_its_definition() -> None:
    """All members share the samples, and the difference is paired."""
    (first, of), (second, _) = draw(30), draw(30, seed=1)
    draws = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=40)
    sums = np.array([[slow_sample(scores, of, d) for d in draws] for scores in (first, second)])
    found = bootstrap([first, second], of, "retrieval", samples=40, seed=3)
    for result, own in zip(found, sums, strict=True):
        assert result["rsum"] == pytest.approx(np.quantile(own, [0.025, 0.975]).tolist()) and result["samples"] == 40
    assert found[1]["difference"] == pytest.approx(np.quantile(sums[1] - sums[0], [0.025, 0.975]).tolist())
    assert "difference" not in found[0]
    assert bootstrap([first, first], of, "retrieval", 20)[1]["difference"] == [0.0, 0.0]
    low, high = found[0]["i2t"]["r1"]
    assert low < retrieval_metrics(first, positives(30, of))["i2t"]["r1"] < high
    with pytest.raises(InputError, match="bootstrap needs 1 to 10,000 samples, got 0"):
        bootstrap([first], of, "retrieval", 0)


def test_bootstrap_intervals_cover() -> None:
    """Of many test sets from one distribution, about 95 % have the expected R@1 in their interval."""
    inside = []
    expected = np.mean([retrieval_metrics(*_one(seed))["i2t"]["r1"] for seed in range(1000, 1100)])
    for seed in range(100):
        scores, right = _one(seed)
        low, high = bootstrap([scores], right.argmax(0), "retrieval", 200)[0]["i2t"]["r1"]
        inside.append(low <= expected <= high)
    assert np.mean(inside) > 0.85


def _one(seed: int) -> tuple[Tensor, np.ndarray]:
    scores, of = draw(60, per_image=2, seed=seed)
    return scores, positives(60, of)


def test_an_ensemble_is_the_mean_of_scores() -> None:
    members = [Member(name, draw(10, seed=seed)[0], {}) for seed, name in enumerate("abc")]
    before = [member.scores.clone() for member in members]
    mean = ensemble(members)
    torch.testing.assert_close(mean.scores, torch.stack(before).mean(0))
    assert all(torch.equal(a, b.scores) for a, b in zip(before, members, strict=True))
    with pytest.raises(InputError, match=r"a has scores \(10, 50\), d \(11, 55\); expected the same corpus"):
        ensemble([members[0], Member("d", draw(11)[0], {})])


def test_rows() -> None:
    scores, of = draw(20)
    metrics = evaluate_scores(scores, of, "retrieval")
    both = {"coco_1k": {**metrics, "folds": 5}, "coco_5k": metrics}
    rows = [Row("a|b single", both, "single"), Row("two", both, "ensemble of 2")]
    first, second = format_rows(rows, True).split("\n\n")
    lines = [*first.split("\n"), *second.split("\n")]
    assert len(lines) == 8 and all(line.replace("\\|", "").count("|") == 9 for line in lines)
    assert lines[0].startswith("| coco_1k | I2T R@1 | R@5 | R@10 | T2I R@1 |") and lines[4].startswith("| coco_5k |")
    assert lines[2].startswith("| a\\|b single (single, 5 folds) |") and lines[7].startswith("| two (ensemble of 2) |")
    assert lines[2].endswith(f"| {metrics['rsum']:.1f} |")


def test_members_and_their_ensemble(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """From runs, checkpoints and saved scores; each is reported, and kept as asked."""
    for name, seed in (("a", 1), ("b", 2)):
        assert cli("train", *tiny, f"run.dir={tmp_path / name}", f"run.seed={seed}", "train.epochs=1").code == 0
    a, b, kept, json_file = tmp_path / "a", tmp_path / "b" / "last.pt", tmp_path / "a.npz", tmp_path / "all.json"
    assert cli("eval", a, "--save-scores", kept).code == 0
    both = cli("eval", a, b, "--bootstrap", "50", "--json", json_file, "--markdown")
    assert both.code == 0, both.err
    content = json.loads(json_file.read_text())
    assert list(content) == [str(a / "best.pt"), str(b), "ensemble of 2"]
    assert "ensemble of 2, test: 10 images, 50 captions" in both.out and "against the first" in both.out
    assert all("bootstrap" in metrics for metrics in content.values()) and "| ensemble of 2 |" in both.out
    again = cli("eval", kept, b, "--json", json_file)
    assert again.code == 0, again.err
    from_scores: dict[str, Any] = json.loads(json_file.read_text())
    assert from_scores["ensemble of 2"]["rsum"] == pytest.approx(content["ensemble of 2"]["rsum"])
    assert from_scores[str(kept)] == json.loads((a / "test.json").read_text())
    other, words = tmp_path / "other.npz", tmp_path / "words.json"
    np.savez(other, x=np.zeros(3))
    words.write_text(json.dumps({"word2idx": {"a": 1}}))
    for arguments, message in (
        ([a, a], "the same one twice; expected different members"),
        ([kept], "expected a run folder or checkpoint among the arguments"),
        ([a, kept, "--split", "dev"], "a.npz: its captions are not those of"),
        ([a, "--protocol", "f30k"], "protocol f30k is for a split of 1,000 images, this one has 10"),
        ([a, "--save-scores", tmp_path / "x.txt"], "x.txt: expected a file name that ends in .npz"),
        ([a, tmp_path / "none.npz"], "none.npz: no such file of scores"),
        ([a, tmp_path / "b" / ".." / "a"], "the same one twice; expected different members"),
        ([a, b, "--save-scores", kept, kept], "a.npz: is one of the members; expected another file for the scores"),
        ([a, "--save-scores", other], "other.npz: not a file of scores"),
        ([a, "--json", tmp_path / "a" / "config.yaml"], "config.yaml: is there and holds no metrics"),
        ([a, "--json", tmp_path / "a" / "best.pt"], "best.pt: is there and holds no metrics"),
        ([a, "--json", words], "words.json: is there and holds no metrics; expected a new file, or one of metrics"),
        ([a, "--json", "/dev/full"], "/dev/full: expected the name of a file"),
        ([a, tmp_path / "none"], "none: no such run folder or checkpoint"),
        ([a, "--bootstrap", "0"], "bootstrap needs 1 to 10,000 samples, got 0"),
    ):
        outcome = cli("eval", *arguments)
        assert outcome.code == 2 and message in outcome.error, arguments
    content = dict(np.load(kept))
    for changes, message in (
        (
            {"scores": content["scores"] * np.float32("nan")},
            "its scores are float32 of shape .10, 50., or not finite; expected",
        ),
        ({"scores": content["scores"].astype(str)}, "its scores are <U"),
        ({"scores": content["scores"][:5]}, "its scores are float32 of shape .5, 50."),
        ({"models": np.array(-5)}, "its number of models is -5"),
        ({"image_ids": content["image_ids"][::-1]}, "its image_ids are not those of"),
    ):
        np.savez(other, **{**content, **changes})
        outcome = cli("eval", a, other)
        assert outcome.code == 2 and re.search(message, outcome.error), changes.keys()
    kept.write_bytes(kept.read_bytes()[:200])
    assert "a.npz: not a file of scores" in cli("eval", a, kept).error
