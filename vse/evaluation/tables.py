"""Tables of metrics that read like the papers', for a terminal, and in Markdown, LaTeX and CSV to paste elsewhere.

:func:`format_table` prints all that is known of one result. :func:`tables_of` puts several results below each other; it
decides which cells there are, and a function for each format writes them.
"""

import csv
import io
from collections.abc import Callable, Sequence
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
        metrics: The metrics, as a protocol gives them. Beside them may stand "deviation", the standard deviation of
            each over several runs, and "bootstrap", see :func:`vse.evaluation.bootstrap.bootstrap`.
        mark: The kind of result, such as "n = 3" or "published, ensemble of 2"; "" for nothing worth telling.
    """

    name: str
    metrics: dict[str, Any]
    mark: str = ""


class Cell(NamedTuple):
    """A number in a table, and how far it can be trusted.

    Attributes:
        value: The number; None for one that is not known.
        digits: The number of digits after the decimal point.
        deviation: Its standard deviation over several runs, if there are several.
        interval: The ends of its 95 % interval, if there is one.
        signed: Whether it is a difference, which has its sign in front.
    """

    value: float | None
    digits: int = 1
    deviation: float | None = None
    interval: Sequence[float] | None = None
    signed: bool = False

    def number(self, value: float | None = None) -> str:
        """Format the cell's value, or another number of the same kind; a dash stands for an unknown one."""
        value = self.value if value is None else value
        return "-" if value is None else f"{value:{'+' if self.signed else ''}.{self.digits}f}"

    def text(self, intervals: bool = True) -> str:
        """Format all that is known.

        >>> Cell(62.14, deviation=0.35, interval=[60.1, 64.0]).text()
        '62.1 ± 0.3 [60.1, 64.0]'
        """
        text = self.number()
        if self.deviation is not None:
            text += f" ± {self.deviation:.{self.digits}f}"
        if self.interval is not None and intervals:
            low, high = self.interval
            text += f" [{self.number(low)}, {self.number(high)}]"
        return text


class Table(NamedTuple):
    """Results in rows.

    Attributes:
        part: The part of the protocol whose metrics these are; "" where it has no parts.
        head: The side of each column, "" for none, and the column's title.
        rows: The label of each row, and its cells.
    """

    part: str
    head: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]


def mark(models: int) -> str:
    """Say whether a result is a single model's or an ensemble's."""
    return "single" if models == 1 else f"ensemble of {models}"


def label(name: str, *notes: str) -> str:
    """Put notes in brackets behind a result's name, except those that only repeat the name.

    Args:
        name: The result's name.
        notes: The notes, in their order; "" is none.

    Returns:
        The name, followed by the notes if any are left.

    >>> label("runs/a", "single", "5 folds"), label("ensemble of 2", "ensemble of 2")
    ('runs/a (single, 5 folds)', 'ensemble of 2')
    """
    rest = [note for note in notes if note not in ("", name)]
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
        metrics: The metrics of :func:`vse.evaluation.protocols.report`, or those of a :class:`Row`.
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
    for side in sides:
        name = (CLIP_SIDES if clips else SIDES)[side]
        cells = [_cell(metrics, side, key, clips) for key in keys]
        lines.append(f"{name:14}" + "".join(f"{cell.number():>8}" for cell in cells))
        lines += _lines_below(cells)
    if "rsum" in metrics:
        cell = _rsum_cell(metrics)
        lines.append(f"{'RSUM':14}{cell.number():>8}")
        if cell.deviation is not None:
            lines += _lines_below([cell._replace(interval=None)])
    if "bootstrap" in metrics:
        lines += _interval_lines(metrics["bootstrap"])
    return lines


def _lines_below(cells: Sequence[Cell]) -> list[str]:
    """What stands below a side's numbers: their deviations, and half the width of their intervals."""
    deviations = [cell.deviation for cell in cells]
    halves = [None if cell.interval is None else (cell.interval[1] - cell.interval[0]) / 2 for cell in cells]
    lines = []
    for name, numbers in (("  deviation", deviations), ("  95 %", halves)):
        if any(number is not None for number in numbers):
            pairs = zip(cells, numbers, strict=True)
            texts = ["" if number is None else f"±{number:.{cell.digits}f}" for cell, number in pairs]
            lines.append(f"{name:14}" + "".join(f"{text:>8}" for text in texts).rstrip())
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


def _cell(metrics: dict[str, Any], side: str, key: str, clips: bool) -> Cell:
    """The cell of a metric of one side."""
    recall_of_clips = clips and key in ("r1", "r5", "r10")  # they are small: the papers print two digits
    deviations, intervals = metrics.get("deviation", {}), metrics.get("bootstrap", {})
    return Cell(
        metrics.get(side, {}).get(key),
        2 if recall_of_clips else COLUMNS[key].digits,
        deviations.get(side, {}).get(key),
        intervals.get(side, {}).get(key),
    )


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
    return _cell({"i2t": metrics}, "i2t", key, clips).number()


def _rsum_cell(metrics: dict[str, Any]) -> Cell:
    deviations, intervals = metrics.get("deviation", {}), metrics.get("bootstrap", {})
    return Cell(metrics.get("rsum"), deviation=deviations.get("rsum"), interval=intervals.get("rsum"))


def _sides_in(metrics: dict[str, Any]) -> list[str]:
    return [side for side in SIDES if side in metrics]


def tables_of(rows: Sequence[Row]) -> list[Table]:
    """Put several results below each other, in one table for each part of their protocol.

    Args:
        rows: The results; the first one decides which columns there are.

    Returns:
        The tables. Where there are intervals of the differences to the first result, they are the last column.
    """
    tables = []
    for part, first in parts_of(rows[0].metrics).items():
        own = [(row, parts_of(row.metrics)[part]) for row in rows if part in parts_of(row.metrics)]
        columns = [(side, key) for side in _sides_in(first) for key in _row_keys(first)]
        clips = any(key == "nmr" for _, key in columns)
        has_differences = any("difference" in metrics.get("bootstrap", {}) for _, metrics in own)
        head = [(side.upper(), COLUMNS[key].title) for side, key in columns]
        if "rsum" in first:
            head.append(("", "RSUM"))
        if has_differences:
            head.append(("", "RSUM - first"))
        table = Table(part, head, [])
        for row, metrics in own:
            cells = [_cell(metrics, side, key, clips) for side, key in columns]
            if "rsum" in first:
                cells.append(_rsum_cell(metrics))
            if has_differences:
                cells.append(_difference_cell(metrics, first))
            folds = f"{metrics['folds']} folds" if "folds" in metrics else ""
            table.rows.append((label(row.name, row.mark, folds), cells))
        tables.append(table)
    return tables


def _difference_cell(metrics: dict[str, Any], first: dict[str, Any]) -> Cell:
    """How much RSUM differs from the first result's, where there is an interval of that."""
    interval = metrics.get("bootstrap", {}).get("difference")
    if interval is None:
        return Cell(None)
    return Cell(metrics["rsum"] - first["rsum"], interval=interval, signed=True)


def _row_keys(metrics: dict[str, Any]) -> list[str]:
    """The metrics that a table of several results shows: a row has no room for all ranks."""
    keys = [key for key in COLUMNS if key in metrics[_sides_in(metrics)[0]]]
    left_out = ("meanr",) if "nmr" in keys else ("meanr", "medr")
    return [key for key in keys if key not in left_out]


def _texts(table: Table, intervals: bool = True) -> list[list[str]]:
    """A table's lines of texts; the first column of each side also names the side."""
    head, side_before = [table.part], ""
    for side, title in table.head:
        head.append(f"{side} {title}" if side != side_before and side else title)
        side_before = side
    return [head, *([name, *(cell.text(intervals) for cell in cells)] for name, cells in table.rows)]


def as_text(tables: Sequence[Table]) -> str:
    """Write tables in aligned columns for a terminal, without the intervals, for which there is no room.

    Args:
        tables: What :func:`tables_of` returns.

    Returns:
        The tables, with an empty line between them.
    """
    blocks = []
    for table in tables:
        texts = _texts(table, intervals=False)
        widths = [max(len(line[column]) for line in texts) for column in range(len(texts[0]))]
        for name, *cells in texts:
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            blocks.append("  ".join([name.ljust(widths[0]), *padded]))
        blocks.append("")
    return "\n".join(blocks[:-1])


def as_markdown(tables: Sequence[Table]) -> str:
    """Write tables in Markdown, as :func:`as_text` does for a terminal; deviations and intervals are in the cells."""
    lines = []
    for table in tables:
        texts = [[cell.replace("|", "\\|") for cell in line] for line in _texts(table)]
        head, *rows = (f"| {' | '.join(line)} |" for line in texts)
        lines += [head, "|---" * len(texts[0]) + "|", *rows, ""]
    return "\n".join(lines[:-1])


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "∞": r"$\infty$"},
}


def as_latex(tables: Sequence[Table]) -> str:
    """Write tables in LaTeX, for the package booktabs; deviations and intervals are in the cells."""
    lines = []
    for table in tables:
        head, *rows = (
            " & ".join("".join(_LATEX.get(letter, letter) for letter in text) for text in line) + r" \\"
            for line in _texts(table)
        )
        begin = rf"\begin{{tabular}}{{l{'r' * len(table.head)}}}"
        lines += [begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines[:-1])


def as_csv(tables: Sequence[Table]) -> str:
    """Write tables as one in CSV; deviations and the ends of intervals have columns of their own.

    Args:
        tables: What :func:`tables_of` returns.

    Returns:
        A line of titles and a line for each row; numbers have four digits after the point.
    """
    records = []
    for table in tables:
        for name, cells in table.rows:
            record = {"name": name, "part": table.part} if table.part else {"name": name}
            for (side, title), cell in zip(table.head, cells, strict=True):
                column = f"{side} {title}".strip()
                low, high = cell.interval or (None, None)
                numbers = {"": cell.value, " deviation": cell.deviation, " low": low, " high": high}
                record |= {column + kind: f"{x:.4f}" for kind, x in numbers.items() if x is not None}
            records.append(record)
    titles = [f"{side} {title}".strip() for side, title in tables[0].head]
    known = {title for record in records for title in record}
    order = ["name", "part", *(title + kind for title in titles for kind in ("", " deviation", " low", " high"))]
    output = io.StringIO()
    writer = csv.DictWriter(output, [title for title in order if title in known], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return output.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}
