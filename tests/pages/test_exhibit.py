from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vse.build import build_corpus
from vse.checkpoints.load import load_model
from vse.evaluation.encode import CorpusEmbeddings, encode_corpus
from vse.pages.exhibit import Exhibit

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def exhibit(make_run: MakeRun) -> Exhibit:
    loaded = load_model(make_run("pvse"))
    corpus = build_corpus(loaded.config, "test")
    return Exhibit(loaded.model, corpus, encode_corpus(loaded.model, corpus, 64, progress=False), None, {})


def test_each_image_has_its_captions(exhibit: Exhibit) -> None:
    for image in range(10):
        expected = [c for c, owner in enumerate(exhibit.corpus.image_of_caption) if owner == image]
        assert exhibit.captions_of[image].tolist() == expected == exhibit.positives("image", image).tolist()
    assert exhibit.positives("text", 7).tolist() == [1]


@pytest.mark.parametrize("side", ["image", "text"])
def test_each_embedding_has_its_own_answers(side: str, exhibit: Exhibit) -> None:
    """Sorted by the best cosine of this embedding with one of the other set."""
    _, images, captions = exhibit.embeddings
    assert isinstance(images, torch.Tensor) and isinstance(captions, torch.Tensor)
    own, other = (images, captions) if side == "image" else (captions, images)
    found = exhibit.own_answers(side, [3, 5], 4)
    assert len(found) == own.shape[1] == 2
    for place, answers in enumerate(found):
        for query, answer in zip((3, 5), answers, strict=True):
            cosines = [max(float(own[query, place] @ vector) for vector in candidate) for candidate in other]
            expected = np.argsort([-cosine for cosine in cosines], kind="stable")[:4]
            assert [hit.item for hit in answer.top] == expected.tolist()
            assert [hit.score for hit in answer.top] == pytest.approx([cosines[item] for item in expected], abs=1e-5)


def test_single_embeddings_have_none_of_their_own(exhibit: Exhibit) -> None:
    similarity, images, captions = exhibit.embeddings
    assert isinstance(images, torch.Tensor)
    single = CorpusEmbeddings(similarity, images[:, :1], captions)
    assert Exhibit(exhibit.model, exhibit.corpus, single, None, {}).own_answers("image", [0], 3) == []


def test_an_image_without_a_picture_says_what_it_is(exhibit: Exhibit) -> None:
    shown = exhibit.show_image(2)
    assert "no picture of 1002" in shown and exhibit.corpus.captions[10] in shown
