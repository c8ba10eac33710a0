import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from helpers import noisy_scores, positives_of, random_scores, ranks_of, slow_ranks, uneven_captions
from torch import Tensor

from vse.errors import InputError
from vse.evaluation.bootstrap import bootstrap, check_samples
from vse.evaluation.folds import FoldRanks
from vse.metrics import retrieval_metrics

KS = (1, 5, 10)
Ranks = dict[str, list[tuple[int, int]]]  # direction -> (image of the query, rank)


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
    of = uneven_captions(40, 130)
    members = [noisy_scores(of, np.full(40, signal), seed) for seed, signal in enumerate((0.6, 1.2, 2.4))]
    found = bootstrap([[ranks_of(scores, of)] for scores in members], samples=60, seed=3)
    expected = slow_bootstrap([slow_ranks(scores, of) for scores in members], image_draws(40, 60, 3))
    assert_same(found, expected)
    assert found[1]["difference"][1] < found[2]["difference"][0]  # to the first, the third is the farther one
    assert all(0 < found[0][side]["r1"][0] < found[0][side]["r10"][1] < 95 for side in ("i2t", "t2i"))


def test_the_default_seed_is_zero() -> None:
    of = uneven_captions(30, 90)
    scores = noisy_scores(of, np.full(30, 1.5), 0)
    assert bootstrap([[ranks_of(scores, of)]], samples=30) == bootstrap([[ranks_of(scores, of)]], samples=30, seed=0)
    assert bootstrap([[ranks_of(scores, of)]], samples=30) != bootstrap([[ranks_of(scores, of)]], samples=30, seed=1)


def test_how_many_samples_there_may_be() -> None:
    scores, of = torch.eye(4), np.arange(4)
    assert bootstrap([[ranks_of(scores, of)]], samples=1)[0]["rsum"] == [600.0, 600.0]
    for samples in (-1, 0, 10_001):
        with pytest.raises(InputError, match=f"bootstrap needs 1 to 10,000 samples, got {samples}"):
            bootstrap([[ranks_of(scores, of)]], samples=samples)
    check_samples(10_000)


def test_images_without_a_caption_are_no_queries() -> None:
    """They stay candidates of the captions."""
    of = np.array([0, 0, 2, 3, 3, 3, 5, 7, 8, 9, 10, 11])
    scores = noisy_scores(of, np.full(12, 1.5), 0)
    found = bootstrap([[ranks_of(scores, of)]], samples=50, seed=1)
    assert_same(found, slow_bootstrap([slow_ranks(scores, of)], image_draws(12, 50, 1)))


def test_bootstrap_in_folds() -> None:
    """Queries are drawn by their own image, of whichever fold, and keep their fold's candidates."""
    of = uneven_captions(500, 560)
    scores = noisy_scores(of, np.repeat([0.5, 1.5, 2.5, 3.5, 4.5], 100), 0)
    found = bootstrap([[ranks_of(scores, of, folds=5)]], samples=20, seed=2)
    assert_same(found, slow_bootstrap([slow_ranks(scores, of, folds=5)], image_draws(500, 20, 2)))


def test_intervals_of_the_mean_of_runs() -> None:
    """Each sample's recalls are averaged over the runs; the difference is that of the means."""
    of = uneven_captions(30, 80)
    runs = [noisy_scores(of, np.full(30, signal), seed) for seed, signal in enumerate((0.6, 1.2, 2.4))]
    alone = noisy_scores(of, np.full(30, 1.0), 9)
    found = bootstrap([[ranks_of(alone, of)], [ranks_of(scores, of) for scores in runs]], samples=40, seed=3)
    draws = image_draws(30, 40, 3)
    sums = [sum_of_recalls(slow_ranks(scores, of), draws) for scores in (alone, *runs)]
    mean = np.mean(sums[1:], axis=0)
    assert found[1]["rsum"] == pytest.approx(interval(mean))
    assert found[1]["difference"] == pytest.approx(interval(mean - sums[0]))


def sum_of_recalls(ranks: Ranks, draws: np.ndarray) -> np.ndarray:
    """RSUM of each sample."""
    totals = []
    for draw in draws:
        total = 0.0
        for queries in ranks.values():
            for k in KS:
                times = [draw[image] for image, _ in queries]
                total += 100 * sum(draw[image] for image, place in queries if place < k) / sum(times)
        totals.append(total)
    return np.array(totals)


def test_intervals_of_one_model() -> None:
    scores, of = random_scores(30)
    found = bootstrap([[ranks_of(scores, of)]] * 2, samples=20)
    assert found[1]["difference"] == [0.0, 0.0]
    low, high = found[0]["i2t"]["r1"]
    assert low < retrieval_metrics(scores, positives_of(30, of))["i2t"]["r1"] < high


def test_intervals_cover() -> None:
    """Of many test sets from one distribution, about 95 % have the expected R@1 in their interval."""

    def one(seed: int) -> tuple[Tensor, np.ndarray]:
        return random_scores(60, per_image=2, seed=seed)

    recalls = [retrieval_metrics(s, positives_of(60, of))["i2t"]["r1"] for s, of in map(one, range(1000, 1100))]
    inside = []
    for seed in range(100):
        scores, of = one(seed)
        low, high = bootstrap([[ranks_of(scores, of)]], samples=200)[0]["i2t"]["r1"]
        inside.append(low <= np.mean(recalls) <= high)
    assert np.mean(inside) > 0.85


def test_samples_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, whatever the size of a block."""
    of = uneven_captions(40, 130)
    ranks = [[ranks_of(noisy_scores(of, np.full(40, signal), 0), of)] for signal in (0.6, 1.2)]
    whole = bootstrap(ranks, samples=50)
    for numbers in (1, 40 * 7, 40 * 25):
        monkeypatch.setattr("vse.evaluation.bootstrap._DRAWN", numbers)
        assert bootstrap(ranks, samples=50) == whole


def test_memory_does_not_grow_with_samples_times_captions() -> None:
    of = np.repeat(np.arange(1000), 20)
    places = torch.zeros(len(of), dtype=torch.long)
    ranks = [FoldRanks(places[:1000], places, np.arange(1000), of)]
    tracemalloc.start()
    bootstrap([[ranks]], samples=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2000 * len(of) / 3  # bytes of a weight of each caption in each sample


def test_samples_without_a_query_are_left_out() -> None:
    """With one image of three that has captions, about a third of the samples has none."""
    of = np.zeros(2, dtype=np.int64)
    scores = torch.tensor([[1.0, 0.5], [0.0, 2.0], [0.0, 0.0]])  # the second caption is nearer to another image
    found = bootstrap([[ranks_of(scores, of)]] * 2, samples=50)
    assert found[0]["i2t"]["r1"] == [100.0, 100.0] and found[0]["t2i"]["r1"] == [50.0, 50.0]
    assert found[0]["rsum"] == [550.0, 550.0] and found[1]["difference"] == [0.0, 0.0]
    seed = next(seed for seed in range(99) if image_draws(3, 1, seed)[0, 0] == 0)
    with pytest.raises(InputError, match="none of 1 bootstrap samples has an image with a caption; take more"):
        bootstrap([[ranks_of(scores, of)]], samples=1, seed=seed)
