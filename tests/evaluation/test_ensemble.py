from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import corpus_of_ids, random_embeddings, random_scores

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.encode import CorpusEmbeddings
from vse.evaluation.ensemble import ensemble, read_scores, save_scores
from vse.evaluation.score import CorpusScores
from vse.similarity import cosine


def scored(name: str, seed: int = 0, **more: Any) -> CorpusScores:
    return CorpusScores(name, random_scores(10, seed=seed)[0], **more)


@pytest.fixture
def corpus() -> Corpus:
    return corpus_of_ids(np.repeat(np.arange(10), 5))


def test_it_is_the_mean_of_scores() -> None:
    members = [scored(name, seed) for seed, name in enumerate("abc")]
    before = [member.scores.clone() for member in members]
    mean = ensemble(members)
    assert mean.name == "ensemble of 3" and mean.models == 3 and mean.sets == {}
    torch.testing.assert_close(mean.scores, torch.stack(before).mean(0))
    assert all(torch.equal(a, b.scores) for a, b in zip(before, members, strict=True))
    other = CorpusScores("d", random_scores(11)[0])
    with pytest.raises(InputError, match=r"a has scores \(10, 50\), d \(11, 55\); expected the same corpus"):
        ensemble([members[0], other])


def test_it_counts_models_and_keeps_embeddings() -> None:
    embeddings = CorpusEmbeddings(cosine, *random_embeddings(np.arange(10)))
    first, second = scored("a", embeddings=(embeddings,)), scored("b", 1, embeddings=(embeddings,) * 2, models=2)
    assert ensemble([first, second]).models == 3 and len(ensemble([first, second]).embeddings) == 3
    assert ensemble([first, second]).name == "ensemble of 3"
    assert all(part is embeddings for part in ensemble([first, second]).embeddings)
    for members in ([first, scored("c")], [scored("c"), first]):
        assert ensemble(members).embeddings == ()  # the scores of one of them are all that there is


def test_members_weigh_the_same_however_many_models_they_are() -> None:
    parts = [scored("a", 0, models=2), scored("b", 1), scored("c", 2, models=3)]
    both = ensemble(parts)
    torch.testing.assert_close(both.scores, (parts[0].scores + parts[1].scores + parts[2].scores) / 3)
    assert both.models == 6 and both.name == "ensemble of 6" and both.embeddings == () and both.sets == {}


def test_scores_come_back_from_their_file(tmp_path: Path, corpus: Corpus) -> None:
    saved = scored("a", models=2)
    save_scores(tmp_path / "a.npz", saved, corpus)
    found = read_scores(tmp_path / "a.npz", corpus)
    assert torch.equal(found.scores, saved.scores) and found.models == 2 and found.name == str(tmp_path / "a.npz")
    assert found.embeddings == () and ensemble([found, scored("b", 1)]).name == "ensemble of 3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.full((10, 50), np.nan, np.float32)}, r"float32 of shape \(10, 50\), or not finite; expected"),
        ({"scores": np.full((10, 50), "x")}, "its scores are <U1 of shape"),
        ({"scores": np.zeros((5, 50), np.float32)}, r"its scores are float32 of shape \(5, 50\)"),
        ({"models": np.array(-5)}, "its number of models is -5; expected 1 or more"),
        ({"image_ids": np.array(list("abcdefghij"))}, "its image_ids are not those of small"),
        ({"caption_ids": np.arange(1, 51).astype(str)}, "its caption_ids are not those of small"),
        ({"captions": np.array(["?"])}, "its captions are not those of small"),
    ],
)
def test_files_of_other_scores(tmp_path: Path, corpus: Corpus, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.npz"
    save_scores(path, scored("a"), corpus)
    np.savez(path, **{**np.load(path), **changes})
    with pytest.raises(InputError, match=f"a.npz: {message}" if message.startswith("its") else message):
        read_scores(path, corpus)


@pytest.mark.parametrize("key", ["image_ids", "caption_ids", "captions"])
def test_scores_of_another_order_are_refused(tmp_path: Path, corpus: Corpus, key: str) -> None:
    save_scores(tmp_path / "a.npz", scored("a"), corpus)
    first, second, *rest = getattr(corpus, key)
    changes: dict[str, Any] = {key: [second, first, *rest]}
    other = corpus_of_ids(corpus.image_of_caption, **changes)
    with pytest.raises(InputError, match=f"a.npz: its {key} are not those of small"):
        read_scores(tmp_path / "a.npz", other)


def test_files_that_hold_no_scores(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="a.npz: no such file of scores"):
        read_scores(path, corpus)
    np.savez(path, x=np.zeros(3))
    for act in (lambda: read_scores(path, corpus), lambda: save_scores(path, scored("a"), corpus)):
        with pytest.raises(InputError, match="a.npz: not a file of scores that --save-scores wrote"):
            act()
    path.unlink()
    save_scores(path, scored("a"), corpus)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="a.npz: not a file of scores"):
        read_scores(path, corpus)
    with pytest.raises(InputError, match=r"x.txt: expected a file name that ends in \.npz"):
        save_scores(tmp_path / "x.txt", scored("a"), corpus)
