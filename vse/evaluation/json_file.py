"""Metrics as a JSON file, which never replaces a file of anything else."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vse.errors import InputError
from vse.evaluation.tables import parts_of
from vse.files import check_target, write_text

_DIGITS = 6  # after the decimal point: 7.000000000000001 is 7.0


def check_json_file(path: Path) -> None:
    """Check that metrics can be written to a file, before they are computed.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be written, or it holds something other than metrics.
    """
    check_replaces(path, "metrics", _are_metrics)


def check_replaces(path: Path, what: str, is_that: Callable[[dict[str, Any]], bool]) -> None:
    """Check that a JSON file can be written, and that it replaces nothing but a file of its own kind.

    Args:
        path: The file.
        what: What it is to hold, for the message.
        is_that: Tells from a file's content whether it holds that.

    Raises:
        InputError: The file cannot be written, or it holds something else.
    """
    check_target(path)
    if not path.exists() or not path.stat().st_size:
        return
    content = _read_dict(path)
    if content is None or not is_that(content):
        problem = f"is there already and holds no {what}"
        raise InputError(f"{path}: {problem}; expected a new file, or a file of {what} to replace")


def _read_dict(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None for a file of anything but a dict, which is not read to its end."""
    content = None
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        if file.read(64).decode("utf-8-sig", errors="replace").lstrip().startswith("{"):
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    return content if isinstance(content, dict) else None


def _are_metrics(content: dict[str, Any]) -> bool:
    """Whether these are the metrics of one result, or of several by their names."""
    return any(isinstance(result, dict) and parts_of(result) for result in (content, *content.values()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write metrics to a file, completely or not at all.

    Args:
        path: The file; see :func:`check_json_file` for what it may hold already.
        content: The metrics of one result, or of several by their names. They are written as :func:`rounded` has them.

    Raises:
        InputError: The file cannot be written, or it holds something other than metrics.
    """
    check_json_file(path)
    text = json.dumps(rounded(content), indent=2, ensure_ascii=False) + "\n"
    write_text(path, text)


def rounded(content: Any) -> Any:
    """Round every number in dicts and lists to six digits after the decimal point.

    >>> rounded({"r1": 7.000000000000001, "folds": 5})
    {'r1': 7.0, 'folds': 5}
    """
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return round(content, _DIGITS) if isinstance(content, float) else content
