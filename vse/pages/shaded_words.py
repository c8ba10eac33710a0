"""Captions on a page: their words shaded by the weights of their tokens."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vse.pages.html import Markup, tag


def token_labels(vocabulary: Any, caption: str) -> list[tuple[str, list[int], bool]]:
    """Group the tokens of a caption into words.

    Args:
        vocabulary: The model's vocabulary.
        caption: The caption.

    Returns:
        For each word, or token that belongs to no word: what to call it, its tokens' places, and whether it is a word.

    >>> token_labels(Vocabulary.build(["a dog"]), "a dog")
    [('start', [0], False), ('a', [1], True), ('dog', [2], True), ('end', [3], False)]
    """
    words, numbers = vocabulary.words_of_tokens(caption)
    groups: list[tuple[str, list[int], bool]] = []
    last = -1
    for place, number in enumerate(numbers):
        if number < 0:
            groups.append(("end" if place else "start", [place], False))
        elif number == last:
            groups[-1][1].append(place)
        else:
            groups.append((words[number], [place], True))
        last = number
    return groups


def word_weights(vocabulary: Any, caption: str, weights: Sequence[float]) -> list[tuple[str, float, bool]]:
    """Add up the weights of each word's tokens.

    Args:
        vocabulary: The model's vocabulary.
        caption: The caption.
        weights: A weight for each of its tokens.

    Returns:
        For each word, or token that belongs to none: what to call it, its weight, and whether it is a word. Empty when
        the weights are not those of the tokens.
    """
    groups = token_labels(vocabulary, caption)
    if sum(len(places) for _, places, _ in groups) != len(weights):
        return []
    return [(name, sum(weights[place] for place in places), is_word) for name, places, is_word in groups]


def shade_words(vocabulary: Any, caption: str, weights: Tensor) -> list[Markup]:
    """Write a caption with its words shaded by their weights; the largest weight is named.

    Args:
        vocabulary: The model's vocabulary.
        caption: The caption.
        weights: A weight for each of its tokens (N,).

    Returns:
        The caption and a line on the largest weight; nothing when the weights are not those of the tokens.
    """
    found = word_weights(vocabulary, caption, weights.tolist())
    if not found:
        return []
    most = max(weight for _, weight, _ in found)
    full = max(most, 2 / len(found))  # so that equal shares are half a shade
    parts = []
    for name, weight, is_word in found:
        kind = "word" if is_word else "word end"
        parts.append(tag("span", name, class_=kind, style=f"--a:{0.9 * weight / full:.2f}", title=f"{weight:.0%}"))
        parts.append(Markup(" "))
    name = next(name for name, weight, _ in found if weight == max(w for _, w, _ in found))
    largest = f"most on “{name}”: {most:.0%} (equal shares: {1 / len(found):.0%})"
    return [tag("p", *parts, class_="caption"), tag("small", largest)]
