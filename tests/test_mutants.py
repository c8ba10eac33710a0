"""The mutation tester itself: what it changes, and that its table is up to date. It is run by hand: make mutants."""

import pytest
from helpers import ROOT
from mutants import TESTS, change_of, chosen, explained, mutants_of

SOURCE = '''
def half(value: int = 4, *, text: str = "a") -> float:
    """Return the half."""
    if value < 0:
        raise ValueError(f"value must be at least {0}")
    return sum(a for a, _ in zip([value], [1], strict=True)) / 2
'''


def test_the_table_names_files_that_exist() -> None:
    for module, words in TESTS.items():
        assert (ROOT / module).is_file(), module
        for word in words:
            assert not word.startswith("tests/") or (ROOT / word).exists(), f"{module}: {word}"


@pytest.mark.parametrize("folder", ["aggregators", "encoders", "losses", "similarity"])
def test_no_module_is_forgotten(folder: str) -> None:
    found = {f"vse/{folder}/{path.name}" for path in (ROOT / "vse" / folder).glob("*.py")}
    assert found - TESTS.keys() <= {f"vse/{folder}/__init__.py", "vse/aggregators/base.py"}


def test_reasons_are_given_for_modules_of_the_table_and_changes_of_lines_that_exist() -> None:
    for module, changes in explained().items():
        lines = {line.strip() for line in (ROOT / module).read_text(encoding="utf-8").splitlines()}
        for change in changes:
            before = [line[2:] for line in change.splitlines() if line.startswith("- ")]
            assert before and set(before) <= lines, f"{module} has no line {before}"


def test_what_is_changed() -> None:
    """Behaviour is: numbers, comparisons, operators. Types, texts of errors and strict are not."""
    pytest.importorskip("mutmut")
    changes = [mutant.change for mutant in mutants_of(SOURCE)]
    text = "\n".join(line for change in changes for line in change.splitlines() if line.startswith("+"))
    assert "if value <= 0:" in text and "value: int = 5" in text and "strict=True)) * 2" in text
    assert '"XXaXX"' in text and "raise" not in text and "Return" not in text and "strict=False" not in text
    assert len(set(changes)) == len(changes)


def test_a_larger_sample_contains_a_smaller_one() -> None:
    everything = [change_of("", str(number)) for number in range(50)]
    small, large = (set(chosen(everything, size, 3)) for size in (10, 20))  # type: ignore[type-var, arg-type]
    assert small < large and len(small) == 10 and len(large) == 20
    assert chosen(everything, 0, 3) == everything  # type: ignore[arg-type, comparison-overlap]
