import json
import os
import pickle
from pathlib import Path

import pytest

from vse.data.vocabulary import SPECIALS, MissingVocabulary, Vocabulary
from vse.errors import InputError

PUBLISHED = Path(os.environ.get("VSE_SCAN_VOCABULARY", "not given"))


def test_build_and_encode() -> None:
    vocabulary = Vocabulary.build(["a dog and a cat", "a dog"], min_count=2)
    assert vocabulary.words == [*SPECIALS, "a", "dog"]
    assert vocabulary.encode("A dog barks").tolist() == [1, 5, 6, 3, 2]
    assert len(vocabulary) == 7


def test_all_captions_at_once() -> None:
    """Flat arrays hold what each caption gives alone, also of captions that the vocabulary was not built from."""
    vocabulary = Vocabulary.build(["a dog and a cat", "a dog"])
    captions = ["a bird and a dog", "A cat.", ""]
    flat, ids = vocabulary.encode_all(captions)
    starts = [0, *flat.ends[:-1]]
    rows = [slice(start, end) for start, end in zip(starts, flat.ends, strict=True)]
    assert [ids[flat.tokens[row]].tolist() for row in rows] == [vocabulary.encode(c).tolist() for c in captions]
    assert [flat.words[row].tolist() for row in rows] == [list(range(n)) for n in (7, 5, 2)]


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


def test_a_pickled_mapping_is_read_like_json(tmp_path: Path) -> None:
    words = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}
    file = tmp_path / "vocab.pkl"
    file.write_bytes(pickle.dumps({"word2idx": words}))
    assert Vocabulary.read(file).words == [*words, "<mask>"]


class Vocabulary2:
    """It takes the name of the official codes' class below."""

    def __init__(self) -> None:
        self.word2idx = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}


def test_a_pickled_object_of_the_official_codes(tmp_path: Path) -> None:
    """Its class is not imported, and no other class is allowed."""
    file = tmp_path / "vocab.pkl"
    content = pickle.dumps(Vocabulary2(), protocol=2).replace(__name__.encode(), b"vocab")
    file.write_bytes(content.replace(b"Vocabulary2", b"Vocabulary"))
    assert Vocabulary.read(file).words == [*Vocabulary2().word2idx, "<mask>"]
    file.write_bytes(content)
    with pytest.raises(InputError, match="vocab.pkl: cannot be read as .*it wants to run vocab.Vocabulary2, which is"):
        Vocabulary.read(file)


def test_the_ends_of_a_caption_belong_to_no_word() -> None:
    words, owners = Vocabulary.build(["a dog"]).words_of_tokens("A dog barks")
    assert words == ["a", "dog", "barks"] and owners == [-1, 0, 1, 2, -1]


def test_a_missing_vocabulary_says_what_is_missing() -> None:
    missing = MissingVocabulary(8482, "vocab.json")
    assert len(missing) == 8482
    for refuse in (missing.encode, missing.words_of_tokens):
        with pytest.raises(InputError, match=r"^the checkpoint: came without .*, vocab.json \(8,482 rows\)"):
            refuse("a dog")
    with pytest.raises(InputError, match="^a.pt: came without its vocabulary, the folder bert of its tokenizer"):
        MissingVocabulary(3, "bert", "a.pt").encode("a dog")
