"""Mining the corpus against brute force, and the batches that it makes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Outcome, same_weights, weights_of

from vse.build import read_config
from vse.config import MiningConfig
from vse.data.batches import BatchSampler
from vse.errors import InputError
from vse.evaluation.blocks import NaNScores, blocks_of_embeddings, blocks_of_matrix
from vse.evaluation.encode import encode_corpus
from vse.ragged import RaggedSets
from vse.similarity import cosine, max_sim
from vse.training.mining import hardest_captions, is_due, mine
from vse.training.run import Training


def slow_hardest(scores: np.ndarray, image_of_caption: np.ndarray, count: int) -> list[list[int]]:
    """Sort all captions of other images, image by image."""
    found = []
    for image, row in enumerate(scores):
        others = [c for c in range(len(row)) if image_of_caption[c] != image]
        others.sort(key=lambda c: -row[c])
        found.append((others + [-1] * count)[:count])
    return found


@pytest.mark.parametrize("side", [2, 5, 100])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_the_hardest_captions_equal_brute_force(side: int, count: int) -> None:
    """One to four captions per image in any order; the block has fewer, or more, columns than are looked for."""
    rng = np.random.default_rng(side)
    owner = rng.permutation(np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 4, 4, 5, 6]))
    scores = rng.standard_normal((7, 13)).astype(np.float32)
    scores[np.arange(7)[:, None] == owner] += 10  # its own captions score highest
    blocks = blocks_of_matrix(torch.from_numpy(scores))._replace(side=side)
    assert hardest_captions(blocks, owner, count).tolist() == slow_hardest(scores, owner, count)


def test_sets_of_different_sizes() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 5)
    sizes = torch.tensor([2, 1, 4, 3, 2])
    captions = RaggedSets(torch.randn(12, 5), sizes)
    owner = np.array([0, 1, 2, 3, 3])
    scores = torch.cat([max_sim(images, captions[row : row + 1].embeddings) for row in range(5)], 1)
    found = hardest_captions(blocks_of_embeddings(max_sim, images, captions)._replace(side=2), owner, 2)
    assert found.tolist() == slow_hardest(scores.numpy(), owner, 2)


def test_a_model_that_has_diverged() -> None:
    with pytest.raises(NaNScores, match="the model gives NaN"):
        hardest_captions(blocks_of_matrix(torch.full((2, 2), float("nan"))), np.array([0, 1]), 1)


def test_a_run_that_has_diverged_stops_in_one_line(tiny: list[str]) -> None:
    training = Training(read_config(tiny[0], [*tiny[1:], "train.mining={start_epoch: 0}"]))
    with torch.no_grad():
        next(training.model.image.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="train.mining: .*the model gives NaN; its weights have diverged"):
        next(training.batches())


def test_when_a_search_is_due() -> None:
    assert [epoch for epoch in range(8) if is_due(MiningConfig(every=3, start_epoch=1), epoch)] == [1, 4, 7]
    assert not is_due(None, 3)


def slow_order(plain: list[int], confused: np.ndarray, owner: np.ndarray) -> list[int]:
    """The captions of an epoch, one after another, each with its image's confusions that are still left."""
    left, found = list(plain), []
    while left:
        first = left.pop(0)
        found.append(first)
        for caption in confused[owner[first]].tolist():
            if caption in left:
                left.remove(caption)
                found.append(caption)
    return found


def test_batches_bring_confused_captions_together() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(12), 3)
    confused = np.array(slow_hardest(rng.standard_normal((12, 36)), owner, 4))
    confused[3, 2:] = -1
    sampler = BatchSampler(owner, 12, 6, "pair", seed=3)
    plain = np.concatenate([captions for _, captions in sampler])
    sampler.confused = confused
    found = np.concatenate([captions for _, captions in sampler])
    assert found.tolist() == slow_order(plain.tolist(), confused, owner)
    assert sorted(found.tolist()) == list(range(36))  # each once
    assert found.tolist() != plain.tolist()
    again = BatchSampler(owner, 12, 6, "pair", seed=3)
    again.confused, again.first = confused, 2
    assert [c.tolist() for _, c in again] == [c.tolist() for _, c in sampler][2:]


def test_whole_images_are_brought_together() -> None:
    """Image 2 has no caption, so it is not among the items that are shuffled."""
    owner = np.array([0, 0, 1, 3, 3, 4])
    sampler = BatchSampler(owner, 5, 2, "image", seed=0)
    sampler.confused = np.array([[5], [3], [-1], [2], [0]])  # images 0 and 4 are confused, and 1 and 3
    batches = {frozenset(owner[captions].tolist()) for _, captions in sampler}
    assert batches == {frozenset({0, 4}), frozenset({1, 3})}


def test_a_run_mines_what_brute_force_finds(tiny: list[str]) -> None:
    settings = [*tiny[1:], "train.mining={negatives: 3, start_epoch: 1, every: 2}"]
    training = Training(read_config(tiny[0], settings))
    next(training.batches())
    assert training.sampler.confused is None
    training.epoch = 1
    next(training.batches())
    corpus, model = training.train_corpus, training.model
    images = model.encode_images([torch.from_numpy(corpus.images[i]) for i in range(len(corpus.images))])
    scores = cosine(images, model.encode_texts(corpus.captions)).numpy()
    found = training.sampler.confused
    assert found is not None and found.shape == (len(corpus.images), 3)
    for image, (row, expected) in enumerate(zip(found, slow_hardest(scores, corpus.image_of_caption, 3), strict=True)):
        assert np.allclose(scores[image, row], scores[image, expected], atol=1e-6)
        assert (corpus.image_of_caption[row] != image).all()
    assert np.array_equal(mine(model, corpus, 3, 7, "fp32"), found)


def test_mining_trains_and_is_repeatable(cli: Callable[..., Outcome], tiny: list[str], tmp_path: Path) -> None:
    mining = "train.mining={negatives: 3, start_epoch: 1}"
    for name, more in (("plain", []), ("one", [mining]), ("two", [mining, "data.workers=1"])):
        assert cli("train", *tiny, *more, f"run.dir={tmp_path / name}").code == 0
    weights = {name: weights_of(tmp_path / name, "last.pt") for name in ("plain", "one", "two")}
    assert same_weights(weights["one"], weights["two"])
    assert not same_weights(weights["plain"], weights["one"])


def test_a_run_mines_in_the_precision_of_its_evaluations(tiny: list[str]) -> None:
    settings = [*tiny[1:], "train.mining={negatives: 20, start_epoch: 0}", "eval.precision=bf16"]
    training = Training(read_config(tiny[0], settings))
    next(training.batches())
    tables = {}
    for precision in ("bf16", "fp32"):
        scores = blocks_of_embeddings(*encode_corpus(training.model, training.train_corpus, 256, precision))
        tables[precision] = hardest_captions(scores, training.train_corpus.image_of_caption, 20)
    assert training.sampler.confused is not None and np.array_equal(training.sampler.confused, tables["bf16"])
    assert not np.array_equal(tables["fp32"], tables["bf16"])
