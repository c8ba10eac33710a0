import numpy as np
import torch
from helpers import random_scores

from vse.evaluation.blocks import blocks_of_matrix, transpose
from vse.evaluation.folds import rank_folds
from vse.pages.queries import answer, choose


def test_answers_are_those_of_a_sorted_list() -> None:
    scores, image_of_caption = random_scores(12)
    positives = [np.flatnonzero(image_of_caption == image) for image in range(12)]
    for image, found in zip(range(12), answer(blocks_of_matrix(scores), range(12), positives, 5), strict=True):
        order = sorted(range(60), key=lambda caption: -float(scores[image, caption]))  # noqa: B023
        assert [hit.item for hit in found.top] == order[:5] and [hit.place for hit in found.top] == [1, 2, 3, 4, 5]
        own = [place for place, caption in enumerate(order, 1) if image_of_caption[caption] == image]
        assert [hit.place for hit in found.right] == own and all(hit.right for hit in found.right)
        wrong = max(float(scores[image, caption]) for caption in range(60) if image_of_caption[caption] != image)
        assert found.lead == float(scores[image, positives[image]].max()) - wrong
        assert all(hit.score == float(scores[image, hit.item]) for hit in (*found.top, *found.right))


def test_a_tie_counts_against_the_model() -> None:
    (found,) = answer(blocks_of_matrix(torch.zeros(1, 4)), [0], [np.array([0, 2])], 3)
    assert [hit.item for hit in found.top] == [1, 3, 0] and [hit.place for hit in found.right] == [3, 4]
    assert found.lead == 0


def test_the_other_direction_and_an_image_without_captions() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.2]])
    (found,) = answer(transpose(blocks_of_matrix(scores)), [1], [np.array([1])], 2)
    assert [hit.item for hit in found.top] == [0, 1] and found.right[0].place == 2
    (nothing,) = answer(blocks_of_matrix(scores), [0], [np.array([], dtype=int)], 1)
    assert nothing.right == [] and nothing.lead == -np.inf


def test_the_queries_that_are_chosen() -> None:
    scores, image_of_caption = random_scores(60)
    ranks = rank_folds(blocks_of_matrix(scores), image_of_caption)[0].i2t.numpy().copy()
    ranks[7] = -1
    positives = [np.flatnonzero(image_of_caption == image) for image in range(60)]
    allowed = np.arange(0, 60)
    blocks = blocks_of_matrix(scores)
    choice = choose(blocks, ranks, positives, allowed, count=12, seed=1)
    assert len(set(choice.sampled)) == 12 and len(choice.best) == len(choice.worst) == 3
    assert 7 not in (*choice.sampled, *choice.best, *choice.worst)
    asked = [image for image in range(60) if image != 7]
    assert sorted((ranks[image] for image in asked), reverse=True)[:3] == [ranks[image] for image in choice.worst]
    leads = {
        image: found.lead
        for image, found in zip(asked, answer(blocks, asked, [positives[i] for i in asked], 0), strict=True)
    }
    assert choice.best == sorted(asked, key=lambda image: (ranks[image], -leads[image]))[:3]
    assert choose(blocks, ranks, positives, allowed, 12, seed=1) == choice
    assert choose(blocks, ranks, positives, allowed, 12, seed=2).sampled != choice.sampled
    few = choose(blocks, ranks, positives, np.array([3, 4]), 12, seed=1)
    assert sorted(few.sampled) == [3, 4] and set(few.best + few.worst) <= {3, 4}
