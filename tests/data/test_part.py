"""A part of a corpus."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import write_pictures

from vse.data.corpus import Corpus
from vse.data.formats import karpathy, precomp
from vse.data.part import ChosenImages, choose_images
from vse.data.transforms import Crop
from vse.errors import InputError


def check_part(part: Corpus, whole: Corpus) -> None:
    """Each image and caption of the part is what the whole has under the same id."""
    place = {label: index for index, label in enumerate(whole.image_ids)}
    texts = dict(zip(whole.caption_ids, whole.captions, strict=True))
    of_caption = {c: whole.image_ids[i] for c, i in zip(whole.caption_ids, whole.image_of_caption, strict=True)}
    for index, label in enumerate(part.image_ids):
        np.testing.assert_array_equal(
            part.images.read(np.array([index]))[0], whole.images.read(np.array([place[label]]))[0]
        )
    for label, caption, image in zip(part.caption_ids, part.captions, part.image_of_caption, strict=True):
        assert caption == texts[label] and part.image_ids[image] == of_caption[label]
    assert len(part.captions) == sum(image in set(part.image_ids) for image in of_caption.values())


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (7, 7), (24, 24), (0.5, 12), (0.01, 1), (0.99, 24)])
def test_features(data_folder: Path, limit: int | float, count: int) -> None:
    whole = precomp(str(data_folder), "train")
    part = choose_images(whole, limit, seed=1)
    assert len(part.images) == count and len(part.captions) == 5 * count
    check_part(part, whole)


def test_pictures(tmp_path: Path) -> None:
    whole = karpathy(str(write_pictures(tmp_path / "data")), "train")
    source = whole.images.transformed(Crop(size=8, resize=9), 1, 1)
    whole = Corpus(whole.name, source, whole.captions, whole.image_of_caption, whole.image_ids, whole.caption_ids)
    part = choose_images(whole, 5, seed=1)
    check_part(part, whole)
    assert isinstance(part.images, ChosenImages) and part.images.kind == "pictures" and part.images[0]
    again = pickle.loads(pickle.dumps(part.images))  # for the processes that make batches
    assert len(again) == 5


def test_the_seed_chooses_and_smaller_parts_lie_in_larger_ones(data_folder: Path) -> None:
    whole = precomp(str(data_folder), "train")
    five, ten = (set(choose_images(whole, count, seed=1).image_ids) for count in (5, 10))
    assert five < ten and five == set(choose_images(whole, 5, seed=1).image_ids)
    assert five != set(choose_images(whole, 5, seed=2).image_ids)


def test_more_than_there_are(data_folder: Path) -> None:
    with pytest.raises(InputError, match=r"has 24 images, fewer than 1,000"):
        choose_images(precomp(str(data_folder), "train"), 1000, seed=1)
