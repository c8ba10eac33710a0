import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vse import cache
from vse.data import captions
from vse.data.captions import FlatCaptions, flat_captions, pad_flat
from vse.data.vocabulary import Vocabulary, split_words

CAPTIONS = ["a dog", "", 'A "red" dog runs.', "cannot go", "a dog"] * 30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Few captions count as many, but no process is started for them, and nothing is in the cache."""
    monkeypatch.setattr(captions, "usable_cores", lambda: 0)
    monkeypatch.setenv("VSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(captions, "_MANY", 100)
    monkeypatch.setattr(captions, "_CHUNK", 16)
    captions._LATEST.clear()
    return tmp_path / "cache"


def again(texts: list[str] = CAPTIONS, version: str = "1") -> FlatCaptions:
    """As a new process would do it."""
    captions._LATEST.clear()
    return flat_captions(texts, split_words, version)


def texts_of(flat: FlatCaptions) -> list[list[str]]:
    """The tokens of each caption, one by one."""
    starts = [0, *flat.ends[:-1]]
    return [[flat.kinds[t] for t in flat.tokens[a:b]] for a, b in zip(starts, flat.ends, strict=True)]


def equal(a: FlatCaptions, b: FlatCaptions) -> bool:
    return a.kinds == b.kinds and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True)
    )


@pytest.mark.slow
def test_many_and_few_captions_give_the_same(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Several processes, one process and a loop over the captions."""
    monkeypatch.setattr(captions, "usable_cores", lambda: 2)
    before = torch.get_rng_state()
    many = again()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(captions, "_MANY", 1000)
    assert equal(again(), many)
    assert len(list(folder.iterdir())) == 1
    assert texts_of(many) == [list(split_words(caption)[0]) for caption in CAPTIONS]
    assert many.words.tolist() == [number for caption in CAPTIONS for number in split_words(caption)[1]]


@pytest.mark.slow
def test_spawned_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows: what goes to the processes can be pickled, and they give the same."""
    expected = again()
    assert len(pickle.dumps(captions._Chunks(CAPTIONS, split_words))) < 10_000
    monkeypatch.setattr(captions, "usable_cores", lambda: 1)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert equal(captions._split_all(CAPTIONS, split_words), expected)
    finally:
        multiprocessing.set_start_method(method, force=True)


def test_captions_are_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary and the batches share one pass; a later run needs none, with any vocabulary."""
    passes: list[int] = []
    split_all = captions._split_all
    monkeypatch.setattr(captions, "_split_all", lambda *a: passes.append(1) or split_all(*a))  # type: ignore[func-returns-value]
    vocabulary = Vocabulary.build(CAPTIONS)
    flat, ids = vocabulary.encode_all(CAPTIONS)
    assert len(passes) == 1
    captions._LATEST.clear()
    later = Vocabulary.build(CAPTIONS, min_count=50)
    found, few = later.encode_all(CAPTIONS)
    assert len(passes) == 1 and equal(found, flat)
    assert texts_of(found) == texts_of(flat) and len(set(few)) < len(set(ids))
    assert ids[flat.tokens[: flat.ends[0]]].tolist() == vocabulary.encode("a dog").tolist()


def test_other_captions_or_rules_are_not_taken_from_the_cache() -> None:
    first = again()
    joined = ["a dog", "", *CAPTIONS[2:-2], "cannot go" + "a", " dog"]  # the same letters, cut elsewhere
    assert not equal(again(joined), first)
    assert texts_of(again([*CAPTIONS[:-1], "a cat"]))[-1] == ["<start>", "a", "cat", "<end>"]
    captions._LATEST.clear()
    assert flat_captions(CAPTIONS, lambda text: (["x"], [0]), "2").kinds == ["x"]
    assert equal(again(), first)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_cache_is_made_again(folder: Path, damage: bytes | None) -> None:
    first = again()
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
    assert equal(again(), first)
    assert len(file.read_bytes()) > 200 and equal(again(), first)


def test_the_cache_is_what_is_read(folder: Path) -> None:
    flat = again()
    upper = flat._replace(kinds=[kind.upper() for kind in flat.kinds])
    captions._save(f"1 1 {captions.captions_digest(CAPTIONS)}", upper)
    assert again().kinds == [kind.upper() for kind in flat.kinds]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot fork")
def test_runs_that_start_at_once_share_a_cache(folder: Path) -> None:
    expected = texts_of(again())
    context = multiprocessing.get_context("fork")
    for path in folder.iterdir():
        path.unlink()
    processes = [context.Process(target=again) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(folder.iterdir())) == 1 and texts_of(again()) == expected


def test_without_a_folder_it_works_too(folder: Path) -> None:
    folder.write_text("a file is in its place")
    assert len(again().ends) == len(CAPTIONS)
    assert cache.load("captions", "x") is None


def test_places_of_any_captions() -> None:
    flat = again()
    chosen = np.array([7, 2, 2, 149, 0])
    places, lengths = flat.places(chosen)
    expected = [texts_of(flat)[caption] for caption in chosen]
    assert [flat.kinds[token] for token in flat.tokens[places]] == [token for row in expected for token in row]
    assert lengths.tolist() == [len(row) for row in expected]


def test_no_captions() -> None:
    assert again([]).kinds == [] and again([]).ends.shape == again([]).tokens.shape == (0,)
    assert Vocabulary.build([]).encode("a dog").tolist() == [1, 3, 3, 2]


def test_padding_is_zero_and_masked() -> None:
    tokens, mask = pad_flat(np.array([5, 6, 7, 8]), np.array([1, 3]))
    assert tokens.tolist() == [[5, 0, 0], [6, 7, 8]] and tokens.dtype == torch.int64
    assert mask.tolist() == [[True, False, False], [True, True, True]]
