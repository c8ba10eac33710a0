"""Word vectors from files, and into the text encoder."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Outcome

from vse.checkpoints.native import load_checkpoint
from vse.data.word_vectors import read_vectors
from vse.errors import InputError

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GLOVE = ["the 0.1 0.2 0.3", "dog 1 2 3", "tshirt 4 5 6", "café 7 8 9", ". . 0 0 0", "black 1 1 1", "dog 9 9 9"]


@pytest.mark.parametrize("header", [[], ["7 3"]], ids=["GloVe", "fastText"])
def test_words_and_their_fallbacks(tmp_path: Path, header: list[str]) -> None:
    file = write(tmp_path / "v.txt", [*header, *GLOVE])
    words = ["<pad>", "dog", "t-shirt", "café", "black/white", "zebra", ". .", "d.o.g"]
    vectors, found = read_vectors(file, words, 3)
    assert found.tolist() == [False, True, True, True, True, False, True, True]
    assert vectors[found].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1], [0, 0, 0], [1, 2, 3]]
    assert vectors.dtype == np.float32 and (vectors[~found] == 0).all()


def test_a_words_own_vector_comes_before_its_fallback(tmp_path: Path) -> None:
    file = write(tmp_path / "v.txt", ["tshirt 1 1 1", "t-shirt 2 2 2", "a 0 0 0"])
    assert read_vectors(file, ["t-shirt", "tshirt"], 3)[0].tolist() == [[2, 2, 2], [1, 1, 1]]
    file = write(tmp_path / "w.txt", ["t-shirt 2 2 2", "tshirt 1 1 1", "a 0 0 0"])
    assert read_vectors(file, ["t-shirt", "tshirt"], 3)[0].tolist() == [[2, 2, 2], [1, 1, 1]]


def test_the_result_is_kept_until_file_or_words_change(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "v.txt", GLOVE)
    first = read_vectors(file, ["dog"], 3)[0]
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])  # damaged: read again
    assert np.array_equal(read_vectors(file, ["dog"], 3)[0], first)
    np.savez(kept, vectors=first * 2, found=np.array([True]))
    assert np.array_equal(read_vectors(file, ["dog"], 3)[0], first * 2)  # it is what is read
    assert read_vectors(file, ["the", "dog"], 3)[0].shape == (2, 3)
    write(file, ["dog 5 5 5", "a 1 1 1"])
    os.utime(file, ns=(1, 1))
    assert read_vectors(file, ["dog"], 3)[0].tolist() == [[5, 5, 5]]
    write(file, ["dog 6 6 6", "a 1 1 1"])  # as long as before
    os.utime(file, ns=(2, 2))
    assert read_vectors(file, ["dog"], 3)[0].tolist() == [[6, 6, 6]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["dog 1 2", "cat 1 2"], "line 1 has a word and 2 numbers, expected 3"),
        (["2 4", "dog 1 2 3 4"], "line 2 has a word and 4 numbers, expected 3"),
        (["the 1 2 3", "a 1 2 3", "dog 1 x 3"], "line 3: expected a word and 3 numbers"),
        (["the nan 2 3", "dog 1 2 3", "cat 1 inf 3"], "line 3: NaN or Inf in the vector of a word"),
    ],
)
def test_bad_files(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_vectors(write(tmp_path / "v.txt", lines), ["dog", "cat"], 3)
    with pytest.raises(
        InputError, match=r"none.txt: no such file; get GloVe.*nlp.stanford.edu/projects/glove, or set .*vectors=null"
    ):
        read_vectors(tmp_path / "none.txt", ["dog"], 3)


@pytest.mark.parametrize("frozen", [True, False])
def test_they_fill_the_text_encoder(cli: Cli, tiny: list[str], tmp_path: Path, frozen: bool) -> None:
    file = write(tmp_path / "v.txt", [f"{word} {i} 1 1 1 1 1" for i, word in enumerate(("dog", "cat", "red"))])
    settings = [f"data.vocabulary.vectors={file}", f"model.text.encoder.freeze_words={str(frozen).lower()}"]
    outcome = cli("train", *tiny, *settings, "train.epochs=1")
    assert outcome.code == 0 and "v.txt: vectors of 3 of " in outcome.out
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    places = [state["vocabulary"].index(word) for word in ("dog", "cat", "red")]
    rows = state["model"]["text.encoder.embedding.weight"][places]
    expected = torch.tensor([[i, 1.0, 1, 1, 1, 1] for i in range(3)])
    assert torch.equal(rows, expected) == frozen and torch.allclose(rows, expected, atol=0.05)
    file.unlink()  # a checkpoint needs no other file, a run goes on without it
    assert cli("eval", tmp_path / "run").code == 0
    assert cli("train", *tiny, *settings, "train.epochs=2").code == 0
    assert "v.txt: no such file" in cli("train", *tiny, *settings, f"run.dir={tmp_path / 'other'}").error
