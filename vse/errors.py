"""The exception for a mistake of the user's, the pieces of its messages, and the checks that components share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


class InputError(ValueError):
    """A mistake of the user's: the command line prints its one line and exits with code 2.

    Anything else that is raised is a bug and keeps its traceback.
    """


class ProcessLost(Exception):
    """Another process of the same training has ended, or cannot be reached."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:160]


def close_match(word: str, known: list[str]) -> str:
    """Suggest the known word that a user may have meant.

    Args:
        word: What the user wrote.
        known: The words that would have been right.

    Returns:
        "did you mean 'x'?" when a known word is close to it, otherwise a list of the known words.

    >>> close_match("trian", ["train", "eval"])
    "did you mean 'train'?"
    """
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(set(known)))}" if known else "none are known"


def misfit(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Say why tensors cannot be loaded into a model.

    Args:
        own: The model's state dict.
        given: The state dict to be loaded.

    Returns:
        The first three reasons, or "" when every tensor fits.

    >>> misfit({"weight": torch.zeros(2, 3)}, {"weight": torch.zeros(3, 2)})
    'weight has shape (3, 2), expected (2, 3)'
    """
    reasons = [f"{key} is missing" for key in own if key not in given]
    reasons += [f"{key} is not in this model" for key in given if key not in own]
    reasons += [
        f"{key} has shape {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    reasons += [
        f"{key} has type {given[key].dtype}, expected {own[key].dtype}"
        for key in own
        if key in given and own[key].is_floating_point() != given[key].is_floating_point()
    ]
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless an argument has one of the values that it may have.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        choices: The values that it may have.

    Raises:
        ValueError: ``value`` is not among ``choices``.

    >>> check_choice("mining", "hard", ("hardest", "all"))
    Traceback (most recent call last):
    ValueError: mining must be one of 'hardest' or 'all', got 'hard'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {' or '.join(map(repr, choices))}, got {value!r}")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless an argument can be the probability of dropping something.

    Args:
        name: The argument's name, for the message.
        value: Its value.

    Raises:
        ValueError: ``value`` is outside [0, 1).

    >>> check_probability("drop", 1.0)
    Traceback (most recent call last):
    ValueError: drop must be in [0, 1), got 1.0
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError unless an argument is large enough.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        least: The smallest value that it may have.

    Raises:
        ValueError: ``value`` is below ``least``, or NaN.

    >>> check_at_least("k", 0, 1)
    Traceback (most recent call last):
    ValueError: k must be at least 1, got 0
    """
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless an argument is a finite number above 0.

    Args:
        name: The argument's name, for the message.
        value: Its value.

    Raises:
        ValueError: ``value`` is 0, negative, infinite or NaN.

    >>> check_positive("temperature", 0.0)
    Traceback (most recent call last):
    ValueError: temperature must be positive, got 0.0
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
