"""The best items of a search are those of the whole score matrix, whatever the blocks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import WIDTH, draw_sets, write_index
from similarity_cases import ONE, TWINS, make, slow_scores
from torch import Tensor

from vse.evaluation.blocks import NaNScores
from vse.ragged import Sets, padded
from vse.search.exact import best_of_rows, choose_sides, find_best, in_order
from vse.search.index import Index, Kind
from vse.search.shards import Shards
from vse.sets import Aggregated
from vse.similarity import cosine

CPU = torch.device("cpu")


def slow_best(scores: Tensor, top: int) -> list[list[int]]:
    """The columns of the highest scores of each row; of equal ones, the first."""
    return [sorted(range(len(row)), key=lambda column: (-row[column], column))[:top] for row in scores.tolist()]


def in_blocks(scores: Tensor, side: int) -> Iterator[tuple[int, Aggregated]]:
    """The columns of a matrix as if they were embedding sets."""
    for first in range(0, scores.shape[1], side):
        yield first, Aggregated(scores[:, first : first + side])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_ties_and_any_blocks(data: st.DataObject) -> None:
    """Few different scores, so that most are ties; -inf among them."""
    queries, items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40))
    values = st.sampled_from([0.5, 0.25, 0.0, -1.0, float("-inf")])
    scores = torch.tensor([[data.draw(values) for _ in range(items)] for _ in range(queries)])
    top = data.draw(st.integers(1, items))
    block_side, query_side = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 7))
    blocks = in_blocks(scores, block_side)
    best = find_best(lambda rows, block: block.embeddings[rows], blocks, queries, top, query_side, CPU)
    expected = slow_best(scores, top)
    assert best.positions.tolist() == expected
    assert torch.equal(best.scores, scores.gather(1, torch.tensor(expected)))


def test_all_scores_alike() -> None:
    """A collapsed model's results are the first items."""
    scores = torch.zeros(3, 100)
    best = find_best(lambda rows, block: block.embeddings[rows], in_blocks(scores, 7), 3, 5, 2, CPU)
    assert best.positions.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_nan_is_an_error() -> None:
    scores = torch.zeros(2, 10)
    scores[1, 7] = torch.nan
    with pytest.raises(NaNScores, match="the model gives NaN"):
        find_best(lambda rows, block: block.embeddings[rows], in_blocks(scores, 4), 2, 2, 2, CPU)


def test_a_torn_tie() -> None:
    values, places = best_of_rows(torch.tensor([[1.0, 2.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]]), 2)
    assert places.sort().values.tolist() == [[0, 1], [0, 1]] and values.sum(1).tolist() == [3.0, 7.0]
    assert in_order(torch.tensor([[1.0, 2.0, 1.0]]), torch.tensor([[9, 8, 7]]))[1].tolist() == [[8, 7, 9]]


@pytest.mark.parametrize(("queries", "places", "width"), [(1, (1, 1), 512), (5000, (4, 4), 512), (3, (60, 60), 1024)])
def test_blocks_are_bounded(queries: int, places: tuple[int, int], width: int) -> None:
    sides = choose_sides(queries, places, width, CPU)
    assert 1 <= sides.queries <= queries and sides.items >= 1
    assert sides.queries * sides.items * places[0] * places[1] <= 1 << 21
    assert sides.items * places[1] * width <= 1 << 20


CASES = [(name, most, False) for name in TWINS for most in (1, 4) if most == 1 or name not in ONE]
CASES += [(name, 4, True) for name in TWINS if name not in ONE]


@pytest.mark.parametrize(("name", "most", "is_ragged"), CASES)
@pytest.mark.parametrize("kind", ["captions", "images"])
def test_every_similarity(name: str, most: int, is_ragged: bool, kind: Kind, tmp_path: Path) -> None:
    """Against the similarity's slow twin, pair by pair, from float16 on disk; images come first, or else the query."""
    items, queries = draw_sets(23, most, is_ragged, 0), draw_sets(4, most, is_ragged, 1)
    index = Index(write_index(tmp_path, items), make(name, torch.float32), CPU)
    found = index.search_sets(queries, kind, top=9)

    def rows(sets: Sets) -> list[Tensor]:
        if isinstance(sets, Tensor):
            return list(sets.double())
        return [part.double() for part in sets.embeddings.split(sets.sizes.tolist())]

    if kind == "images":
        scores = slow_scores(name, rows(queries), rows(items))
    else:
        scores = slow_scores(name, rows(items), rows(queries)).T
    scores = scores.detach()
    torch.testing.assert_close(found.scores.double(), scores.gather(1, found.positions), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.scores.double(), scores.sort(descending=True).values[:, :9], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_ragged", [False, True])
def test_shards_and_blocks_do_not_matter(is_ragged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact scores, with many ties: the same items in the same order from any shards and blocks."""

    def overlap(a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
        return torch.einsum("akh,clh->ac", a, b)  # masked places are zero

    items, queries = draw_sets(60, 3, is_ragged, 0), draw_sets(5, 3, is_ragged, 1)
    found = []
    for shard, pairs in ((60, 1 << 21), (7, 1 << 21), (1, 1 << 21), (60, 1), (13, 100), (60, 500)):
        monkeypatch.setattr("vse.search.exact._PAIRS", pairs)
        index = Index(write_index(tmp_path / f"{shard} {pairs}", items, shard=shard), overlap, CPU)
        found.append(index.search_sets(queries, "captions", top=25).positions.tolist())
    assert all(positions == found[0] for positions in found)
    a, b = padded(queries).embeddings, padded(items).embeddings
    assert found[0] == slow_best(overlap(a, b), 25)


def test_more_wanted_than_there_are(tmp_path: Path) -> None:
    index = Index(write_index(tmp_path, draw_sets(3, 1, False, 0)), cosine, CPU)
    assert len(index) == 3
    assert index.search_sets(draw_sets(2, 1, False, 1), "captions", top=10).positions.shape == (2, 3)
    for arguments, message in (
        ((0,), "top must be at least 1, got 0"),
        ((1, True), "has no approximate index; `vse embed ... --out"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search_sets(draw_sets(2, 1, False, 1), "captions", *arguments)
    with pytest.raises(ValueError, match="kind must be one of 'images' or 'captions', got 'texts'"):
        index.search_sets(draw_sets(2, 1, False, 1), "texts")  # type: ignore[arg-type]


def test_a_similarity_without_masks(tmp_path: Path) -> None:
    shards = write_index(tmp_path, draw_sets(9, 3, True, 0))
    with pytest.raises(ValueError, match="the sets differ in size, so the similarity must be called with a_mask"):
        Index(shards, lambda a, b: a[:, 0] @ b[:, 0].T, CPU)


@pytest.mark.parametrize("is_ragged", [False, True])
def test_single_items_are_read(is_ragged: bool, tmp_path: Path) -> None:
    """By their positions, and by the numbers of their embeddings."""
    items = draw_sets(30, 4, is_ragged, 0)
    shards = write_index(tmp_path, items)
    positions = np.array([0, 6, 7, 20, 29])
    taken, expected = padded(shards.take(positions, CPU)), padded(items)
    for row, position in enumerate(positions.tolist()):
        size = 4 if isinstance(items, Tensor) else int(items.sizes[position])
        assert torch.equal(taken.embeddings[row, :size], expected.embeddings[position, :size])
    sizes = [4] * 30 if isinstance(items, Tensor) else items.sizes.tolist()
    owners = np.repeat(np.arange(30), sizes)
    assert shards.items_of_rows(np.arange(len(owners))).tolist() == owners.tolist()
    assert {position: item.id for position, item in shards.items(positions[::-1]).items()} == {
        position: str(position) for position in positions.tolist()
    }


def test_damaged_indices(tmp_path: Path) -> None:
    def damaged(name: str, content: bytes, message: str) -> None:
        folder = tmp_path / name.replace("/", "_")
        write_index(folder, draw_sets(9, 3, True, 0), shard=5)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Shards(folder).items(np.arange(9))

    damaged("manifest.json", b"{", "manifest.json: not a JSON file")
    damaged("manifest.json", b'{"format": 7}', "manifest.json: not the manifest of an index that this version reads")
    damaged("manifest.json", b'{"format": 1}', "manifest.json: damaged .'shards' is missing.")
    damaged("00001.npy", b"x", "00001.npy: not a complete .npy file of numbers .*; embed again")
    damaged("00001.sizes.npy", b"", "00001.sizes.npy: not a complete .npy file of numbers .*; embed again")
    damaged("00001.jsonl", b"{\n", "00001.jsonl: damaged .*; embed again")
    with pytest.raises(ValueError, match="none: no index in this folder; `vse embed RUN PICTURES --out .*none` makes"):
        Shards(tmp_path / "none")
    folder = tmp_path / "shorter"
    write_index(folder, draw_sets(9, 3, True, 0), shard=5)
    np.save(folder / "00000.npy", np.zeros((2, WIDTH), dtype=np.float16))
    with pytest.raises(ValueError, match="00000.npy: has an array of shape .2, 6., but manifest.json says"):
        Shards(folder)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("is_ragged", [False, True])
def test_on_a_gpu(is_ragged: bool, tmp_path: Path) -> None:
    items, queries = draw_sets(500, 4, is_ragged, 0), draw_sets(20, 4, is_ragged, 1)
    shards = write_index(tmp_path, items, shard=64)
    similarity = make("smooth_chamfer", torch.float32)
    on_cpu, on_gpu = (
        Index(shards, similarity, torch.device(device)).search_sets(queries, "captions", 30)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_cpu.scores, on_gpu.scores, atol=1e-5, rtol=1e-5)
