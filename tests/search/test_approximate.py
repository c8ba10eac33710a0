"""Items that Faiss proposes and the similarity ranks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import WORDS, Outcome
from search_cases import with_config, write_index
from similarity_cases import make

from vse.ragged import RaggedSets, Sets
from vse.search.approximate import About, Proposals, choose_factory, recall
from vse.search.index import Index, Kind
from vse.search.shards import Shards

CPU = torch.device("cpu")
Command = Callable[..., Outcome]


def drawn(count: int, places: int, is_ragged: bool, seed: int, width: int = 16) -> Sets:
    """Embedding sets of random directions."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, places + 1, (count,), generator=generator) if is_ragged else torch.full((count,), places)
    rows = torch.nn.functional.normalize(torch.randn(int(sizes.sum()), width, generator=generator), dim=1)
    return RaggedSets(rows, sizes) if is_ragged else rows.view(count, places, width)


@pytest.mark.parametrize(
    ("name", "places", "is_ragged"),
    [("cosine", 1, False), ("smooth_chamfer", 3, False), ("max_sim", 4, True)],
)
def test_with_all_items_proposed_it_is_the_exact_search(
    name: str, places: int, is_ragged: bool, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    index = Index(write_index(tmp_path, drawn(60, places, is_ragged, 0), shard=13), make(name, torch.float32), CPU)
    about = index.build_approximate()
    assert about.factory == "Flat" and about.own_items and about.queries == 60
    queries = drawn(9, places, is_ragged, 1)
    exact = index.search_sets(queries, "captions", 10)
    found = Index(Shards(tmp_path), make(name, torch.float32), CPU).search_sets(queries, "captions", 10, True, 1000)
    assert torch.equal(exact.positions, found.positions)
    torch.testing.assert_close(exact.scores, found.scores)


def test_recall_is_measured_and_lists_are_added(tmp_path: Path) -> None:
    """Random directions have no neighbourhoods: eight of 32 lists find too little, so more are looked at."""
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    items, queries = drawn(3000, 1, False, 0), drawn(40, 1, False, 1)
    index = Index(write_index(tmp_path, items, shard=1000, half=False), make("cosine", torch.float32), CPU)
    about = index.build_approximate("IVF32,Flat", queries, "captions")
    assert about.factory == "IVF32,Flat" and about.probe in (16, 32) and not about.own_items and about.queries == 40
    assert about.recall is not None and about.recall >= 0.95
    looks = f"{about.probe} lists a query, {about.candidates} candidates for each embedding"
    assert f"{looks}; recall@10 against the exact search {about.recall:.3f} (40 queries)" in str(about)
    again = Index(Shards(tmp_path), make("cosine", torch.float32), CPU)
    exact, found = (again.search_sets(queries, "captions", 10, approximately) for approximately in (False, True))
    shared = [len(set(a) & set(b)) for a, b in zip(exact.positions.tolist(), found.positions.tolist(), strict=True)]
    assert sum(shared) / 400 == pytest.approx(about.recall)
    proposals = Proposals(again.shards)
    assert proposals.about == about
    proposals.look(1, about.candidates)
    assert max(len(proposed) for proposed in proposals.find(queries, 5000)) < 600


def test_candidates_are_added_where_more_lists_do_not_help(tmp_path: Path) -> None:
    """The sets with the best mean over all pairs need not have one of the 100 best embeddings."""
    pytest.importorskip("faiss")
    items, queries = drawn(700, 4, False, 0), drawn(10, 4, False, 1)
    similarity = make("match_probability", torch.float32)
    about = Index(write_index(tmp_path, items), similarity, CPU).build_approximate("Flat", queries, "captions")
    assert about.recall is not None and about.recall >= 0.95 and 100 < about.candidates <= 3200
    index = Index(Shards(tmp_path), similarity, CPU)
    exact = index.search_sets(queries, "captions", 10).positions
    assert recall(exact, index.search_sets(queries, "captions", 10, True).positions) == about.recall
    assert recall(exact, index.search_sets(queries, "captions", 10, True, candidates=100).positions) < 0.95


def test_fewer_proposed_than_wanted(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    index = Index(write_index(tmp_path, drawn(30, 1, False, 0)), make("cosine", torch.float32), CPU)
    index.build_approximate()
    best = index.search_sets(drawn(2, 1, False, 1), "captions", 10, True, candidates=4)
    assert (best.positions >= 0).sum(1).tolist() == [4, 4] and (best.positions[:, 4:] == -1).all()
    assert best.scores[:, 4:].isinf().all()


def test_the_choice_of_an_index() -> None:
    assert choose_factory(20_000, 512) == "Flat" and choose_factory(20_001, 512) == "IVF256,SQ8"
    assert choose_factory(100_000_000, 96) == "IVF16384_HNSW32,PQ32"
    assert recall(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [7, -1]])) == 0.5


@pytest.mark.parametrize("factory", ["IVF256,SQ8", pytest.param("IVF256_HNSW32,PQ16", marks=pytest.mark.slow)])
def test_every_index_that_is_chosen_can_be_built(factory: str, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    index = Index(write_index(tmp_path, drawn(10240, 1, False, 0), shard=5000), make("cosine", torch.float32), CPU)
    about = index.build_approximate(factory, drawn(5, 1, False, 1), "captions")
    assert about.rows == 10240 and about.recall is not None and about.recall > 0.3


def test_the_commands(make_run: Callable[..., Path], command: Command, tmp_path: Path) -> None:
    """Recall is measured with the other side of the data, or with one's own captions."""
    pytest.importorskip("faiss")
    run, out = with_config(make_run()), ["--out", tmp_path / "index"]
    outcome = command("embed", run, run, *out, "--approximate")
    assert outcome.code == 0 and "recall@10 against the exact search 1.000 (50 queries)" in outcome.out, outcome.err
    (tmp_path / "queries.txt").write_text("\n".join(WORDS[:7]) + "\n")
    outcome = command("embed", run, run, *out, "--approximate", "--queries", tmp_path / "queries.txt")
    assert outcome.code == 0 and "Flat over 10 embeddings, " in outcome.out and "(7 queries)" in outcome.out
    about = About(**json.loads((tmp_path / "index" / "approximate.json").read_text()))
    assert about.queries == 7 and not about.own_items
    exact, found = (command("search", tmp_path / "index", "a dog", *more) for more in ([], ["--approximate"]))
    assert found.code == 0 and found.out == exact.out
    wrong = command("embed", run, run, *out, "--approximate", "--factory", "Tree").error
    assert "--factory Tree: Faiss cannot build it (could not parse index string Tree)" in wrong
    captions = command("embed", run, run, "--out", tmp_path / "captions", "--captions", "--approximate")
    assert "Flat over 50 embeddings, 100 candidates for each embedding; recall@10" in captions.out
    assert "against the exact search 1.000 (10 queries)" in captions.out
    for name in ("approximate.faiss", "approximate.json"):
        (tmp_path / "index" / name).write_bytes((tmp_path / "captions" / name).read_bytes())
    error = command("search", tmp_path / "index", "a dog", "--approximate").error
    assert "approximate.faiss: belongs to other embeddings; `vse embed ... --out" in error
    (tmp_path / "index" / "approximate.faiss").write_text("no index")
    assert "approximate.faiss: cannot be read (" in command("search", tmp_path / "index", "x", "--approximate").error


def test_without_faiss(
    make_run: Callable[..., Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before anything is embedded; the exact search needs no Faiss."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    run, out = with_config(make_run()), ["--out", tmp_path / "index"]
    error = command("embed", run, run, *out, "--approximate").error
    assert "an approximate index needs Faiss: pip install 'vse-retrieval[faiss]'" in error
    assert not (tmp_path / "index").exists()
    assert command("embed", run, run, *out).code == 0
    assert command("search", tmp_path / "index", "a dog").code == 0
    assert "pip install 'vse-retrieval[faiss]'" in command("search", tmp_path / "index", "x", "--approximate").error


def test_more_items_are_proposed_where_more_are_wanted(tmp_path: Path) -> None:
    """The 100 candidates that ten items need are too few for 150."""
    pytest.importorskip("faiss")
    index = Index(write_index(tmp_path, drawn(300, 1, False, 0)), make("cosine", torch.float32), CPU)
    index.build_approximate()
    queries = drawn(3, 1, False, 1)
    exact, found = (index.search_sets(queries, "captions", 150, approximately) for approximately in (False, True))
    assert torch.equal(found.positions, exact.positions)


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_an_indexs_own_items_are_queries_of_their_own_kind(kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    asked = []

    class Listening(Index):
        def search_sets(self, queries: Sets, kind: Kind, *rest: Any, **more: Any) -> Any:
            asked.append(kind)
            return super().search_sets(queries, kind, *rest, **more)

    Listening(
        write_index(tmp_path, drawn(20, 1, False, 0), kind), make("cosine", torch.float32), CPU
    ).build_approximate()
    assert set(asked) == {kind}
