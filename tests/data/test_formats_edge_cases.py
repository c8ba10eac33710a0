"""Corpora and batches in the cases where a plausible mistake would go unseen."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_pictures, write_precomp

from vse.data.batches import Batch, TrainingData
from vse.data.corpus import Corpus
from vse.data.formats import karpathy, precomp
from vse.data.transforms import Crop, Pictures
from vse.data.vocabulary import Vocabulary


def read_batch(data: TrainingData, epoch: int, captions: list[int]) -> Batch:
    batch = data[epoch, np.array(captions)]
    assert isinstance(batch, Batch)
    return batch


@pytest.fixture
def pictures(tmp_path: Path) -> Corpus:
    """Four pictures with two captions each, as a run on pictures has them: augmented."""
    corpus = karpathy(str(write_pictures(tmp_path / "data", train=4, others=1)), "train")
    return dataclasses.replace(corpus, images=Pictures(corpus.images, Crop(16, 20), seed=1))


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
    corpus = Corpus("twenty", np.zeros((20, 1, 2), np.float32), captions, np.arange(20), range(20), range(20))
    corpus = dataclasses.replace(corpus, images=_Zeros())
    data = TrainingData(corpus, Vocabulary.build(captions), 0.5, seed=1)
    batch = read_batch(data, 0, list(range(20)))
    rows = {tuple(tokens[mask].tolist()) for tokens, mask in zip(batch.tokens, batch.token_mask, strict=True)}
    assert len(rows) > 10
    alone = read_batch(data, 0, [7])
    assert torch.equal(alone.tokens[0], batch.tokens[7, batch.token_mask[7]])


class _Zeros:
    """Twenty images without content."""

    def __len__(self) -> int:
        return 20

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        return np.zeros((len(indices), 1, 2), np.float32)


@pytest.mark.parametrize("counts", [[3, 1, 2], [1, 1, 4], [4, 1, 1], [1, 3, 3]])
def test_ids_per_caption_need_not_be_even(tmp_path: Path, counts: list[int]) -> None:
    """A row of features an image and an id a caption: each caption goes to the image that its id names."""
    features = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    owners = np.repeat([0, 1, 2], counts)
    np.save(tmp_path / "dev_ims.npy", features)
    (tmp_path / "dev_caps.txt").write_text("".join(f"caption {i}\n" for i in range(len(owners))))
    (tmp_path / "dev_ids.txt").write_text("".join(f"image {owner}\n" for owner in owners))
    corpus = precomp(str(tmp_path), "dev")
    assert corpus.image_of_caption.tolist() == owners.tolist()
    assert list(corpus.image_ids) == ["image 0", "image 1", "image 2"]
    assert np.array_equal(corpus.images.read(np.arange(3)), features)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_bare_carriage_return_ends_no_caption(tmp_path: Path, end: str) -> None:
    root = write_precomp(tmp_path / "data", train=1)
    lines = ["a dog\rruns", "c", "d", "e", "f"]
    (root / "precomp" / "train_caps.txt").write_bytes("".join(line + end for line in lines).encode())
    assert precomp(str(root), "train").captions == lines
