"""Folds, bootstrap intervals and ensembles where captions are unequally many, against slow definitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.protocols import bootstrap, check_samples, check_split, evaluate_scores
from vse.evaluation.score import Encoded, Member, ensemble, read_scores, report, save_scores, score
from vse.similarity import chamfer, cosine, smooth_chamfer

KS = (1, 5, 10)
Ranks = dict[str, list[tuple[int, int]]]  # direction -> (image of the query, rank)


def uneven(images: int, captions: int, seed: int = 0) -> np.ndarray:
    """The image of each caption: at least one for each, some have many, in no order."""
    rng = np.random.default_rng(seed)
    favourites = rng.integers(0, max(1, images // 4), captions - images)
    return rng.permutation(np.concatenate([np.arange(images), favourites]))


def noisy_scores(of: np.ndarray, signal: np.ndarray, seed: int) -> Tensor:
    """Scores whose positives stand out by their image's ``signal``."""
    scores = torch.randn(len(signal), len(of), generator=torch.Generator().manual_seed(seed))
    scores[torch.from_numpy(of), torch.arange(len(of))] += torch.from_numpy(signal[of]).float()
    return scores


def slow_ranks(scores: np.ndarray, of: np.ndarray, folds: int = 1) -> Ranks:
    """The rank of each query among its fold's candidates."""
    size = len(scores) // folds
    fold_of = of // size
    ranks: Ranks = {"i2t": [], "t2i": []}
    for image in range(len(scores)):
        candidates = fold_of == image // size
        own = candidates & (of == image)
        if own.any():
            best = scores[image, own].max()
            ranks["i2t"].append((image, int((scores[image, candidates & ~own] >= best).sum())))
    for caption, image in enumerate(of.tolist()):
        first = image // size * size
        column = scores[first : first + size, caption]
        ranks["t2i"].append((image, int((column >= scores[image, caption]).sum()) - 1))
    return ranks


def slow_bootstrap(all_ranks: list[Ranks], draws: np.ndarray) -> list[dict[str, Any]]:
    """Each query as often as its image was drawn; intervals of each recall, of RSUM, and of what the first has less."""
    results: list[dict[str, Any]] = []
    first = np.zeros(len(draws))
    for number, ranks in enumerate(all_ranks):
        result: dict[str, Any] = {"samples": len(draws)}
        total = np.zeros(len(draws))
        for side, queries in ranks.items():
            images, places = np.array(queries).T
            result[side] = {}
            for k in KS:
                recalls = []
                for draw in draws:
                    times = draw[images]
                    recalls.append(100 * times[places < k].sum() / times.sum())
                result[side][f"r{k}"] = interval(np.array(recalls))
                total += recalls
        result["rsum"] = interval(total)
        if number == 0:
            first = total
        else:
            result["difference"] = interval(total - first)
        results.append(result)
    return results


def interval(values: np.ndarray) -> list[float]:
    ordered = np.sort(values)
    ends = []
    for share in (0.025, 0.975):
        place = share * (len(ordered) - 1)
        low = int(place)
        ends.append(float(ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])))
    return ends


def assert_same(found: Any, expected: Any) -> None:
    """Dicts and lists of numbers, with the same keys in both."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list) and isinstance(expected[0], dict):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == pytest.approx(expected)


def image_draws(images: int, samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)


def test_bootstrap_of_three_members_with_unequal_captions() -> None:
    """Every recall's interval; the differences of all are to the first member, not to the one before."""
    of = uneven(40, 130)
    members = [noisy_scores(of, np.full(40, signal), seed) for seed, signal in enumerate((0.6, 1.2, 2.4))]
    found = bootstrap(members, of, "retrieval", samples=60, seed=3)
    expected = slow_bootstrap([slow_ranks(scores.numpy(), of) for scores in members], image_draws(40, 60, 3))
    assert_same(found, expected)
    assert found[1]["difference"][1] < found[2]["difference"][0]  # to the first, the third is the farther one
    assert all(0 < found[0][side]["r1"][0] < found[0][side]["r10"][1] < 95 for side in ("i2t", "t2i"))


def test_the_default_seed_is_zero() -> None:
    of = uneven(30, 90)
    scores = noisy_scores(of, np.full(30, 1.5), 0)
    assert bootstrap([scores], of, "retrieval", 30) == bootstrap([scores], of, "retrieval", 30, seed=0)
    assert bootstrap([scores], of, "retrieval", 30) != bootstrap([scores], of, "retrieval", 30, seed=1)


def test_how_many_samples_there_may_be() -> None:
    scores, of = torch.eye(4), np.arange(4)
    assert bootstrap([scores], of, "retrieval", 1)[0]["rsum"] == [600.0, 600.0]
    for samples in (-1, 0, 10_001):
        with pytest.raises(InputError, match=f"bootstrap needs 1 to 10,000 samples, got {samples}"):
            bootstrap([scores], of, "retrieval", samples)
    check_samples(10_000)


def test_images_without_a_caption_are_no_queries() -> None:
    """They stay candidates of the captions."""
    of = np.array([0, 0, 2, 3, 3, 3, 5, 7, 8, 9, 10, 11])
    scores = noisy_scores(of, np.full(12, 1.5), 0)
    found = bootstrap([scores], of, "retrieval", samples=50, seed=1)
    assert_same(found, slow_bootstrap([slow_ranks(scores.numpy(), of)], image_draws(12, 50, 1)))


@pytest.fixture(scope="module")
def folds() -> tuple[Tensor, np.ndarray]:
    """5,000 images, five folds of very different difficulty, and unequally many captions in no order."""
    of = uneven(5000, 5600)
    signal = np.repeat([0.5, 1.5, 2.5, 3.5, 4.5], 1000)
    return noisy_scores(of, signal, 0), of


def test_bootstrap_in_folds(folds: tuple[Tensor, np.ndarray]) -> None:
    """Queries are drawn by their own image, of whichever fold, and keep their fold's candidates."""
    scores, of = folds
    found = bootstrap([scores], of, "coco_1k", samples=20, seed=2)
    ranks = slow_ranks(scores.numpy(), of, folds=5)
    assert_same(found, slow_bootstrap([ranks], image_draws(5000, 20, 2)))


def test_folds_with_unequal_captions(folds: tuple[Tensor, np.ndarray]) -> None:
    """The folds' mean is not weighted by their numbers of captions."""
    scores, of = folds
    found = evaluate_scores(scores, of, "coco_1k")
    ranks = slow_ranks(scores.numpy(), of, folds=5)
    total = 0.0
    for side, queries in ranks.items():
        parts = [[rank for image, rank in queries if image // 1000 == fold] for fold in range(5)]
        for k in KS:
            expected = float(np.mean([100 * np.mean(np.array(part) < k) for part in parts]))
            assert found[side][f"r{k}"] == pytest.approx(expected)
            total += expected
        assert found[side]["medr"] == pytest.approx(np.mean([np.floor(np.median(part)) + 1 for part in parts]))
        assert found[side]["meanr"] == pytest.approx(np.mean([np.mean(part) + 1 for part in parts]))
    assert found["rsum"] == pytest.approx(total) and found["folds"] == 5


@pytest.mark.parametrize(("protocol", "right", "wrong"), [("coco_5k", 25_000, 24_999), ("coco", 25_000, 25_001)])
def test_a_split_of_coco_has_25000_captions(protocol: str, right: int, wrong: int) -> None:
    check_split(5000, protocol, False, right)
    check_split(5000, protocol, False)
    with pytest.raises(InputError, match=f"protocol {protocol} is for 25,000 captions, this split has {wrong:,}"):
        check_split(5000, protocol, False, wrong)


def test_other_protocols_take_any_number_of_captions() -> None:
    check_split(1000, "f30k", False, 4999)
    check_split(5000, "retrieval", False, 7)
    check_split(5000, "video", True, 7)


def test_the_protocols_for_clips() -> None:
    """The normalised median rank stands beside the median under any protocol, and has its side's candidates."""
    of = uneven(20, 90)
    scores = noisy_scores(of, np.full(20, 1.0), 0)
    for protocol in ("retrieval", "video"):
        found = evaluate_scores(scores, of, protocol, video=True)
        for side, candidates in (("i2t", 90), ("t2i", 20)):
            assert found[side]["nmr"] == pytest.approx(found[side]["medr"] / candidates)
    assert "nmr" not in evaluate_scores(scores, of, "retrieval")["i2t"]


def member(name: str, seed: int, models: int = 1) -> Member:
    return Member(name, torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)), {}, models=models)


def test_a_member_that_stands_for_two_models() -> None:
    """Members weigh the same, however many models each stands for; the name counts the models."""
    parts = [member("a", 0, models=2), member("b", 1), member("c", 2, models=3)]
    both = ensemble(parts)
    torch.testing.assert_close(both.scores, (parts[0].scores + parts[1].scores + parts[2].scores) / 3)
    assert both.models == 6 and both.name == "ensemble of 6" and both.encoded == () and both.sets == {}
    encoded = Encoded(cosine, torch.ones(6, 1, 2), torch.ones(9, 1, 2))
    parts = [parts[0], parts[1]._replace(encoded=(encoded,))]
    assert ensemble(parts).encoded == ()  # those of one are not those of all
    assert ensemble([parts[1], parts[1]]).encoded == (encoded, encoded)


def small_corpus(**changes: Any) -> Corpus:
    values: dict[str, Any] = {
        "name": "small",
        "images": range(6),
        "captions": [f"caption {i}" for i in range(9)],
        "image_of_caption": np.array([0, 1, 2, 3, 4, 5, 5, 5, 0]),
        "image_ids": [f"i{i}" for i in range(6)],
        "caption_ids": list(range(9)),
    }
    return Corpus(**(values | changes))


def test_saved_scores_come_back_with_their_number_of_models(tmp_path: Path) -> None:
    saved = member("both", 0, models=2)
    save_scores(tmp_path / "a.npz", saved, small_corpus())
    found = read_scores(tmp_path / "a.npz", small_corpus())
    assert torch.equal(found.scores, saved.scores) and found.models == 2 and found.encoded == ()
    assert found.name == str(tmp_path / "a.npz") and ensemble([found, member("b", 1)]).name == "ensemble of 3"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("image_ids", ["i1", "i0", "i2", "i3", "i4", "i5"]),
        ("caption_ids", [1, 0, *range(2, 9)]),
        ("captions", ["caption 1", "caption 0", *(f"caption {i}" for i in range(2, 9))]),
    ],
)
def test_saved_scores_of_another_order_are_refused(tmp_path: Path, key: str, values: list[Any]) -> None:
    save_scores(tmp_path / "a.npz", member("a", 0), small_corpus())
    with pytest.raises(InputError, match=f"a.npz: its {key} are not those of small"):
        read_scores(tmp_path / "a.npz", small_corpus(**{key: values}))


def test_a_report_keeps_the_sets_health_of_the_member() -> None:
    sets = {"image_slots_used": 1.5, "image_log_variance": -2.0}
    one = member("a", 0)
    assert report(one._replace(sets=sets), small_corpus(), "retrieval")["sets"] == sets
    assert "sets" not in report(one, small_corpus(), "retrieval")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scored_in_float32(dtype: torch.dtype) -> None:
    """So that pairs which half precision cannot tell apart keep their order."""
    torch.manual_seed(0)
    for similarity, size in ((cosine, 1), (chamfer, 3), (smooth_chamfer, 3)):
        images, captions = (torch.randn(count, size, 16).to(dtype) for count in (7, 11))
        found = score(similarity, images, captions)
        assert found.dtype == torch.float32
        expected = similarity(images.double(), captions.double())
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
