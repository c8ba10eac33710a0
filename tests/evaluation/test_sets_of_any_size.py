"""The whole way of models whose embedding sets differ in size: scores, ranks, health, saved scores, ensembles."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Outcome
from torch import Tensor

import vse
from vse.data.formats import precomp
from vse.errors import InputError
from vse.evaluation.blocks import blocks_of_embeddings
from vse.evaluation.encode import CorpusEmbeddings
from vse.evaluation.score import embed_corpus, evaluate, score, score_embeddings, single_embedding_rsums
from vse.metrics import retrieval_metrics
from vse.ragged import RaggedSets
from vse.similarity import SIMILARITIES, chan, max_cosine, max_sim

Cli = Callable[..., Outcome]
MakeRun = Callable[..., Path]


def ragged(sizes: list[int], seed: int) -> tuple[RaggedSets, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sets = [torch.nn.functional.normalize(torch.randn(size, 6, generator=generator), dim=-1) for size in sizes]
    return RaggedSets(torch.cat(sets), torch.tensor(sizes)), sets


@pytest.mark.parametrize("name", [name for name in SIMILARITIES if name not in ("cosine", "match_probability")])
def test_scores_in_blocks_are_those_of_each_pair_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vse.evaluation.blocks._BLOCK", 200)
    (images, left), (captions, right) = ragged([3, 1, 4, 2, 2], 0), ragged([5, 1, 2, 3, 3, 1, 4, 2], 1)
    similarity = SIMILARITIES[name]
    found = score(similarity, images, captions, progress=False)  # type: ignore[arg-type]
    alone = torch.stack([torch.cat([similarity(a[None], b[None])[0] for b in right]) for a in left])  # type: ignore[operator, index]
    torch.testing.assert_close(found, alone)


def test_a_block_is_as_wide_as_its_own_sets() -> None:
    images, captions = ragged([1, 1, 9], 0)[0], ragged([2, 1, 1, 8], 1)[0]
    seen = []

    def watched(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> Tensor:
        seen.append((a.shape[1], b.shape[1]))
        return max_cosine(a, b, a_mask, b_mask)

    blocks = blocks_of_embeddings(watched, images, captions)
    blocks.block(slice(2), slice(3))
    blocks.block(torch.tensor([2, 0]), torch.tensor([1, 3]))
    assert seen == [(1, 2), (9, 8)]


def test_the_metrics_are_those_of_the_plain_scores(make_run: MakeRun, data_folder: Path) -> None:
    model, corpus = vse.load(make_run("chan")), precomp(str(data_folder), "dev")
    metrics = evaluate(model, corpus, batch_size=8, progress=False)
    regions = model.encode_images([torch.from_numpy(corpus.images[i]) for i in range(10)])
    words = [model.encode_texts([caption]) for caption in corpus.captions]
    with torch.no_grad():
        plain = torch.cat([model.similarity(regions, one) for one in words], 1)
    positives = torch.arange(10)[:, None] == torch.from_numpy(corpus.image_of_caption)
    expected = retrieval_metrics(plain, positives)
    assert metrics["rsum"] == pytest.approx(expected["rsum"])
    assert 1 <= metrics["sets"]["text_embeddings_used"] <= 9 and metrics["sets"]["image_log_variance"] < 0


def test_saved_scores_and_ensembles(make_run: MakeRun, cli: Cli, tmp_path: Path) -> None:
    first, second = make_run("chan"), make_run("chan", "run.seed=2")
    saved = tmp_path / "scores.npz"
    assert cli("eval", first, "--save-scores", saved).code == 0
    embeddings = embed_corpus(vse.load(first), precomp(str(data_of(first)), "test"), 8, progress=False)
    with np.load(saved) as content:
        torch.testing.assert_close(torch.from_numpy(content["scores"]), score(*embeddings, progress=False))
    outcome = cli("eval", first, second, saved, "--each", "--ensemble", "--json", tmp_path / "all.json")
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "all.json").read_text())) == 4


def data_of(run: Path) -> str:
    from vse.checkpoints.native import load_checkpoint

    root: str = load_checkpoint(run / "best.pt")["config"]["data"]["root"]
    return root


def test_no_embedding_of_such_a_set_stands_alone() -> None:
    images, captions = torch.randn(3, 2, 6), ragged([2, 1, 3], 1)[0]
    assert single_embedding_rsums(CorpusEmbeddings(chan, images, captions), np.arange(3)) == {}


def test_a_similarity_without_masks_is_refused_in_one_line(data_folder: Path) -> None:
    def best_pair(a: Tensor, b: Tensor) -> Tensor:
        return max_cosine(a, b)

    corpus = precomp(str(data_folder), "dev")
    images, captions = torch.randn(10, 2, 6), ragged([2, 1, 3, 1, 2] * 10, 1)[0]
    with pytest.raises(InputError, match="the sets differ in size, so the similarity must be called with a_mask"):
        score_embeddings(CorpusEmbeddings(best_pair, images, captions), corpus)
    whole = torch.randn(50, 2, 6)
    assert score_embeddings(CorpusEmbeddings(best_pair, images, whole), corpus).scores.shape == (10, 50)


def test_training_refuses_it_too(cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_similarity.py").write_text(
        "from vse.similarity import max_cosine\ndef plain(a, b):\n    return max_cosine(a, b)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = ["model.image.aggregator.name=tokens", "model.text.aggregator.name=tokens"]
    error = cli("train", *tiny, *settings, "model.similarity.name=own_similarity:plain").error
    assert "model.similarity: the sets differ in size" in error and "max_sim" in error
    assert "cosine compares single embeddings" in cli("train", *tiny, *settings).error
    one = ["model.image.aggregator.name=mean", "model.text.aggregator.name=mean", "train.epochs=1"]
    assert cli("train", *tiny, *one, "model.similarity.name=own_similarity:plain").code == 0


def test_masks_are_no_settings(cli: Cli, tiny: list[str]) -> None:
    error = cli("train", *tiny, "model.similarity={name: max_sim, a_mask: null}").error
    assert "model.similarity.a_mask: is filled in and cannot be set" in error


def test_a_users_own_captions(make_run: MakeRun) -> None:
    """Sets of one size are plain embeddings; others come with their mask."""
    model = vse.load(make_run("chan", "model.similarity={name: max_sim, reduction: mean}"))
    texts = ["red dog", "a green cat sits", "blue bird"]
    with pytest.raises(ValueError, match="the embedding sets differ in size; embed_texts also returns the mask"):
        model.encode_texts(texts)
    sets = model.embed_texts(texts)
    assert sets.mask is not None and sets.mask.sum(1).tolist() == [4, 6, 4]
    assert model.encode_texts(texts[::2]).shape == (2, 4, 8) and model.embed_texts(texts[::2]).mask is None
    one = model.embed_texts(texts[1])
    assert one.embeddings.shape == (1, 6, 8) and one.mask is None
    torch.testing.assert_close(one.embeddings[0], sets.embeddings[1][sets.mask[1]])
    images = [torch.randn(6, 12), torch.randn(4, 12)]
    with pytest.raises(ValueError, match="embed_images also returns the mask"):
        model.encode_images(images)
    regions = model.embed_images(images)
    scores = model.similarity(regions.embeddings, sets.embeddings, a_mask=regions.mask, b_mask=sets.mask)
    for i, j in ((0, 0), (1, 1), (1, 2)):
        alone = max_sim(model.encode_images(images[i : i + 1]), model.encode_texts([texts[j]]), reduction="mean")
        torch.testing.assert_close(scores[i : i + 1, j : j + 1], alone)
