"""The one exception that means "the user gave something wrong", and what its lines are made of."""

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
    """Start of an error's message, fit for one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:160]


def close_match(word: str, known: list[str]) -> str:
    """Return "did you mean 'x'?" when a known word is close, else the list of known words."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(set(known)))}" if known else "none are known"


def misfit(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return why given tensors cannot take the place of a model's own, the first three reasons; "" if they can."""
    reasons = [f"{key} is missing" for key in own if key not in given]
    reasons += [f"{key} is not in this model" for key in given if key not in own]
    reasons += [
        f"{key} is {tuple(given[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    reasons += [
        f"{key} is {given[key].dtype} there and {own[key].dtype} here"
        for key in own
        if key in given and own[key].is_floating_point() != given[key].is_floating_point()
    ]
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``.

    >>> check_choice("mining", "hard", ("hardest", "all"))
    Traceback (most recent call last):
    ValueError: mining must be one of 'hardest' or 'all', got 'hard'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {' or '.join(map(repr, choices))}, got {value!r}")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in [0, 1), as the probability of dropping something must be.

    >>> check_probability("drop", 1.0)
    Traceback (most recent call last):
    ValueError: drop must be in [0, 1), got 1.0
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError unless ``value`` is at least ``least``.

    >>> check_at_least("k", 0, 1)
    Traceback (most recent call last):
    ValueError: k must be at least 1, got 0
    """
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above 0.

    >>> check_positive("temperature", 0.0)
    Traceback (most recent call last):
    ValueError: temperature must be positive, got 0.0
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
