"""Tables that read like the papers', for a terminal and in Markdown; and metrics as JSON."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vse.errors import InputError
from vse.evaluation.published import PUBLISHED
from vse.files import check_target, write_file

_COLUMNS = {  # key of a metric: its name, and its digits
    "map_at_r": ("mAP@R", 1),
    "rprecision": ("R-P", 1),
    "r1": ("R@1", 1),
    "r5": ("R@5", 1),
    "r10": ("R@10", 1),
    "medr": ("MedR", 1),
    "meanr": ("MeanR", 1),
    "nmr": ("nMR", 2),
}
_SIDES = {"i2t": "Image to text", "t2i": "Text to image", "i2i": "Image to image", "t2t": "Text to text"}


class Row(NamedTuple):
    """A result in a table of several."""

    name: str
    metrics: dict[str, Any]
    mark: str  # what kind of result it is, such as "single" or "published, ensemble of 2"


def mark(models: int) -> str:
    """Whether a result is a single model's or an ensemble's."""
    return "single" if models == 1 else f"ensemble of {models}"


def label(name: str, *notes: str) -> str:
    """A result's name, and what it does not say itself."""
    rest = [note for note in notes if note != name]
    return f"{name} ({', '.join(rest)})" if rest else name


def parts_of(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables that a protocol gives, by their name: one without a name, or those that it is made of."""
    if any(side in metrics for side in _SIDES):
        return {"": metrics}
    return {name: part for name, part in metrics.items() if isinstance(part, dict) and _SIDES.keys() & part.keys()}


def format_table(metrics: dict[str, Any], title: str) -> str:
    """Metrics as the papers print them: for clips with two digits and the normalised median rank."""
    parts = parts_of(metrics)
    if "" not in parts:
        tables = [format_table(part, f"{title}, {name}") for name, part in parts.items()]
        return "\n".join([*tables, *_sets(metrics)])
    sides = [side for side in _SIDES if side in metrics]
    keys = [key for key in _COLUMNS if key in metrics[sides[0]]]
    video = "nmr" in keys
    folds = f", mean of {metrics['folds']} folds" if "folds" in metrics else ""
    lines = [title + folds, f"{'':14}" + "".join(f"{_COLUMNS[key][0]:>8}" for key in keys)]
    interval = metrics.get("bootstrap", {})
    for side in sides:
        name = _SIDES[side].replace("Image", "Video").replace("image", "video") if video else _SIDES[side]
        cells = [_cell(metrics[side], key, video) for key in keys]
        lines.append(f"{name:14}" + "".join(f"{cell:>8}" for cell in cells))
        if side in interval:
            halves = [f"±{(high - low) / 2:.1f}" for low, high in interval[side].values()]
            lines.append(f"{'  95 %':14}" + "".join(f"{half:>8}" for half in halves))
    if "rsum" in metrics:
        lines.append(f"{'RSUM':14}{metrics['rsum']:8.1f}")
    if interval:
        low, high = interval["rsum"]
        lines.append(f"{'  95 %':14}{low:8.1f} to {high:.1f} ({interval['samples']} samples of the images)")
        if "difference" in interval:
            low, high = interval["difference"]
            lines.append(f"{'':14}{low:+8.1f} to {high:+.1f} against the first")
    return "\n".join([*lines, *_sets(metrics)])


def _sets(metrics: dict[str, Any]) -> list[str]:
    """Lines on the health of embedding sets, where there are any."""
    sets, lines = metrics.get("sets", {}), []
    for side in ("image", "text"):
        if f"{side}_slots_used" in sets:
            used, variance = sets[f"{side}_slots_used"], sets[f"{side}_log_variance"]
            name = f"{side.capitalize()} sets"
            lines.append(f"{name:14}  log within-set variance {variance:.2f}, {used:.1f} embeddings used")
    return lines


def _cell(metrics: dict[str, Any], key: str, video: bool) -> str:
    """A number with its digits, or a dash."""
    if key not in metrics:
        return "-"
    return f"{metrics[key]:.{2 if video and key.startswith('r') else _COLUMNS[key][1]}f}"


def format_rows(rows: Sequence[Row], markdown: bool = False) -> str:
    """Results, one a row, as a table for each part of their protocol."""
    tables = []
    for part in parts_of(rows[0].metrics):
        own = [(row, parts_of(row.metrics)[part]) for row in rows if part in parts_of(row.metrics)]
        first = own[0][1]
        sides = [side for side in _SIDES if side in first]
        keys = [key for key in _COLUMNS if key in first[sides[0]] and key != "meanr"]
        if "nmr" not in keys:
            keys = [key for key in keys if key != "medr"]
        head = [part, *(f"{side.upper()} {_COLUMNS[keys[0]][0]}" if key == keys[0] else _COLUMNS[key][0]
                        for side in sides for key in keys), *["RSUM"] * ("rsum" in first)]  # fmt: skip
        table = [head]
        for row, metrics in own:
            notes = [row.mark, *([f"{metrics['folds']} folds"] if "folds" in metrics else [])]
            cells = [_cell(metrics.get(side, {}), key, "nmr" in keys) for side in sides for key in keys]
            total = [f"{metrics['rsum']:.1f}" if "rsum" in metrics else "-"] * ("rsum" in first)
            table.append([label(row.name, *notes), *cells, *total])
        tables.append(_render(table, markdown))
    return "\n\n".join(tables)


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


def published_rows(protocol: str, data_format: str) -> list[Row]:
    """What the papers print under a protocol, for clips on a data set. Raises InputError when they print nothing."""
    setting = data_format if protocol == "video" else protocol
    rows = []
    for result in PUBLISHED:
        name = f"published, {mark(result.models)}"
        if result.setting == setting:
            rows.append(Row(result.system, {"i2t": {}, **result.metrics}, name))
        elif setting == "coco" and result.setting in ("coco_1k", "coco_5k"):
            rows.append(Row(result.system, {result.setting: {"i2t": {}, **result.metrics}}, name))
    if not rows:
        expected = "f30k, coco, coco_1k, coco_5k, cxc or eccv, or video on the data of tgif or mrw"
        raise InputError(f"--published: the papers have nothing for {setting}; expected --protocol {expected}")
    return rows


def check_json_file(path: Path) -> None:
    """Raise InputError for a place where no metrics can be written, or where a file stands that holds no metrics."""
    check_target(path)
    if not path.exists() or not path.stat().st_size:
        return
    content = None
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        if file.read(64).decode("utf-8-sig", errors="replace").lstrip().startswith("{"):
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    results = [content, *content.values()] if isinstance(content, dict) else []
    if not any(isinstance(result, dict) and parts_of(result) for result in results):
        raise InputError(f"{path}: is there and holds no metrics; expected a new file, or one of metrics to replace")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write metrics whole or not at all. Raises InputError as :func:`check_json_file` does."""
    check_json_file(path)
    write_file(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
