from pathlib import Path

import torch
from outline import Outline

from vse.data.subwords import Subwords
from vse.data.vocabulary import Vocabulary
from vse.pages.shaded_words import shade_words, word_weights


def test_the_weights_of_subwords_are_added(tiny_bert: Path) -> None:
    """The tokenizer knows "dog" and letters: "dogs" is two of its tokens."""
    subwords = Subwords.read(str(tiny_bert))
    found = word_weights(subwords, "red dogs", [0.1, 0.2, 0.3, 0.15, 0.25])
    assert [(name, round(weight, 6), is_word) for name, weight, is_word in found] == [
        ("start", 0.1, False),
        ("red", 0.2, True),
        ("dogs", 0.45, True),
        ("end", 0.25, False),
    ]


def test_words_are_shaded() -> None:
    vocabulary = Vocabulary.build(["a <b>"])
    shaded = shade_words(vocabulary, "a <b>", torch.tensor([0.0, 0.5, 0.1, 0.1, 0.2, 0.1]))
    outline = Outline("".join(shaded))
    words = outline.find("span", "word")
    assert [outline.text(word) for word in words] == ["start", "a", "<", "b", ">", "end"]
    shades = [outline.elements[word][1]["style"] for word in words]
    assert shades == ["--a:0.00", "--a:0.90", "--a:0.18", "--a:0.18", "--a:0.36", "--a:0.18"]
    assert outline.text(outline.find("small")[0]) == "most on “a”: 50% (equal shares: 17%)"
    equal = shade_words(vocabulary, "a", torch.full((3,), 1 / 3))
    assert equal[0].count("--a:0.45") == 3  # no preference is half a shade


def test_weights_of_something_else_shade_nothing() -> None:
    assert shade_words(Vocabulary.build(["a"]), "a", torch.ones(7)) == []
