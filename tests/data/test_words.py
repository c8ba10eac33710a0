import time

import numpy as np
import pytest

from vse.data import words
from vse.data.words import tokenise, tokenise_by_nltk

# Pieces that NLTK's rules are about, and pieces that look like them.
PIECES = (
    *("a", "dog", "t-shirt", "x", "3", "3,000", "25", "can", "not", "cannot", "canny", "gon", "na", "gonna", "gotta"),
    *("wanna", "gimme", "lemme", "more'n", "d'ye", "'tis", "'twas", "whaddya", "whatcha", "isn't", "n't", "it's", "'s"),
    *(
        "dogs'",
        "'",
        "''",
        "``",
        '"',
        "'m",
        "'ll",
        "'re",
        "s's",
        ",",
        ".",
        ". ",
        ", ",
        " ,",
        ",,",
        "..",
        "...",
        "-",
        "--",
    ),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "!",
        "?",
        ":",
        ";",
        "(",
        ")",
        "&",
        "#",
        "mr.",
        "u.s.",
        "a.m.",
        "_",
        "/",
        "é",
        "ı",
        "İ",
        "–",
    ),
)
PLAIN_PIECES = ("a", "dog", "3", "can", "not", "gon", "na", "-", " ", " ", " ", ",", ", ", "'s", "'", ".")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Two dogs don't play.", ["two", "dogs", "do", "n't", "play", "."]),
        ("A man's hat, red (and old).", ["a", "man", "'s", "hat", ",", "red", "(", "and", "old", ")", "."]),
        ("Mr. Smith waits. He sits.", ["mr.", "smith", "waits", ".", "he", "sits", "."]),
        ("A U.S. flag", ["a", "u.s.", "flag"]),
        ('A sign says "stop"', ["a", "sign", "says", "``", "stop", "''"]),
        ("dogs...and cats", ["dogs", "...", "and", "cats"]),
        ("a t-shirt", ["a", "t-shirt"]),
        ("He cannot, or wanna go", ["he", "can", "not", ",", "or", "wan", "na", "go"]),
        ("Lemme see", ["lem", "me", "see"]),
        ("a man 's dog , running .", ["a", "man", "'s", "dog", ",", "running", "."]),
        ("", []),
    ],
)
def test_tokenise_splits_like_nltk(caption: str, expected: list[str]) -> None:
    assert tokenise(caption) == expected == tokenise_by_nltk(caption.lower())


@pytest.mark.parametrize("pieces", [PIECES, PLAIN_PIECES], ids=["all", "plain"])
def test_plain_captions_are_split_exactly_like_nltk(pieces: tuple[str, ...]) -> None:
    """Random strings of tricky pieces; in both groups, many take the short way."""
    rng = np.random.default_rng(0)
    plain = 0
    for _ in range(4000):
        caption = "".join(rng.choice(pieces, rng.integers(1, 9))).lower()
        if words._PLAIN.fullmatch(caption):
            plain += 1
            assert tokenise(caption) == tokenise_by_nltk(caption), caption
    assert plain > 100


def test_usual_captions_take_the_short_way() -> None:
    usual = ("A man's dog, brown and white, runs.", "two t-shirts", "3 people on a bench .", "")
    assert all(words._PLAIN.fullmatch(caption.lower()) for caption in usual)
    others = ("he cannot", "a--b", "3,000 men", "one. two.", "it isn't", "a 'b", "so...", "x,,y", "naïve")
    assert not any(words._PLAIN.fullmatch(caption) for caption in others)


@pytest.mark.parametrize("piece", ["a", " ", "a ", "'s", ", ", ". ", "-", "cannot", "can"])
def test_no_caption_takes_the_rules_long(piece: str) -> None:
    """A hundred thousand characters, with an end that fits no rule."""
    begin = time.process_time()
    words._PLAIN.fullmatch(piece * (100_000 // len(piece)) + '"')
    assert time.process_time() - begin < 5
