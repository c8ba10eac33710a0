from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import positives_of, random_embeddings
from torch import Tensor

import vse
from vse.data.formats import precomp
from vse.errors import InputError
from vse.evaluation.encode import CorpusEmbeddings
from vse.evaluation.score import evaluate, score, score_corpus, single_embedding_rsums
from vse.metrics import retrieval_metrics
from vse.set_health import set_health
from vse.similarity import max_cosine, smooth_chamfer

MakeRun = Callable[..., Path]


def test_blocks_change_nothing(make_run: MakeRun, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = vse.load(make_run()), precomp(str(data_folder), "dev")
    scored = score_corpus(model, corpus, 256, progress=False, name="a")
    monkeypatch.setattr("vse.evaluation.score._BLOCK", 100)
    torch.testing.assert_close(score_corpus(model, corpus, 3, progress=False).scores, scored.scores)
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
            health = set_health(images, captions, torch.from_numpy(corpus.image_of_caption))
            assert found.pop("sets") == pytest.approx({key: float(value) for key, value in health.items()}, abs=1e-4)
        assert found == expected


def test_a_model_that_gives_nan(make_run: MakeRun, data_folder: Path) -> None:
    model, corpus = vse.load(make_run()), precomp(str(data_folder), "dev")
    with torch.no_grad():
        next(model.text.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="the model gives NaN; its weights have diverged"):
        score_corpus(model, corpus, 256, progress=False)


def test_embeddings_that_do_not_fit_the_similarity(make_run: MakeRun, data_folder: Path) -> None:
    model, corpus = vse.load(make_run("pvse")), precomp(str(data_folder), "dev")
    model.similarity = vse.similarity.cosine
    with pytest.raises(InputError, match="dev.*: cosine compares single embeddings, got K = 2"):
        score_corpus(model, corpus, 256, progress=False)


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


def test_scores_are_float32_whatever_the_embeddings_are() -> None:
    images, captions = random_embeddings(np.arange(5), k=2)
    found = score(smooth_chamfer, images.bfloat16(), captions.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, smooth_chamfer(images.bfloat16().float(), captions.bfloat16().float()))
