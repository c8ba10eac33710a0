"""The pieces of error messages, and the checks of arguments that components share."""

import math
from collections.abc import Callable

import pytest
import torch

from vse.errors import (
    InputError,
    check_at_least,
    check_choice,
    check_positive,
    check_probability,
    close_match,
    first_line,
    misfit,
)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: check_choice("mining", "hard", ("hardest", "all")),
            "mining must be one of 'hardest' or 'all', got 'ha",
        ),
        (lambda: check_choice("mlp", "x", ("input", None)), "mlp must be one of 'input' or None, got 'x'"),
        (lambda: check_probability("drop", 1.0), r"drop must be in \[0, 1\), got 1.0"),
        (lambda: check_probability("drop", -0.1), r"drop must be in \[0, 1\), got -0.1"),
        (lambda: check_probability("drop", math.nan), r"drop must be in \[0, 1\), got nan"),
        (lambda: check_at_least("k", 0, 1), "k must be at least 1, got 0"),
        (lambda: check_at_least("k", math.nan, 1), "k must be at least 1, got nan"),
        (lambda: check_positive("margin", 0.0), "margin must be positive, got 0.0"),
        (lambda: check_positive("margin", math.nan), "margin must be positive, got nan"),
        (lambda: check_positive("margin", math.inf), "margin must be finite, got inf"),
    ],
)
def test_checks(check: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check()


def test_what_the_checks_accept() -> None:
    check_choice("mlp", None, ("input", None))
    check_probability("drop", 0.0)
    check_probability("drop", 0.999)
    check_at_least("k", 1, 1)
    check_positive("margin", 1e-9)


def test_close_matches() -> None:
    assert close_match("trainn", ["train", "eval"]) == "did you mean 'train'?"
    assert close_match("xyz", ["train", "eval", "eval"]) == "known: eval, train"
    assert close_match("xyz", []) == "none are known"


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 1000)) == "x" * 160


def test_why_weights_do_not_fit() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1)}
    assert misfit(own, dict(own)) == ""
    assert misfit(own, {"a": torch.zeros(3, 2), "b": own["b"], "c": own["c"]}) == "a has shape (3, 2), expected (2, 3)"
    assert misfit(own, {"a": own["a"], "b": torch.zeros(1).long(), "c": own["c"]}) == (
        "b has type torch.int64, expected torch.float32"
    )
    assert misfit(own, {"d": own["b"]}) == "a is missing; b is missing; c is missing and 1 more"


def test_a_users_mistake_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)
