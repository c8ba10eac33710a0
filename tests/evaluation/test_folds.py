from typing import Any

import numpy as np
import pytest
import torch
from helpers import metrics_of, noisy_scores, positives_of, random_scores, ranks_of, slow_ranks, uneven_captions

from vse.metrics import retrieval_metrics


def test_folds_are_ranked_alone() -> None:
    """The mean over slices of the images in their order; captions may stand in any order."""
    scores, of = random_scores(50, per_image=2)
    order = np.random.default_rng(0).permutation(len(of))
    shuffled, of_shuffled = scores[:, torch.from_numpy(order)], of[order]
    parts: list[dict[str, Any]] = []
    for fold in range(5):
        part = scores[10 * fold : 10 * fold + 10, 20 * fold : 20 * fold + 20]
        parts.append(retrieval_metrics(part, positives_of(10, np.repeat(np.arange(10), 2))))
    found = metrics_of(shuffled, of_shuffled, folds=5)
    assert found["folds"] == 5
    for side in ("i2t", "t2i"):
        for key in ("r1", "r5", "r10", "medr", "meanr"):
            assert found[side][key] == pytest.approx(np.mean([part[side][key] for part in parts]))
    assert found["rsum"] == pytest.approx(np.mean([part["rsum"] for part in parts]))
    assert metrics_of(shuffled, of_shuffled) == retrieval_metrics(shuffled, positives_of(50, of_shuffled))


def test_a_fold_knows_the_images_of_its_captions() -> None:
    folds = ranks_of(torch.arange(12.0).view(4, 3), np.array([3, 0, 2]), folds=2)
    assert [fold.images.tolist() for fold in folds] == [[0, 1], [2, 3]]
    assert [fold.image_of_caption.tolist() for fold in folds] == [[0], [3, 2]]
    assert [fold.i2t.tolist() for fold in folds] == [[0, -1], [0, 1]]
    assert [fold.t2i.tolist() for fold in folds] == [[1], [0, 1]]


def test_clips_have_their_normalised_median_rank() -> None:
    scores, of = random_scores(40)
    found = metrics_of(scores, of, clips=True)
    assert found["i2t"]["nmr"] == found["i2t"]["medr"] / 200 and found["t2i"]["nmr"] == found["t2i"]["medr"] / 40
    assert "nmr" not in metrics_of(scores, of)["i2t"]


def test_folds_must_be_equal() -> None:
    with pytest.raises(ValueError, match="expected images that can be divided into 3 folds, got 10"):
        metrics_of(*random_scores(10), folds=3)


def test_folds_with_unequal_captions() -> None:
    """The folds' mean is not weighted by their numbers of captions; folds differ in difficulty."""
    of = uneven_captions(500, 700)
    scores = noisy_scores(of, np.repeat([0.5, 1.5, 2.5, 3.5, 4.5], 100), 0)
    found = metrics_of(scores, of, folds=5)
    total = 0.0
    for side, queries in slow_ranks(scores, of, folds=5).items():
        parts = [[rank for image, rank in queries if image // 100 == fold] for fold in range(5)]
        for k in (1, 5, 10):
            expected = float(np.mean([100 * np.mean(np.array(part) < k) for part in parts]))
            assert found[side][f"r{k}"] == pytest.approx(expected)
            total += expected
        assert found[side]["medr"] == pytest.approx(np.mean([np.floor(np.median(part)) + 1 for part in parts]))
        assert found[side]["meanr"] == pytest.approx(np.mean([np.mean(part) + 1 for part in parts]))
    assert found["rsum"] == pytest.approx(total) and found["folds"] == 5
