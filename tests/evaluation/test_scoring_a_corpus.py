"""A corpus through a model, against each image and each caption alone."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import WORDS

from vse.aggregators import PIENet
from vse.data.corpus import Corpus
from vse.data.vocabulary import SPECIALS, Vocabulary
from vse.encoders import BiGRU, Regions
from vse.errors import InputError
from vse.evaluation.score import evaluate, score_corpus
from vse.model import Tower, VSEModel
from vse.set_health import set_health
from vse.similarity import max_cosine

OF = np.array([3, 0, 0, 6, 1, 2, 4, 5, 6, 6, 2])


class Images:
    """Region sets of unequal sizes, read some at a time."""

    width = 5

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.sets = [rng.standard_normal((size, 5)).astype(np.float32) for size in (4, 1, 6, 2, 3, 5, 4)]

    def __len__(self) -> int:
        return len(self.sets)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        return [self.sets[row] for row in rows]


def small_corpus(images: Images) -> Corpus:
    rng = np.random.default_rng(1)
    captions = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 7, len(OF))]
    return Corpus("small", images, captions, OF, range(len(images)), range(len(OF)))


@pytest.fixture
def model() -> VSEModel:
    torch.manual_seed(0)
    vocabulary = Vocabulary([*SPECIALS, *WORDS])
    image = Tower(Regions(5, 8, drop=0.5), PIENet(8, 8, 2))
    text = Tower(BiGRU(len(vocabulary), 8, 6), PIENet(8, 8, 3))
    return VSEModel(image, text, max_cosine, vocabulary)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_scores_are_those_of_each_alone(model: VSEModel, batch_size: int) -> None:
    images = Images()
    corpus = small_corpus(images)
    alone = [torch.cat([model.encode_images([torch.from_numpy(image)]) for image in images.sets])]
    alone.append(torch.cat([model.encode_texts([caption]) for caption in corpus.captions]))
    member = score_corpus(model.train(), corpus, batch_size, progress=False, name="run")
    expected = torch.stack([torch.stack([(a @ b.T).max() for b in alone[1]]) for a in alone[0]])
    torch.testing.assert_close(member.scores, expected)
    assert member.name == "run" and member.models == 1 and len(member.encoded) == 1 and model.training
    for found, embeddings in zip(member.encoded[0][1:], alone, strict=True):
        torch.testing.assert_close(found, embeddings)
    health = set_health(member.encoded[0].images, member.encoded[0].captions, torch.from_numpy(OF))
    assert member.sets == {key: float(value) for key, value in health.items()} and len(health) == 4
    metrics = evaluate(model, corpus, batch_size, progress=False)
    assert metrics["sets"] == member.sets and set(metrics) == {"i2t", "t2i", "rsum", "sets"}


def test_precision_is_the_encoders(model: VSEModel) -> None:
    """Half precision rounds the embeddings a little; the scores are float32 all the same."""
    corpus = small_corpus(Images())
    full, half = (score_corpus(model, corpus, 4, precision, progress=False).scores for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def test_one_nan_is_enough(model: VSEModel) -> None:
    corpus = small_corpus(Images())

    def similarity(a: Any, b: Any) -> Any:
        scores = max_cosine(a, b)
        scores[2, 5] = torch.nan
        return scores

    model.similarity = similarity
    with pytest.raises(InputError, match="small: the model gives NaN; its weights have diverged"):
        score_corpus(model, corpus, 4, progress=False)
