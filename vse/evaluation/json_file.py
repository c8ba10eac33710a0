"""Metrics as a JSON file, which never replaces a file of anything else."""

import contextlib
import json
from pathlib import Path
from typing import Any

from vse.errors import InputError
from vse.evaluation.tables import parts_of
from vse.files import check_target, write_file

_DIGITS = 6  # after the decimal point: 7.000000000000001 is 7.0


def check_json_file(path: Path) -> None:
    """Check that metrics can be written to a file, before they are computed.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be written, or it holds something other than metrics.
    """
    check_target(path)
    if path.exists() and path.stat().st_size and not _holds_metrics(path):
        problem = "is there already and holds no metrics"
        raise InputError(f"{path}: {problem}; expected a new file, or a file of metrics to replace")


def _holds_metrics(path: Path) -> bool:
    """Whether a file holds the metrics of one result, or of several by their names."""
    content = None
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        if file.read(64).decode("utf-8-sig", errors="replace").lstrip().startswith("{"):
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        return False
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
    write_file(path, lambda file: file.write(text.encode()))


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
