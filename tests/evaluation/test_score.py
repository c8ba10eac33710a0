from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import WORDS, positives_of, random_embeddings
from torch import Tensor

import vse
from vse.aggregators import PIENet
from vse.data.corpus import Corpus
from vse.data.formats import precomp
from vse.data.vocabulary import SPECIALS, Vocabulary
from vse.encoders import BiGRU, Regions
from vse.errors import InputError
from vse.evaluation.blocks import NaNScores
from vse.evaluation.encode import CorpusEmbeddings
from vse.evaluation.protocols import PROTOCOLS, report
from vse.evaluation.score import (
    CorpusScores,
    embed_corpus,
    evaluate,
    score,
    score_embeddings,
    single_embedding_rsums,
)
from vse.metrics import retrieval_metrics
from vse.model import Tower, VSEModel
from vse.set_health import set_health
from vse.similarity import chamfer, cosine, max_cosine, smooth_chamfer

MakeRun = Callable[..., Path]
OF = np.array([3, 0, 0, 6, 1, 2, 4, 5, 6, 6, 2])


def score_corpus(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", name: str = ""
) -> CorpusScores:
    """The scores of a corpus, encoded and scored as the commands do it."""
    return score_embeddings(embed_corpus(model, corpus, batch_size, precision, progress=False), corpus, name)


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


def small_corpus(images: Any) -> Corpus:
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
    member = score_corpus(model.train(), corpus, batch_size, name="run")
    expected = torch.stack([torch.stack([(a @ b.T).max() for b in alone[1]]) for a in alone[0]])
    torch.testing.assert_close(member.scores, expected)
    assert member.name == "run" and member.models == 1 and len(member.embeddings) == 1 and model.training
    for found, embeddings in zip(member.embeddings[0][1:], alone, strict=True):
        torch.testing.assert_close(found, embeddings)
    health = set_health(
        member.embeddings[0].images, member.embeddings[0].captions, torch.from_numpy(OF), model.similarity
    )
    assert member.sets == {key: float(value) for key, value in health.items()} and len(health) == 6
    metrics = evaluate(model, corpus, batch_size, progress=False)
    assert metrics["sets"] == member.sets and set(metrics) == {"i2t", "t2i", "rsum", "sets"}


def test_precision_is_the_encoders(model: VSEModel) -> None:
    """Half precision rounds the embeddings a little; the scores are float32 all the same."""
    corpus = small_corpus(Images())
    full, half = (score_corpus(model, corpus, 4, precision).scores for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def test_one_nan_is_enough(model: VSEModel) -> None:
    """Wherever the scores are computed: in validation, under a protocol, and for the matrix."""
    corpus = small_corpus(Images())

    def similarity(a: Any, b: Any) -> Any:
        scores = max_cosine(a, b)
        if scores.shape == (7, 11):  # all images and captions
            scores[2, 5] = torch.nan
        return scores

    model.similarity = similarity
    with pytest.raises(InputError, match="small: the model gives NaN; its weights have diverged"):
        evaluate(model, corpus, 4, progress=False)
    scored = score_corpus(model, corpus, 4)
    with pytest.raises(InputError, match="small: the model gives NaN; its weights have diverged"):
        report(scored, corpus, PROTOCOLS["retrieval"])
    with pytest.raises(NaNScores, match="the model gives NaN"):
        scored.scores  # noqa: B018


def test_a_model_that_gives_nan(model: VSEModel) -> None:
    with torch.no_grad():
        next(model.text.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="small: the model gives NaN; its weights have diverged"):
        evaluate(model, small_corpus(Images()), 4, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scored_in_float32(dtype: torch.dtype) -> None:
    """So that pairs which half precision cannot tell apart keep their order."""
    torch.manual_seed(0)
    for similarity, size in ((cosine, 1), (chamfer, 3), (smooth_chamfer, 3)):
        images, captions = (torch.randn(count, size, 16).to(dtype) for count in (7, 11))
        found = score(similarity, images, captions)
        assert found.dtype == torch.float32
        expected = similarity(images.double(), captions.double())
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found, similarity(images.float(), captions.float()))


def test_blocks_change_nothing(make_run: MakeRun, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = vse.load(make_run()), precomp(str(data_folder), "dev")
    scored = score_corpus(model, corpus, 256, name="a")
    monkeypatch.setattr("vse.evaluation.blocks._BLOCK", 100)
    torch.testing.assert_close(score_corpus(model, corpus, 3).scores, scored.scores)
    (embeddings,) = scored.embeddings
    assert scored.name == "a" and scored.sets == {} and scored.models == 1
    torch.testing.assert_close(scored.scores, model.similarity(embeddings.images, embeddings.captions))


def test_evaluation_is_plain_retrieval_and_the_health_of_sets(make_run: MakeRun, data_folder: Path) -> None:
    corpus = precomp(str(data_folder), "dev")
    for system, sets in (("vse_infty", False), ("pvse", True)):
        model = vse.load(make_run(system))
        found = evaluate(model, corpus, 256, progress=False)
        images = model.encode_images([torch.from_numpy(corpus.images[i]) for i in range(10)])
        captions = model.encode_texts(corpus.captions)
        expected = retrieval_metrics(model.similarity(images, captions), corpus.positives)
        if sets:
            health = set_health(images, captions, torch.from_numpy(corpus.image_of_caption), model.similarity)
            assert found.pop("sets") == pytest.approx({key: float(value) for key, value in health.items()}, abs=1e-4)
        assert found == expected


def test_embeddings_that_do_not_fit_the_similarity(make_run: MakeRun, data_folder: Path) -> None:
    model, corpus = vse.load(make_run("pvse")), precomp(str(data_folder), "dev")
    model.similarity = vse.similarity.cosine
    with pytest.raises(InputError, match="dev.*: cosine compares single embeddings, got K = 2"):
        score_corpus(model, corpus, 256)


def slow_rsum(images: Tensor, captions: Tensor, of: np.ndarray) -> float:
    """PVSE's similarity pair by pair: the best cosine of two embeddings."""
    scores = [[float((a @ b.T).max()) for b in captions] for a in images]
    return float(retrieval_metrics(scores, positives_of(len(images), of))["rsum"])


def test_rsum_of_each_embedding_alone() -> None:
    """One side is cut to an embedding, the other one keeps its sets; useless embeddings show."""
    of = np.repeat(np.arange(12), 2)
    images, captions = random_embeddings(of, k=3, dim=6)
    images[:, 2] = images[0, 2]  # the same for all images
    found = single_embedding_rsums(CorpusEmbeddings(max_cosine, images, captions[:, :2]), of)
    assert found["image_rsum"] == pytest.approx(
        [slow_rsum(images[:, k : k + 1], captions[:, :2], of) for k in range(3)]
    )
    assert found["text_rsum"] == pytest.approx([slow_rsum(images, captions[:, k : k + 1], of) for k in range(2)])
    assert found["image_rsum"][2] < 0.7 * min(found["image_rsum"][:2])


def test_only_sets_have_embeddings_alone() -> None:
    of = np.arange(6)
    images, captions = random_embeddings(of, k=2)
    assert single_embedding_rsums(CorpusEmbeddings(smooth_chamfer, images[:, :1], captions[:, :1]), of) == {}
    assert set(single_embedding_rsums(CorpusEmbeddings(smooth_chamfer, images[:, :1], captions), of)) == {"text_rsum"}
