import numpy as np
import pytest
import torch

import vse.metrics
from vse.metrics import query_ranks, retrieval_metrics


def slow_metrics(scores: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    """Sort every query's items, the worst order among equals, and look for the first positive."""
    ranks = []
    for row, real in zip(scores, positives, strict=True):
        if real.any():
            order = sorted(range(len(row)), key=lambda i: (-row[i], real[i]))  # a positive comes after its equals
            ranks.append(next(place for place, item in enumerate(order) if real[item]))
    recall = {f"r{k}": 100 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return {**recall, "medr": float(np.floor(np.median(ranks)) + 1), "meanr": float(np.mean(ranks) + 1)}


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_twin(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vse.metrics, "_CHUNK", 60)  # several chunks
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((23, 57)).astype(np.float32)
    if seed % 2:
        scores = scores.round(1)  # many ties
    positives = rng.random((23, 57)) < (0.02 if seed < 3 else 0.1)  # many to many; some queries have none
    found = retrieval_metrics(scores, positives)
    expected = {"i2t": slow_metrics(scores, positives), "t2i": slow_metrics(scores.T, positives.T)}
    assert found["i2t"] == pytest.approx(expected["i2t"]) and found["t2i"] == pytest.approx(expected["t2i"])
    assert found["rsum"] == pytest.approx(sum(e[k] for e in expected.values() for k in ("r1", "r5", "r10")))


def test_perfect_and_collapsed() -> None:
    positives = np.repeat(np.eye(50, dtype=bool), 5, axis=1)
    assert retrieval_metrics(positives.astype(np.float32), positives)["rsum"] == 600
    assert retrieval_metrics(np.zeros((50, 250)), positives)["rsum"] == 0


def test_ties_are_seen_in_float32() -> None:
    """Scores that differ only beyond float32 are equal."""
    scores = torch.tensor([[1.0 + 1e-12, 1.0]], dtype=torch.float64)
    assert query_ranks(scores, torch.tensor([[True, False]])).tolist() == [1]


def test_other_positives_do_not_count_as_ranked_above() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    assert query_ranks(scores, torch.tensor([[True, True, False]])).tolist() == [0]


def test_bad_inputs() -> None:
    eye = np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match="scores contain NaN"):
        retrieval_metrics(np.where(eye, np.nan, 0), eye)
    with pytest.raises(ValueError, match=r"shape \(queries, items\), got \(3, 3\) and \(2, 3\)"):
        retrieval_metrics(np.zeros((3, 3)), eye[:2])
    with pytest.raises(ValueError, match="no query has a positive"):
        retrieval_metrics(np.zeros((3, 3)), ~eye & eye)
    for shape in ((0, 3), (3, 0), (0, 0)):
        with pytest.raises(ValueError, match="no query has a positive"):
            query_ranks(np.zeros(shape), np.zeros(shape, bool))
    with pytest.raises(ValueError, match="positives must be bool, got torch.int64"):
        retrieval_metrics(np.zeros((3, 3)), eye.astype(int))
