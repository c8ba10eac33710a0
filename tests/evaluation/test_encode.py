from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch import Tensor

import vse
from vse.data.formats import precomp
from vse.data.part import choose_images
from vse.errors import InputError
from vse.evaluation.encode import check_corpus, encode_corpus
from vse.ragged import RaggedSets

MakeRun = Callable[..., Path]


def test_each_item_is_what_the_model_makes_of_it_alone(make_run: MakeRun, data_folder: Path) -> None:
    model, corpus = vse.load(make_run()), precomp(str(data_folder), "dev")
    found = encode_corpus(model, corpus, batch_size=3, progress=False)
    assert isinstance(found.images, Tensor) and isinstance(found.captions, Tensor)
    assert found.images.shape == (10, 1, 8) and found.captions.shape == (50, 1, 8)
    for i in (0, 9):
        alone = model.encode_images([torch.from_numpy(corpus.images[i])])
        torch.testing.assert_close(found.images[i], alone[0])
        torch.testing.assert_close(found.captions[i], model.encode_texts([corpus.captions[i]])[0])
    assert found.similarity is model.similarity


def test_precision(make_run: MakeRun, data_folder: Path) -> None:
    model, corpus = vse.load(make_run()), precomp(str(data_folder), "dev")
    full, half, again = (encode_corpus(model, corpus, 4, precision, False) for precision in ("fp32", "bf16", "fp32"))
    for side in ("images", "captions"):
        assert torch.equal(getattr(full, side), getattr(again, side))
        assert not torch.equal(getattr(full, side), getattr(half, side))
    torch.testing.assert_close(full.images, half.images, atol=0.05, rtol=0)


def test_sets_of_different_sizes_are_not_padded(make_run: MakeRun, data_folder: Path) -> None:
    """CHAN: all regions of an image and all words of a caption, in the corpus's order."""
    model, corpus = vse.load(make_run("chan")), precomp(str(data_folder), "dev")
    found = encode_corpus(model, corpus, batch_size=7, progress=False)
    assert isinstance(found.images, Tensor) and found.images.shape == (10, 6, 8)
    assert isinstance(found.captions, RaggedSets) and len(found.captions) == 50
    lengths = [len(caption.split()) + 2 for caption in corpus.captions]  # and <start> and <end>
    assert found.captions.sizes.tolist() == lengths and len(found.captions.embeddings) == sum(lengths)
    for i in (0, 31, 49):
        torch.testing.assert_close(found.captions[i : i + 1].embeddings, model.encode_texts([corpus.captions[i]]))


def test_features_of_another_width(make_run: MakeRun, tmp_path: Path) -> None:
    from helpers import write_precomp

    model, wide = vse.load(make_run()), precomp(str(write_precomp(tmp_path, width=13)), "dev")
    with pytest.raises(InputError, match="its features are 13 wide, but the model reads 12"):
        check_corpus(model, wide)


def test_fewer_items_than_processes(make_run: MakeRun, data_folder: Path, tmp_path: Path) -> None:
    """Each process encodes all of them."""
    model, corpus = vse.load(make_run()), choose_images(precomp(str(data_folder), "dev"), 2, seed=1)
    one = encode_corpus(model, corpus, 4, progress=False)

    def check() -> None:
        found = encode_corpus(model, corpus, 4, progress=False)
        torch.testing.assert_close(found.images, one.images)
        torch.testing.assert_close(found.captions, one.captions)

    in_processes(3, tmp_path, check)
