import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_dataset, write_pictures, write_precomp

from vse.data.batches import Batch, BatchSampler, ThreadedLoader, TrainingData, check_shared_memory, make_loader
from vse.data.corpus import ArrayFeatures, Corpus, Features
from vse.data.formats import karpathy, precomp
from vse.data.transforms import Crop
from vse.data.video_formats import vatex
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError


@pytest.fixture
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return precomp(str(write_precomp(tmp_path_factory.mktemp("data") / "x")), "train")


def sampler(corpus: Corpus, sampling: str = "pair", batch_size: int = 16, seed: int = 1) -> BatchSampler:
    return BatchSampler(corpus.image_of_caption, len(corpus.images), batch_size, sampling, seed)


def data(corpus: Corpus, drop: float = 0.5) -> TrainingData:
    return TrainingData(corpus, Vocabulary.build(corpus.captions), drop, seed=1)


def test_an_epoch_is_a_shuffle_of_the_captions(corpus: Corpus) -> None:
    batches = [captions for _, captions in sampler(corpus)]
    assert len(batches) == len(sampler(corpus)) == 120 // 16
    everything = np.concatenate(batches)
    assert len(set(everything)) == len(everything) == 112  # the incomplete last batch is left out
    assert not np.array_equal(everything, np.sort(everything))


def test_order_depends_on_seed_and_epoch_alone(corpus: Corpus) -> None:
    def order(seed: int, epoch: int, first: int = 0) -> list[int]:
        s = sampler(corpus, seed=seed)
        s.epoch, s.first = epoch, first
        return [int(i) for _, captions in s for i in captions]

    assert order(1, 3) == order(1, 3) and order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3)
    assert order(1, 3, first=5) == order(1, 3)[5 * 16 :]  # going on within an epoch


def test_a_small_corpus_is_one_batch(corpus: Corpus) -> None:
    assert [len(captions) for _, captions in sampler(corpus, batch_size=1000)] == [120]


def test_image_sampling_takes_all_captions_of_each_image() -> None:
    image_of_caption = np.array([2, 0, 0, 3, 2, 2])  # ragged, unordered; image 1 has none
    batches = list(BatchSampler(image_of_caption, 4, 2, "image", seed=0))
    assert len(batches) == 1
    chosen = image_of_caption[batches[0][1]]
    assert len(set(chosen)) == 2
    for image in set(chosen):
        assert (chosen == image).sum() == (image_of_caption == image).sum()


def test_batch_holds_each_image_once(corpus: Corpus) -> None:
    batch = data(corpus, drop=0.0)[0, np.array([7, 3, 5, 100, 8])]
    assert isinstance(batch, Batch)
    assert batch.images.shape[0] == 3  # captions 5, 7 and 8 share image 1
    assert batch.positives.tolist() == [
        [False, True, False, False, False],
        [True, False, True, False, True],
        [False, False, False, True, False],
    ]
    assert batch.image_of_row is not None and batch.image_of_row.tolist() == [0, 1, 20]
    assert batch.image_of_column is not None and batch.image_of_column.tolist() == [1, 0, 1, 20, 1]
    assert torch.equal(batch.images[1], torch.from_numpy(corpus.images[1]))
    vocabulary = Vocabulary.build(corpus.captions)
    for row, caption in enumerate([7, 3, 5, 100, 8]):
        ids = vocabulary.encode(corpus.captions[caption])
        assert batch.tokens[row, batch.token_mask[row]].tolist() == ids.tolist()
        assert (batch.tokens[row, ~batch.token_mask[row]] == 0).all()


@pytest.mark.parametrize("in_threads", [False, True], ids=["processes", "threads"])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(corpus: Corpus, workers: int, in_threads: bool) -> None:
    expected = list(make_loader(data(corpus), sampler(corpus), 0, False))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = list(make_loader(data(corpus), sampler(corpus), workers, False, in_threads))
    assert torch.equal(before, torch.get_rng_state())  # the loader draws nothing from the global generator
    for a, b in zip(expected, found, strict=True):
        assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_augmentation_differs_by_epoch_and_caption(corpus: Corpus) -> None:
    training = data(corpus)
    captions = np.arange(20)
    first, same, other = training[0, captions], training[0, captions], training[1, captions]
    assert isinstance(first, Batch) and isinstance(same, Batch) and isinstance(other, Batch)
    assert torch.equal(first.tokens, same.tokens)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)
    alone = training[0, captions[4:5]]  # batch mates do not matter
    assert isinstance(alone, Batch)
    assert torch.equal(alone.tokens[0], first.tokens[4, first.token_mask[4]])


def test_ends_are_kept_or_changed_like_words(corpus: Corpus) -> None:
    vocabulary = Vocabulary.build(corpus.captions)
    for keep_ends in (True, False):
        training = TrainingData(corpus, vocabulary, 0.9, seed=1, keep_ends=keep_ends)
        batch = training[0, np.arange(120)]
        assert isinstance(batch, Batch)
        last = batch.tokens[torch.arange(120), batch.token_mask.sum(1) - 1]
        kept = bool((batch.tokens[:, 0] == vocabulary.start).all() and (last == vocabulary.end).all())
        assert kept == keep_ends
        assert (batch.token_mask.sum(1) >= (2 if keep_ends else 1)).all()
        whole = [len(vocabulary.encode(caption)) for caption in corpus.captions]
        assert not (batch.token_mask.sum(1) == torch.tensor(whole)).all()  # the array of words is not changed for good
    assert training.flat.words.min() == 0


def test_a_mistake_in_the_data_is_returned(corpus: Corpus) -> None:
    assert isinstance(corpus.images, Features)
    features = np.load(corpus.images.path)
    features[2] = np.inf
    np.save(corpus.images.path, features)
    corpus.images._array = None
    assert isinstance(data(corpus)[0, np.array([10])], InputError)


def test_threads_work_ahead_in_order_and_stop_early(corpus: Corpus) -> None:
    """A slow batch delays those behind it; whoever leaves the loop leaves no work behind."""
    asked: list[int] = []

    class Slow(TrainingData):
        def __getitem__(self, key: tuple[int, np.ndarray]) -> Batch | InputError:
            number = len(asked)
            asked.append(number)
            time.sleep(0.2 if number == 0 else 0)
            return super().__getitem__(key)

    slow = Slow(corpus, Vocabulary.build(corpus.captions), 0.5, seed=1)
    plain = data(corpus)
    order = sampler(corpus, batch_size=2)
    loader = iter(ThreadedLoader(slow, order, 3, False))
    for _, (key, batch) in zip(range(3), zip(order, loader, strict=True), strict=False):
        expected = plain[key]
        assert isinstance(expected, Batch) and torch.equal(batch.tokens, expected.tokens)
    loader.close()  # type: ignore[attr-defined]
    assert len(asked) <= 3 + 2 * 3 + 1 < len(order)
    time.sleep(0.1)
    assert len(asked) <= 3 + 2 * 3 + 1


def test_errors_in_threads(corpus: Corpus) -> None:
    """A mistake in the data is returned, a bug is raised."""
    broken = data(corpus)
    broken.read = lambda images, epoch: InputError("damaged").args[0] / images
    with pytest.raises(TypeError):
        list(ThreadedLoader(broken, sampler(corpus), 2, False))

    def read(images: np.ndarray, epoch: int) -> np.ndarray:
        raise InputError("damaged")

    broken.read = read
    assert all(isinstance(found, InputError) for found in ThreadedLoader(broken, sampler(corpus), 2, False))


def test_shared_memory_that_is_too_small(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before the first batch: two batches of each of three workers, 288 bytes an image."""
    batch = data(corpus).sample()
    assert batch.images.nbytes == 288
    about = os.statvfs_result((1000, 1000, 100, 100, 2 * 3 * 50 * 288 // 1000, 1, 1, 1, 1, 255))
    monkeypatch.setattr(os, "statvfs", lambda folder: about)
    assert about.f_bavail * about.f_frsize == 86_000
    check_shared_memory(batch, 49, 3, str(tmp_path))
    with pytest.raises(
        InputError, match=r"data.workers: 3 processes put up to 0.00 GB of batches into .* 0.00 GB free"
    ):
        check_shared_memory(batch, 50, 3, str(tmp_path))
    check_shared_memory(batch, 5000, 0, str(tmp_path))
    check_shared_memory(batch, 5000, 3, str(tmp_path / "missing"))  # not Linux
    monkeypatch.setattr(os.path, "isdir", lambda _: True)
    with pytest.raises(InputError, match="of batches into /dev/shm, which has"):
        check_shared_memory(batch, 50, 3)


def read_batch(data: TrainingData, epoch: int, captions: list[int]) -> Batch:
    batch = data[epoch, np.array(captions)]
    assert isinstance(batch, Batch)
    return batch


@pytest.fixture
def pictures(tmp_path: Path) -> Corpus:
    """Four pictures with two captions each, as a run on pictures has them: augmented."""
    corpus = karpathy(str(write_pictures(tmp_path / "data", train=4, others=1)), "train")
    return dataclasses.replace(corpus, images=corpus.images.transformed(Crop(16, 20), seed=1, threads=0))


def test_pictures_are_augmented_anew_in_every_epoch(pictures: Corpus) -> None:
    data = TrainingData(pictures, Vocabulary.build(pictures.captions), 0.0, seed=1)
    first, second, third = (read_batch(data, epoch, [0, 2, 4, 6]).images for epoch in (0, 1, 2))
    assert first.shape == (4, 3, 16, 16)
    for one, other in ((first, second), (first, third), (second, third)):
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(read_batch(data, 1, [0, 2, 4, 6]).images, second)


def test_equal_captions_are_augmented_differently() -> None:
    """What is dropped from a caption depends on which one it is, not only on its words and its epoch."""
    captions = ["a red dog runs over the green grass"] * 20
    zeros = ArrayFeatures(np.zeros((20, 1, 2), np.uint8))
    corpus = Corpus("twenty", zeros, captions, np.arange(20), range(20), range(20))
    data = TrainingData(corpus, Vocabulary.build(captions), 0.5, seed=1)
    batch = read_batch(data, 0, list(range(20)))
    rows = {tuple(tokens[mask].tolist()) for tokens, mask in zip(batch.tokens, batch.token_mask, strict=True)}
    assert len(rows) > 10
    alone = read_batch(data, 0, [7])
    assert torch.equal(alone.tokens[0], batch.tokens[7, batch.token_mask[7]])


def test_every_image_and_caption_has_its_views(corpus: Corpus) -> None:
    """Image 1, image 1 again, image 2; captions alike, but each view is changed on its own."""
    vocabulary, captions = Vocabulary.build(corpus.captions), np.array([7, 3, 5, 100, 8])
    once, twice = (TrainingData(corpus, vocabulary, 0.5, seed=1, views=views) for views in (1, 2))
    single, batch = once[0, captions], twice[0, captions]
    assert isinstance(single, Batch) and isinstance(batch, Batch)
    assert torch.equal(batch.images, single.images.repeat_interleave(2, 0))
    assert torch.equal(batch.positives, single.positives.repeat_interleave(2, 0).repeat_interleave(2, 1))
    rows = [tokens[mask].tolist() for tokens, mask in zip(batch.tokens, batch.token_mask, strict=True)]
    assert rows[::2] == [t[m].tolist() for t, m in zip(single.tokens, single.token_mask, strict=True)]
    assert sum(first != second for first, second in zip(rows[::2], rows[1::2], strict=True)) >= 3
    again = twice[0, captions]
    assert isinstance(again, Batch) and torch.equal(again.tokens, batch.tokens)
    plain = TrainingData(corpus, vocabulary, 0.0, seed=1, views=3)[0, captions]
    assert isinstance(plain, Batch) and torch.equal(plain.tokens[0], plain.tokens[2]) and len(plain.tokens) == 15
    assert twice.sample().positives.shape[1] == 4


def test_processes_share_the_views(corpus: Corpus) -> None:
    vocabulary, captions = Vocabulary.build(corpus.captions), np.array([7, 3, 5, 100, 8])
    whole = TrainingData(corpus, vocabulary, 0.5, seed=1, views=2)[0, captions]
    parts = [TrainingData(corpus, vocabulary, 0.5, 1, False, part, 3, views=2)[0, captions] for part in range(3)]
    assert isinstance(whole, Batch)
    images = torch.cat([part.images for part in parts if isinstance(part, Batch)])
    rows = [
        row[mask]
        for part in parts
        if isinstance(part, Batch)
        for row, mask in zip(part.tokens, part.token_mask, strict=True)
    ]
    assert torch.equal(images, whole.images)
    assert all(torch.equal(row, t[m]) for row, t, m in zip(rows, whole.tokens, whole.token_mask, strict=True))


def test_clips_of_different_lengths_share_a_batch(tmp_path: Path) -> None:
    corpus = vatex(str(write_dataset("vatex", tmp_path / "v")), "train")
    data = TrainingData(corpus, Vocabulary.build(corpus.captions), 0.0, seed=1)
    batch = data[0, np.arange(8)]
    assert not isinstance(batch, InputError) and batch.image_mask is not None
    lengths = [len(corpus.images[i]) for i in range(4)]
    assert batch.image_mask.sum(1).tolist() == lengths and batch.images.shape == (4, max(lengths), 6)
    assert (batch.images[~batch.image_mask] == 0).all()


def test_bad_arguments(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="sampling must be one of 'pair' or 'image', got 'images'"):
        sampler(corpus, sampling="images")
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\), got 1.0"):
        data(corpus, drop=1.0)
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        TrainingData(corpus, Vocabulary.build(corpus.captions), 0.0, seed=1, views=0)
