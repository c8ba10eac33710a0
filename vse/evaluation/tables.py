"""Tables of metrics that read like the papers', for a terminal and in Markdown."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """How a metric is printed.

    Attributes:
        title: The head of the column.
        digits: The number of digits after the decimal point.
    """

    title: str
    digits: int = 1


COLUMNS = {  # by the metric's key, in the order in which they are printed
    "map_at_r": Column("mAP@R"),
    "rprecision": Column("R-P"),
    "r1": Column("R@1"),
    "r5": Column("R@5"),
    "r10": Column("R@10"),
    "medr": Column("MedR"),
    "meanr": Column("MeanR"),
    "nmr": Column("nMR", digits=2),
}
SIDES = {"i2t": "Image to text", "t2i": "Text to image", "i2i": "Image to image", "t2t": "Text to text"}
CLIP_SIDES = {"i2t": "Video to text", "t2i": "Text to video", "i2i": "Video to video", "t2t": "Text to text"}


class Row(NamedTuple):
    """A result in a table of several.

    Attributes:
        name: What the table calls the result.
        metrics: The metrics, as a protocol gives them.
        mark: The kind of result, such as "single" or "published, ensemble of 2".
    """

    name: str
    metrics: dict[str, Any]
    mark: str


def mark(models: int) -> str:
    """Say whether a result is a single model's or an ensemble's."""
    return "single" if models == 1 else f"ensemble of {models}"


def label(name: str, *notes: str) -> str:
    """Put notes in brackets behind a result's name, except those that only repeat the name.

    Args:
        name: The result's name.
        notes: The notes, in their order.

    Returns:
        The name, followed by the notes if any are left.

    >>> label("runs/a", "single", "5 folds"), label("ensemble of 2", "ensemble of 2")
    ('runs/a (single, 5 folds)', 'ensemble of 2')
    """
    rest = [note for note in notes if note != name]
    return f"{name} ({', '.join(rest)})" if rest else name


def parts_of(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Split metrics into what is printed as one table each.

    >>> parts_of({"coco_1k": {"rsum": 500.0}, "coco_5k": {"rsum": 400.0}, "sets": {}}).keys()
    dict_keys(['coco_1k', 'coco_5k'])

    Returns:
        The metrics of each part of a protocol by its name; the metrics of a protocol without parts stand under "".
    """
    if _is_one_table(metrics):
        return {"": metrics}
    return {name: part for name, part in metrics.items() if isinstance(part, dict) and _is_one_table(part)}


def _is_one_table(metrics: dict[str, Any]) -> bool:
    return any(key in metrics for key in (*SIDES, "rsum"))


def format_table(metrics: dict[str, Any], title: str) -> str:
    """Format one result as the papers print it: for clips with two digits and the normalised median rank.

    Args:
        metrics: The metrics of :func:`vse.evaluation.protocols.report`, perhaps with "bootstrap" beside them.
        title: The first line.

    Returns:
        Lines of text: one table for each part of the protocol, then what is known of embedding sets.
    """
    lines = []
    for name, part in parts_of(metrics).items():
        lines += _table_lines(part, f"{title}, {name}" if name else title)
    return "\n".join([*lines, *_set_lines(metrics.get("sets", {}))])


def _table_lines(metrics: dict[str, Any], title: str) -> list[str]:
    """Lines of one part's table."""
    sides = _sides_in(metrics)
    keys = [key for key in COLUMNS if key in metrics[sides[0]]]
    clips = "nmr" in keys
    if "folds" in metrics:
        title += f", mean of {metrics['folds']} folds"
    lines = [title, f"{'':14}" + "".join(f"{COLUMNS[key].title:>8}" for key in keys)]
    intervals = metrics.get("bootstrap", {})
    for side in sides:
        name = (CLIP_SIDES if clips else SIDES)[side]
        lines.append(f"{name:14}" + "".join(f"{format_metric(metrics[side], key, clips):>8}" for key in keys))
        if side in intervals:
            halves = [f"±{(high - low) / 2:.1f}" for low, high in intervals[side].values()]
            lines.append(f"{'  95 %':14}" + "".join(f"{half:>8}" for half in halves))
    if "rsum" in metrics:
        lines.append(f"{'RSUM':14}{metrics['rsum']:8.1f}")
    if intervals:
        lines += _interval_lines(intervals)
    return lines


def _interval_lines(intervals: dict[str, Any]) -> list[str]:
    """Lines on RSUM's bootstrap interval, and on that of its difference to the first member's."""
    low, high = intervals["rsum"]
    lines = [f"{'  95 %':14}{low:8.1f} to {high:.1f} ({intervals['samples']} samples of the images)"]
    if "difference" in intervals:
        low, high = intervals["difference"]
        lines.append(f"{'':14}{low:+8.1f} to {high:+.1f} compared with the first")
    return lines


def _set_lines(sets: dict[str, Any]) -> list[str]:
    """Lines on embedding sets, where there are any, with the values of the untrained model where they are known."""
    lines, start = [], sets.get("start", {})
    for side in ("image", "text"):
        name = f"{side.capitalize()} sets"
        if f"{side}_embeddings_used" in sets:
            variance = _beside_start(sets, start, f"{side}_log_variance", 2)
            used = _beside_start(sets, start, f"{side}_embeddings_used", 1)
            lines.append(f"{name:14}  log within-set variance {variance}, embeddings used {used}")
        if f"{side}_rsum" in sets:
            numbers = ", ".join(f"{rsum:.1f}" for rsum in sets[f"{side}_rsum"])
            lines.append(f"{name:14}  RSUM of each embedding alone: {numbers}")
    return lines


def _beside_start(sets: dict[str, Any], start: dict[str, float], key: str, digits: int) -> str:
    """A number, and in brackets what it was before training."""
    before = f" (at the start {start[key]:.{digits}f})" if key in start else ""
    return f"{sets[key]:.{digits}f}{before}"


def _sides_in(metrics: dict[str, Any]) -> list[str]:
    return [side for side in SIDES if side in metrics]


def format_metric(metrics: dict[str, Any], key: str, clips: bool) -> str:
    """Format one metric of a direction with its digits.

    Args:
        metrics: The metrics of the direction.
        key: One of :data:`COLUMNS`.
        clips: Whether they are of clips.

    Returns:
        The number; a dash stands for a missing one.

    >>> format_metric({"r1": 31.25}, "r1", clips=False)
    '31.2'
    """
    if key not in metrics:
        return "-"
    recall_of_clips = clips and key in ("r1", "r5", "r10")  # they are small: the papers print two digits
    return f"{metrics[key]:.{2 if recall_of_clips else COLUMNS[key].digits}f}"


def format_rows(rows: Sequence[Row], markdown: bool = False) -> str:
    """Format several results, one a row, in one table for each part of their protocol.

    Args:
        rows: The results; the first one decides which columns there are.
        markdown: Whether to write Markdown instead of aligned columns.

    Returns:
        The tables, with an empty line between them.
    """
    tables = []
    for part, first in parts_of(rows[0].metrics).items():
        own = [(row, parts_of(row.metrics)[part]) for row in rows if part in parts_of(row.metrics)]
        sides, keys = _sides_in(first), _row_keys(first)
        table = [_row_head(part, sides, keys, "rsum" in first)]
        for row, metrics in own:
            notes = [row.mark]
            if "folds" in metrics:
                notes.append(f"{metrics['folds']} folds")
            cells = [format_metric(metrics.get(side, {}), key, "nmr" in keys) for side in sides for key in keys]
            if "rsum" in first:
                cells.append(f"{metrics['rsum']:.1f}" if "rsum" in metrics else "-")
            table.append([label(row.name, *notes), *cells])
        tables.append(_render(table, markdown))
    return "\n\n".join(tables)


def _row_keys(metrics: dict[str, Any]) -> list[str]:
    """The metrics that a table of several results shows: a row has no room for all ranks."""
    keys = [key for key in COLUMNS if key in metrics[_sides_in(metrics)[0]]]
    left_out = ("meanr",) if "nmr" in keys else ("meanr", "medr")
    return [key for key in keys if key not in left_out]


def _row_head(part: str, sides: list[str], keys: list[str], rsum: bool) -> list[str]:
    """The first line of a table of several results; the first column of each side names the side."""
    head = [part]
    for side in sides:
        titles = [COLUMNS[key].title for key in keys]
        head += [f"{side.upper()} {titles[0]}", *titles[1:]]
    return [*head, "RSUM"] if rsum else head


def _render(table: list[list[str]], markdown: bool) -> str:
    """Lines of a table of text."""
    if markdown:
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
        return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    )
