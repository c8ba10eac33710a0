"""The tables and figures of a study, from its JSON file alone."""

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vse.errors import InputError
from vse.evaluation.tables import Cell, Row, Table, as_markdown, parts_of, tables_of
from vse.files import check_target, write_text
from vse.pages.charts import Chart, Line, drawing_file
from vse.studies.summary import read_summary

Summary = dict[str, Any]


def study_markdown(summary: Summary, figure: str | None = None, level: int = 1) -> str:
    """Write the tables of a study in Markdown.

    Args:
        summary: The study, see :func:`vse.studies.summary.summarise`.
        figure: The path of its figure as the page names it; None for a page without one.
        level: The level of the headings.

    Returns:
        The text: its title, the metrics with published ones below them, differences and cost, embedding sets, the
        figure, what is missing, and on what machines it ran.
    """
    heading = "#" * level
    parts = [f"{heading} Study {summary['study']}", summary["title"], f"```\n{_command(summary)}\n```"]
    if summary["rows"]:
        parts += [_about(summary), as_markdown(metric_tables(summary))]
        parts += _comparisons(summary)
        parts += _sets(summary)
        if figure is not None:
            title = _chart_title(summary)
            parts.append(f"![{title}]({figure})")
        parts.append(_machines(summary))
    parts += _left(summary)
    return "\n\n".join(filter(None, parts)) + "\n"


def _command(summary: Summary) -> str:
    """The command that gives the study, for a shell."""
    source: str = summary["source" if "source" in summary else "study"]  # older files have no source
    return shlex.join(["vse", "study", source, *summary["overrides"]])


def _about(summary: Summary) -> str:
    """What the numbers of the first table are."""
    first = next(iter(summary["rows"][0]["runs"].values()))["corpus"]
    counted = f"{first['images']:,} images, {first['captions']:,} captions"
    seeds = ", ".join(map(str, summary["seeds"]))
    text = f"Split {summary['split']} ({counted}), protocol {summary['protocol']}, seeds {seeds}. Mean ± standard "
    return text + "deviation over n seeds; in brackets the 95 % bootstrap interval of the mean RSUM over the images."


def metric_tables(summary: Summary) -> list[Table]:
    """Make the tables of a study's metrics, each published result below its own.

    Args:
        summary: The study, with at least one row.

    Returns:
        One table for each part of the protocol.
    """
    rows = []
    for row in summary["rows"]:
        metrics = {name: _only_rsum_interval(part) for name, part in parts_of(row["metrics"]).items()}
        rows.append(Row(row["name"], metrics.get("", metrics), f"n = {len(row['runs'])}"))
        if row["published"]:
            rows.append(Row(row["name"], row["published"], "published"))
    return tables_of(rows)


def _only_rsum_interval(part: dict[str, Any]) -> dict[str, Any]:
    """A part's metrics without the intervals of its recalls, for which a table has no room."""
    intervals = part.get("bootstrap", {})
    return {**part, "bootstrap": {"rsum": intervals["rsum"]} if "rsum" in intervals else {}}


def _comparisons(summary: Summary) -> list[str]:
    """Tables of differences to the baseline and of cost, one for each part of the protocol."""
    base = summary["baseline"]
    head = [
        *(("", f"RSUM - {base}, by seed"), ("", "seeds"), ("", "the same, by image")),
        *(("", "dev RSUM, best"), ("", "s per step"), ("", "training, min"), ("", "memory, GiB")),
    ]
    tables = []
    for name in parts_of(summary["rows"][0]["metrics"]):
        table = Table(name, head, [])
        for row in summary["rows"]:
            part = parts_of(row["metrics"])[name]
            table.rows.append((row["name"], [*_difference_cells(part), *_cost_cells(row)]))
        tables.append(table)
    note = (
        "Differences of RSUM are paired: by seed, their mean ± standard deviation; by image, the mean over the seeds "
        "and its 95 % bootstrap interval. Seconds are those of training steps, without evaluations. Memory is that of "
        "the GPU's tensors, or of the whole process on a CPU."
    )
    return [as_markdown(tables), note]


def _difference_cells(part: dict[str, Any]) -> list[Cell]:
    paired = part.get("paired")
    interval = part.get("bootstrap", {}).get("difference")
    if paired is None:
        return [Cell(None), Cell(None), Cell(None)]
    by_seed = Cell(paired["mean"], deviation=paired["deviation"], signed=True)
    by_image = Cell(None) if interval is None else Cell(paired["mean"], interval=interval, signed=True)
    return [by_seed, Cell(paired["seeds"], 0), by_image]


def _cost_cells(row: dict[str, Any]) -> list[Cell]:
    costs = [run["training"] for run in row["runs"].values()]
    best = [max(rsum for _, _, rsum in cost["curve"]) for cost in costs if cost["curve"]]
    return [
        _spread(best, 1),
        _spread([cost["seconds_per_step"] for cost in costs], 3),
        _spread([cost["seconds"] / 60 for cost in costs], 1),
        Cell(max(cost["memory_gib"] for cost in costs), 2),
    ]


def _spread(values: Sequence[float], digits: int) -> Cell:
    """A cell of the mean of some values, and their deviation if there are several."""
    if not values:
        return Cell(None)
    return Cell(statistics.fmean(values), digits, statistics.stdev(values) if len(values) > 1 else None)


def _sets(summary: Summary) -> list[str]:
    """A table of embedding sets, where rows have any."""
    columns = {
        "image_log_variance": ("IMAGE", "log variance", 2),
        "image_embeddings_used": ("IMAGE", "used", 1),
        "image_rsum": ("IMAGE", "best alone", 1),
        "text_log_variance": ("TEXT", "log variance", 2),
        "text_embeddings_used": ("TEXT", "used", 1),
        "text_rsum": ("TEXT", "best alone", 1),
    }
    table = Table("", [(side, title) for side, title, _ in columns.values()], [])
    for row in summary["rows"]:
        sets = [run["metrics"]["sets"] for run in row["runs"].values() if "sets" in run["metrics"]]
        if sets:
            cells = []
            for key, (_, _, digits) in columns.items():
                cells.append(_spread([_largest(one[key]) for one in sets if key in one], digits))
            table.rows.append((row["name"], cells))
    if not table.rows:
        return []
    note = (
        "Embedding sets: the log of the variance within sets, the effective number of embeddings used, and the RSUM of "
        "the one embedding that retrieves best alone."
    )
    return [as_markdown([table]), note]


def _largest(value: float | list[float]) -> float:
    return max(value) if isinstance(value, list) else value


def _machines(summary: Summary) -> str:
    """One line for each kind of machine."""
    counts: dict[str, int] = {}
    for row in summary["rows"]:
        for run in row["runs"].values():
            text = _machine(run["machine"])
            counts[text] = counts.get(text, 0) + 1
    return "\n".join(f"* {count} {'run' if count == 1 else 'runs'}: {text}" for text, count in counts.items())


def _machine(machine: dict[str, Any]) -> str:
    if not machine:
        return "unknown machine"
    threads, jobs = machine["threads"], machine["jobs"]
    hardware = [machine["gpu"], machine["processor"], f"{machine['cores']} cores"]
    work = f"{threads} {'thread' if threads == 1 else 'threads'} a run, {jobs} at once"
    versions = f"vse {machine['vse']}, torch {machine['torch']}, Python {machine['python']}, {machine['system']}"
    return "; ".join([versions, ", ".join(filter(None, hardware)), work])


def _left(summary: Summary) -> list[str]:
    """What is missing, and what has failed."""
    parts = []
    if summary["missing"]:
        parts.append(f"Not trained yet: {'; '.join(summary['missing'])}.")
    for name, reason in summary["failed"].items():
        parts.append(f"Failed: {name}: `{reason}`")
    return parts


def _chart_title(summary: Summary) -> str:
    return f"Study {summary['study']}: dev RSUM for the time of training"


def cost_chart(summary: Summary) -> Chart | None:
    """Draw dev RSUM against the seconds of training steps: a line for each row, the mean over its seeds.

    Args:
        summary: The study.

    Returns:
        The chart; None where no run was evaluated on dev.
    """
    lines = []
    for row in summary["rows"]:
        curves = [run["training"]["curve"] for run in row["runs"].values()]
        points = list(zip(*curves, strict=False))  # of each evaluation, those of all seeds
        if points:
            means = [[statistics.fmean(numbers) for numbers in zip(*point, strict=True)] for point in points]
            lines.append(Line(row["name"], [mean[0] for mean in means], [mean[2] for mean in means]))
    if not lines:
        return None
    return Chart("cost", _chart_title(summary), "seconds of training steps", "dev RSUM", tuple(lines))


def write_report(summary: Summary, folder: Path) -> None:
    """Write the page and the figure of a study into its folder.

    Args:
        summary: The study.
        folder: The folder.

    Raises:
        InputError: A file cannot be written.
    """
    chart = cost_chart(summary)
    if chart is not None:
        write_text(folder / "cost.svg", drawing_file(chart))
    text = study_markdown(summary, None if chart is None else "cost.svg")
    write_text(folder / "results.md", text, errors="backslashreplace")


def results_page(files: Sequence[Path], page: Path, text: Path | None = None) -> None:
    """Write one page of several studies, and the figure of each beside its JSON file.

    Args:
        files: The JSON files of studies.
        page: The page to write.
        text: A file in Markdown with what no study tells; its text stands behind the studies. None for none.

    Raises:
        InputError: A file cannot be read or written.
    """
    check_target(page)
    summaries = {file: read_summary(file) for file in files}
    parts = [
        "# Results\n",
        "The tables of the studies are generated from their JSON files by `vse study --report`. The command above each "
        "of them gives it again. Text and tables after the studies are written by hand.\n",
    ]
    for file, summary in summaries.items():
        chart, figure = cost_chart(summary), file.with_suffix(".svg")
        if chart is not None:
            write_text(figure, drawing_file(chart))
        parts.append(study_markdown(summary, None if chart is None else _relative(figure, page), 2))
    if text is not None:
        try:
            parts.append(text.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{text}: cannot be read ({error.strerror}); expected Markdown") from None
    write_text(page, "\n".join(parts), errors="backslashreplace")


def _relative(file: Path, page: Path) -> str:
    """The path of a file as a page links to it."""
    folder, target = page.parent.resolve(), file.resolve()
    return target.relative_to(folder).as_posix() if target.is_relative_to(folder) else target.as_posix()
