import numpy as np
import pytest
from helpers import positives_of, random_scores
from torch import Tensor

from vse.errors import InputError
from vse.evaluation.bootstrap import bootstrap
from vse.metrics import retrieval_metrics


def slow_sample(scores: Tensor, of: np.ndarray, draws: np.ndarray, folds: int = 1) -> float:
    """RSUM of one sample: each query as often as its image was drawn, against the candidates of its fold."""
    matrix, right = scores.numpy(), positives_of(len(scores), of)
    fold = np.arange(len(scores)) // (len(scores) // folds)
    total = 0.0
    for k in (1, 5, 10):
        hits, count = 0, 0
        for query, image in enumerate(range(len(scores))):
            candidates = fold[of] == fold[image]
            best = matrix[query, right[query]].max()
            rank = int((matrix[query, candidates & ~right[query]] >= best).sum())
            hits += draws[image] * int(rank < k)
            count += draws[image]
        total += 100 * hits / count
        hits, count = 0, 0
        for query, image in enumerate(of):
            candidates = (fold == fold[image]) & (np.arange(len(scores)) != image)
            rank = int((matrix[candidates, query] >= matrix[image, query]).sum())
            hits += draws[image] * int(rank < k)
            count += draws[image]
        total += 100 * hits / count
    return total


@pytest.mark.parametrize("folds", [1, 3])
def test_equals_its_definition(folds: int) -> None:
    """All members share the samples, and the difference is paired."""
    (first, of), (second, _) = random_scores(30), random_scores(30, seed=1)
    draws = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=40)
    sums = np.array([[slow_sample(scores, of, d, folds) for d in draws] for scores in (first, second)])
    found = bootstrap([first, second], of, folds, samples=40, seed=3)
    for result, own in zip(found, sums, strict=True):
        assert result["rsum"] == pytest.approx(np.quantile(own, [0.025, 0.975]).tolist()) and result["samples"] == 40
    assert found[1]["difference"] == pytest.approx(np.quantile(sums[1] - sums[0], [0.025, 0.975]).tolist())
    assert "difference" not in found[0]


def test_intervals_of_one_model() -> None:
    scores, of = random_scores(30)
    found = bootstrap([scores, scores], of, samples=20)
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
        low, high = bootstrap([scores], of, samples=200)[0]["i2t"]["r1"]
        inside.append(low <= np.mean(recalls) <= high)
    assert np.mean(inside) > 0.85


@pytest.mark.parametrize("samples", [0, 10_001])
def test_a_number_of_samples_that_means_nothing(samples: int) -> None:
    with pytest.raises(InputError, match=f"bootstrap needs 1 to 10,000 samples, got {samples}"):
        bootstrap([random_scores(5)[0]], np.arange(5), samples=samples)
