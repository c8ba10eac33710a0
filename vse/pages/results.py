"""The metrics of a run as tables of a page."""

from collections.abc import Sequence
from typing import Any

from vse.evaluation.tables import CLIP_SIDES, COLUMNS, SIDES, format_metric
from vse.pages.html import Markup, join, table, tag

_SETS = {  # the lines on embedding sets, with their digits
    "log_variance": ("log within-set variance", 2),
    "embeddings_used": ("embeddings used", 1),
}
_MOST_ROWS = 8


def metrics_table(metrics: dict[str, Any], clips: bool) -> Markup:
    """Write recalls and ranks with their intervals.

    Args:
        metrics: The metrics of plain retrieval, perhaps with "bootstrap" beside them.
        clips: Whether the images are clips.

    Returns:
        The table and a line on RSUM.
    """
    intervals = metrics.get("bootstrap", {})
    sides = [side for side in SIDES if side in metrics]
    keys = [key for key in COLUMNS if key in metrics[sides[0]]]
    rows = []
    for side in sides:
        cells = [_cell(metrics[side], intervals.get(side, {}), key, clips) for key in keys]
        rows.append([(CLIP_SIDES if clips else SIDES)[side], *cells])
    parts = [table(["", *(COLUMNS[key].title for key in keys)], rows)]
    rsum: list[str] = [tag("b", f"RSUM {metrics['rsum']:.1f}")]
    if intervals:
        low, high = intervals["rsum"]
        rsum.append(f" ({low:.1f} to {high:.1f})")
        note = f"In small print: 95 % intervals from {intervals['samples']:,} samples of the images."
        parts.append(tag("p", note, class_="soft"))
    return join(tag("p", *rsum), *parts)


def _cell(metrics: dict[str, Any], intervals: dict[str, list[float]], key: str, clips: bool) -> Markup:
    number = format_metric(metrics, key, clips)
    if key not in intervals:
        return join(number)
    low, high = (format_metric({key: value}, key, clips) for value in intervals[key])
    return join(number, tag("small", f"{low} – {high}"))


def health_table(sets: dict[str, Any]) -> Markup | None:
    """Write what is known of embedding sets.

    Args:
        sets: Their health, as ``vse eval`` reports it: the values by side, those at the start of the training under
            "start", and the RSUM of each embedding alone.

    Returns:
        The table, or None where both sides have single embeddings.
    """
    sides = [side for side in ("image", "text") if f"{side}_embeddings_used" in sets]
    if not sides:
        return None
    start = sets.get("start", {})
    rows: list[list[str]] = []
    for key, (name, digits) in _SETS.items():
        rows.append([name, *(_number(sets, f"{side}_{key}", digits) for side in sides)])
        if any(f"{side}_{key}" in start for side in sides):
            rows.append(["… before training", *(_number(start, f"{side}_{key}", digits) for side in sides)])
    return table(["", *(f"{side} sets" for side in sides)], [*rows, *_alone(sets, sides)])


def _alone(sets: dict[str, Any], sides: Sequence[str]) -> list[list[str]]:
    """The RSUM of each embedding alone; of many, the lowest and the highest."""
    rsums = [sets.get(f"{side}_rsum", []) for side in sides]
    most = max(map(len, rsums))
    if most > _MOST_ROWS:
        return [["RSUM of each embedding alone", *(f"{min(r):.1f} – {max(r):.1f}" if r else "–" for r in rsums)]]
    return [
        [
            f"RSUM of embedding {place + 1} alone",
            *(f"{rsum[place]:.1f}" if place < len(rsum) else "–" for rsum in rsums),
        ]
        for place in range(most)
    ]


def _number(values: dict[str, float], key: str, digits: int) -> str:
    return f"{values[key]:.{digits}f}" if key in values else "–"
