import json
import os
from pathlib import Path

import numpy as np
import pytest

from vse.data.vocabulary import SPECIALS, Vocabulary, augment, tokenise
from vse.errors import InputError

PUBLISHED = Path(os.environ.get("VSE_SCAN_VOCABULARY", "not given"))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two dogs don't play.", ["two", "dogs", "do", "n't", "play", "."]),
        ("A man's hat, red (and old).", ["a", "man", "'s", "hat", ",", "red", "(", "and", "old", ")", "."]),
        ("Mr. Smith waits. He sits.", ["mr.", "smith", "waits", ".", "he", "sits", "."]),
        ("A U.S. flag", ["a", "u.s.", "flag"]),
        ('A sign says "stop"', ["a", "sign", "says", "``", "stop", "''"]),
        ("dogs...and cats", ["dogs", "...", "and", "cats"]),
        ("a t-shirt", ["a", "t-shirt"]),
    ],
)
def test_tokenise_splits_like_nltk(caption: str, words: list[str]) -> None:
    assert tokenise(caption) == words


def test_build_and_encode() -> None:
    vocabulary = Vocabulary.build(["a dog and a cat", "a dog"], min_count=2)
    assert vocabulary.words == [*SPECIALS, "a", "dog"]
    assert vocabulary.encode("A dog barks").tolist() == [1, 5, 6, 3, 2]
    assert len(vocabulary) == 7


def test_order_does_not_depend_on_the_captions_order() -> None:
    captions = ["c b a", "b a", "d"]
    assert Vocabulary.build(captions).words == Vocabulary.build(captions[::-1]).words == [*SPECIALS, *"abcd"]


def test_read_json_appends_mask(tmp_path: Path) -> None:
    file = tmp_path / "vocab.json"
    words = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}
    file.write_text(json.dumps({"word2idx": words, "idx2word": {}, "idx": 5}))
    vocabulary = Vocabulary.read(file)
    assert vocabulary.words == [*words, "<mask>"] and vocabulary.mask == 5


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="VSE_SCAN_VOCABULARY names no f30k_precomp_vocab.json of SCAN's")
def test_read_the_published_file() -> None:
    vocabulary = Vocabulary.read(PUBLISHED)
    assert len(vocabulary) == 8482 and vocabulary.mask == 8481
    ids = json.loads(PUBLISHED.read_text())["word2idx"]
    assert vocabulary.encode("Two men").tolist() == [1, ids["two"], ids["men"], 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a JSON vocabulary"),
        ("[1]", "expected 'word2idx', a mapping"),
        ('{"word2idx": {"a": "0"}}', "expected 'word2idx', a mapping"),
        ('{"word2idx": {"<pad>": 0, "a": 2}}', "the ids of its 2 words are not 0..1"),
        ('{"word2idx": {"<pad>": 0, "a": 1}}', "lacks <start>, <end>, <unk>"),
        ('{"word2idx": {"<start>": 0, "<pad>": 1, "<end>": 2, "<unk>": 3}}', "id 0 must be <pad>, found '<start>'"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "vocab.json"
    file.write_text(content)
    with pytest.raises(InputError, match=f"vocab.json.*{message}"):
        Vocabulary.read(file)


def test_repeated_word() -> None:
    with pytest.raises(ValueError, match="holds 'a' more than once"):
        Vocabulary([*SPECIALS, "a", "b", "a"])


def change(vocabulary: Vocabulary, ids: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Each token is a word."""
    return augment(ids, np.arange(len(ids)), probability, rng, vocabulary.mask, vocabulary.plain)


def test_augmentation_frequencies() -> None:
    vocabulary = Vocabulary([*SPECIALS, *(f"w{i}" for i in range(1000))])
    ids = np.full(200_000, 7)
    ids[:2] = vocabulary.start, vocabulary.end
    out = change(vocabulary, ids, 0.2, np.random.default_rng(0))
    share = {
        "mask": (out == vocabulary.mask).mean() * len(out) / len(ids),
        "removed": 1 - len(out) / len(ids),
        "other": ((out != 7) & (out != vocabulary.mask)).mean() * len(out) / len(ids),
    }
    assert share == pytest.approx({"mask": 0.1, "removed": 0.08, "other": 0.02}, abs=0.003)
    assert out.max() < len(vocabulary) and not np.isin(out[5:], [0, 1, 2, 3]).any()


def test_augmentation_always_leaves_a_token() -> None:
    vocabulary = Vocabulary([*SPECIALS, "a"])
    rng = np.random.default_rng(0)
    assert all(len(change(vocabulary, np.array([5]), 0.99, rng)) == 1 for _ in range(100))


def test_augmentation_leaves_its_input_alone() -> None:
    ids = np.arange(5, 15)
    change(Vocabulary([*SPECIALS, *"abcdefghij"]), ids, 0.9, np.random.default_rng(0))
    assert ids.tolist() == list(range(5, 15))


def test_augmentation_leaves_some_tokens_alone() -> None:
    vocabulary = Vocabulary([*SPECIALS, *"abcdefghij"])
    ids, words = vocabulary.encode_words("a b c d e f g")
    words[[0, -1]] = -1
    rng = np.random.default_rng(0)
    outs = [augment(ids, words, 0.9, rng, vocabulary.mask, vocabulary.plain) for _ in range(200)]
    assert all(out[0] == vocabulary.start and out[-1] == vocabulary.end for out in outs)
    assert {len(out) for out in outs} > {4, 5, 6}
    assert not all(change(vocabulary, ids, 0.9, rng)[0] == vocabulary.start for _ in range(200))


def test_augmentation_changes_whole_words() -> None:
    """A word's tokens share their fate; the random ones that replace them are drawn one by one."""
    ids, words = np.array([100, 101, 102, 103, 104]), np.array([-1, 0, 0, 0, -1])
    rng = np.random.default_rng(0)
    outs = [augment(ids, words, 0.5, rng, 9, np.arange(10, 90)).tolist() for _ in range(2000)]
    assert all((out[0], out[-1]) == (100, 104) for out in outs)
    fates = [out[1:-1] for out in outs]
    replaced = [fate for fate in fates if fate not in ([101, 102, 103], [9, 9, 9], [])]
    assert all(len(fate) == 3 and all(10 <= piece < 90 for piece in fate) for fate in replaced)
    assert len({tuple(fate) for fate in replaced}) > 50 and any(len(set(fate)) == 3 for fate in replaced)
    share = [fates.count(fate) / 2000 for fate in ([101, 102, 103], [9, 9, 9], [])]
    assert share == pytest.approx([0.5, 0.25, 0.2], abs=0.04)


def test_an_extended_vocabulary_keeps_what_it_had() -> None:
    """Known words and the mask keep their ids; new words follow, the most frequent first, ties by spelling."""
    old = Vocabulary.build(["a dog and a cat"])
    more = ["a zebra and a bird", "a bird sits"]
    new = old.extended(more)
    assert new.words == [*old.words, "bird", "sits", "zebra"]
    assert (new.mask, new.start, new.unk) == (old.mask, old.start, old.unk)
    assert new.encode("a dog").tolist() == old.encode("a dog").tolist()
    assert new.encode("a zebra").tolist() == [1, 5, 11, 2] and old.encode("a zebra").tolist() == [1, 5, 3, 2]
    assert old.words[5:] == ["a", "and", "cat", "dog"]  # the old one is as it was
    assert old.extended(more, min_count=2).words == [*old.words, "bird"]
    assert old.extended(["a cat"]).words == old.words
    assert new.plain.tolist() == list(range(5, 12)) and Vocabulary(new.state).ids == new.ids


def test_an_extended_vocabulary_of_a_published_file(tmp_path: Path) -> None:
    """The file has no mask: it was appended, stays where it is, and new words come after it."""
    words = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}
    (tmp_path / "vocab.json").write_text(json.dumps({"word2idx": words}))
    old = Vocabulary.read(tmp_path / "vocab.json")
    new = old.extended(["a dog"])
    assert old.appended and not new.appended
    assert new.words == [*words, "<mask>", "a"] and new.mask == old.mask == 5
    assert new.encode("a dog").tolist() == [1, 6, 4, 2] and 5 not in new.plain
