from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import corpus_of_ids, random_embeddings, uneven_captions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vse.evaluation.blocks import Items, NaNScores, ScoreBlocks, blocks_of_embeddings, blocks_of_matrix
from vse.evaluation.bootstrap import bootstrap
from vse.evaluation.encode import CorpusEmbeddings
from vse.evaluation.protocols import PROTOCOLS, report
from vse.evaluation.ranks import rank, rank_within
from vse.evaluation.score import CorpusScores, score, score_embeddings, single_embedding_rsums
from vse.metrics import metrics_of_ranks, query_ranks, retrieval_metrics
from vse.similarity import SIMILARITIES, cosine, max_cosine, smooth_chamfer


def best_product(a: Tensor, b: Tensor) -> Tensor:
    """The largest inner product of two sets' embeddings: exact for small whole numbers."""
    return torch.einsum("akh,clh->ackl", a, b).amax((2, 3))


def own_pairs(of: np.ndarray) -> np.ndarray:
    return np.stack([of, np.arange(len(of))], 1)


def slow_rank(table: np.ndarray, pairs: set[tuple[int, int]]) -> list[int]:
    """Compare each row's best positive with each of its negatives."""
    ranks = []
    for row in range(len(table)):
        right = {column for i, column in pairs if i == row}
        if not right:
            ranks.append(-1)
            continue
        best = max(table[row, column] for column in right)
        ranks.append(sum(1 for column in range(table.shape[1]) if column not in right and table[row, column] >= best))
    return ranks


def slow_products(images: Tensor, captions: Tensor) -> np.ndarray:
    """:func:`best_product`, pair by pair."""
    return np.array([[max(float(x @ y) for x in a for y in b) for b in captions] for a in images])


def assert_slow_twin(scores: ScoreBlocks, table: np.ndarray, pairs: np.ndarray) -> None:
    found, expected = rank(scores, pairs, progress=False), {(int(i), int(j)) for i, j in pairs}
    assert found.i2t.tolist() == slow_rank(table, expected)
    assert found.t2i.tolist() == slow_rank(table.T, {(j, i) for i, j in expected})


@st.composite
def retrievals(draw: st.DrawFn) -> tuple[Tensor, Tensor, np.ndarray]:
    """Embedding sets of a few whole numbers, with many ties and duplicates, and positives of any kind and order."""
    images, captions = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    k, own, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng, top = np.random.default_rng(draw(st.integers(0, 10**6))), draw(st.integers(0, 3))
    a, b = (rng.integers(-top, top + 1, (n, size, dim)) for n, size in ((images, k), (captions, own)))
    if draw(st.booleans()):
        pairs = own_pairs(rng.integers(0, images, captions))  # in no order, images with none, one or many captions
    else:
        pairs = rng.integers(0, (images, captions), (draw(st.integers(1, 30)), 2))  # many to many, some of them twice
    return torch.from_numpy(a).float(), torch.from_numpy(b).float(), pairs


@settings(max_examples=150, deadline=None)
@given(retrievals(), st.integers(1, 13), st.sampled_from([0, 10, 1000]))
def test_equals_the_slow_twin(retrieval: tuple[Tensor, Tensor, np.ndarray], side: int, kept: int) -> None:
    """For any block size, and however many blocks are kept between the passes."""
    images, captions, pairs = retrieval
    scores = blocks_of_embeddings(best_product, images, captions)._replace(side=side)
    with patch("vse.evaluation.ranks._KEPT", kept):
        assert_slow_twin(scores, slow_products(images, captions), pairs)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 9))
def test_ranks_within_a_side_equal_the_slow_twin(seed: int, items: int, side: int) -> None:
    """The item itself is out of the way, positive or not, whatever it scores."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4, (items, items)).astype(np.float32)
    pairs = rng.integers(0, items, (rng.integers(1, 30), 2))
    others = {(int(i), int(j)) for i, j in pairs if i != j}
    scores = blocks_of_matrix(torch.from_numpy(table))._replace(side=side)
    if not others:
        with pytest.raises(ValueError, match="no query has a positive"):
            rank_within(scores, pairs, progress=False)
        return
    table_without_selves = table.copy()
    np.fill_diagonal(table_without_selves, -1)
    assert rank_within(scores, pairs, progress=False).tolist() == slow_rank(table_without_selves, others)
    assert np.array_equal(scores.block(slice(0, items), slice(0, items)).numpy(), table)  # as they were


def test_some_images_and_captions_are_ranked_among_themselves() -> None:
    """In the order in which they are asked for; pairs with others do not count."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, (20, 50))
    pairs = np.stack([rng.integers(0, 20, 150), rng.integers(0, 50, 150)], 1)
    images, captions = rng.permutation(20)[:9], rng.permutation(50)[:21]
    scores = blocks_of_matrix(torch.from_numpy(table))
    for side in (1, 4, 100):
        found = rank(scores._replace(side=side), pairs, images, captions, progress=False)
        inside = {
            (int(np.flatnonzero(images == i)[0]), int(np.flatnonzero(captions == j)[0]))
            for i, j in pairs
            if i in images and j in captions
        }
        part = table[images][:, captions]
        assert found.i2t.tolist() == slow_rank(part, inside)
        assert found.t2i.tolist() == slow_rank(part.T, {(j, i) for i, j in inside})


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("kept", [0, 1 << 25])
def test_ranks_are_those_of_the_matrix_of_the_same_blocks(
    name: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: both passes see the same numbers, though captions are not in their images' order."""
    monkeypatch.setattr("vse.evaluation.ranks._KEPT", kept)
    of = uneven_captions(90, 400)
    similarity: Any = SIMILARITIES[name]
    similarity = similarity() if isinstance(similarity, type) else similarity
    images, captions = random_embeddings(of, 1 if name == "cosine" else 3, 40)
    captions[5:50] = captions[5]  # duplicates, which tie with one another's positives
    scores = blocks_of_embeddings(similarity, images, captions)._replace(side=32)
    matrix = torch.full((90, 400), torch.nan)

    def recorded(rows: Items, columns: Items) -> Tensor:
        block = scores.block(rows, columns)
        i, j = torch.arange(90)[rows][:, None], torch.arange(400)[columns]
        again = ~matrix[i, j].isnan()
        assert torch.equal(matrix[i, j][again], block[again])
        matrix[i, j] = block
        return block

    found = rank(scores._replace(block=recorded), own_pairs(of), progress=False)
    positives = torch.arange(90)[:, None] == torch.from_numpy(of)
    assert torch.equal(found.i2t, query_ranks(matrix, positives))
    assert torch.equal(found.t2i, query_ranks(matrix.T, positives.T))
    assert metrics_of_ranks(*found) == retrieval_metrics(matrix, positives)


def test_a_collapsed_model_scores_nothing() -> None:
    """All embeddings are one, which is not exact in binary; every score ties with every other one."""
    of = np.repeat(np.arange(60), 5)
    for similarity, k in ((cosine, 1), (max_cosine, 3), (smooth_chamfer, 4)):
        one = torch.nn.functional.normalize(torch.randn(1, k, 37), dim=-1)
        scores = blocks_of_embeddings(similarity, one.expand(60, -1, -1), one.expand(300, -1, -1))._replace(side=16)
        found = rank(scores, own_pairs(of), progress=False)
        assert metrics_of_ranks(*found)["rsum"] == 0
        assert found.i2t.unique().tolist() == [295] and found.t2i.unique().tolist() == [59]


def test_a_collapsed_model_scores_nothing_in_large_blocks() -> None:
    """One image more than a block may have: alone in its block, it would be multiplied by another kernel."""
    one = torch.nn.functional.normalize(torch.randn(1, 1, 1024), dim=-1)
    side = blocks_of_embeddings(cosine, one, one).side
    scores = blocks_of_embeddings(cosine, one.expand(side + 1, -1, -1), one.expand(side + 2, -1, -1))
    found = rank(scores, own_pairs(np.arange(side + 2) % (side + 1)), progress=False)
    assert metrics_of_ranks(*found)["rsum"] == 0


def test_infinite_scores_are_ranked_like_others() -> None:
    table = torch.tensor([[-torch.inf, 0.0, -torch.inf], [torch.inf, 1.0, torch.inf]])
    for side in (1, 2, 9):
        assert_slow_twin(blocks_of_matrix(table)._replace(side=side), table.numpy(), np.array([[0, 0], [1, 2]]))


@pytest.mark.parametrize("place", [(0, 0), (6, 3), (6, 11)])
@pytest.mark.parametrize("kept", [0, 1 << 25])
def test_one_nan_is_found(place: tuple[int, int], kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the positives or elsewhere."""
    monkeypatch.setattr("vse.evaluation.ranks._KEPT", kept)
    table = torch.randn(12, 12)
    table[place] = torch.nan
    for scores in (blocks_of_matrix(table), blocks_of_matrix(table)._replace(side=5)):
        with pytest.raises(NaNScores, match="the model gives NaN; its weights have diverged"):
            rank(scores, own_pairs(np.arange(12)), progress=False)
        with pytest.raises(NaNScores, match="the model gives NaN; its weights have diverged"):
            rank_within(scores, np.array([[6, 7], [0, 1]]), progress=False)


def test_without_a_positive_there_is_nothing_to_rank() -> None:
    scores = blocks_of_matrix(torch.zeros(3, 4))
    for pairs in (np.empty((0, 2), dtype=np.int64), np.array([[2, 3]])):
        with pytest.raises(ValueError, match="no query has a positive, so there is nothing to rank"):
            rank(scores, pairs, captions=np.arange(3), progress=False)


class Watch(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, and counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.calls = 0, Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.calls[str(function).removeprefix("aten.").split(".")[0]] += 1
        for found in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(found, Tensor):
                self.largest = max(self.largest, found.numel())
        return result


@contextmanager
def watched() -> Iterator[Watch]:
    with Watch() as watch:
        yield watch


@pytest.mark.parametrize("k", [1, 2])
def test_no_matrix_is_made(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for metrics, folds, intervals and single embeddings, but where it is asked for."""
    monkeypatch.setattr("vse.evaluation.blocks._BLOCK", 4000)
    of = uneven_captions(200, 900)
    images, captions = random_embeddings(of, k, 8)
    embeddings = CorpusEmbeddings(smooth_chamfer, images, captions)
    corpus = corpus_of_ids(of)
    assert captions.numel() < 200 * 900 / 10
    with watched() as watch:
        scored = score_embeddings(embeddings, corpus, "a")
        report(scored, corpus, PROTOCOLS["retrieval"])
        bootstrap([[scored.ranks(of)], [scored.ranks(of)]], samples=5)
        scored.ranks(of, folds=5)
        single_embedding_rsums(embeddings, of, progress=False)
        pairs = np.array([[3, 4], [4, 90]])
        rank_within(blocks_of_embeddings(smooth_chamfer, captions, captions), pairs, progress=False)
    assert watch.largest < 200 * 900 / 10
    with watched() as watch:
        assert scored.scores.shape == (200, 900)
    assert watch.largest == 200 * 900


def test_positives_meet_in_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass is short whatever the order of the captions, also where nothing is kept for the second one."""
    monkeypatch.setattr("vse.evaluation.ranks._KEPT", 0)
    scores = blocks_of_matrix(torch.randn(100, 500))._replace(side=10)
    calls = []

    def counted(rows: Items, columns: Items) -> Tensor:
        calls.append(1)
        return scores.block(rows, columns)

    of = np.random.default_rng(0).permutation(np.arange(500) // 5)
    rank(scores._replace(block=counted), own_pairs(of), progress=False)
    assert len(calls) == 10 * 50 + 50


def test_blocks_are_not_waited_for() -> None:
    """An accelerator computes all of them before anything is looked at."""
    table, pairs = torch.randn(40, 60), own_pairs(np.random.default_rng(0).integers(0, 40, 60))
    waits = []
    for side in (60, 5):
        with watched() as watch:
            rank(blocks_of_matrix(table)._replace(side=side), pairs, progress=False)
        waits.append(sum(watch.calls[name] for name in ("_local_scalar_dense", "nonzero", "_to_copy")))
        assert watch.calls["amax"] == (1 if side == 60 else 96)
    copies_of_counts = 2 * (96 - 1)  # from float32 to whole numbers, on the device
    assert waits[1] - waits[0] == copies_of_counts


def test_scores_are_computed_once() -> None:
    """Metrics and intervals share their ranks; ranks come from the matrix if that is there."""
    of, calls = np.repeat(np.arange(10), 2), []

    def counted(a: Tensor, b: Tensor) -> Tensor:
        calls.append((len(a), len(b)))
        return cosine(a, b)

    embeddings = CorpusEmbeddings(counted, *random_embeddings(of))
    scored = CorpusScores("a", embeddings=(embeddings,))
    assert scored.ranks(of) is scored.ranks(of) and calls == [(10, 20)]
    assert [len(fold.i2t) for fold in scored.ranks(of, 2)] == [5, 5] and len(calls) == 3
    assert scored.ranks(of[::-1].copy()) is not scored.ranks(of) and len(calls) == 4
    again = CorpusScores("a", embeddings=(embeddings,))
    torch.testing.assert_close(again.scores, score(cosine, *embeddings[1:]))
    assert again.scores is again.scores and len(calls) == 5
    assert torch.equal(again.ranks(of)[0].i2t, scored.ranks(of)[0].i2t) and len(calls) == 5
