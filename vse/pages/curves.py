"""The learning curves of a run, from its metrics.jsonl."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vse.pages.charts import Chart, Line

_MOST_POINTS = 200  # of a line: more cannot be seen
Record = dict[str, Any]


def learning_curves(file: Path) -> list[Chart]:
    """Read the learning curves of a run.

    Args:
        file: The run's metrics.jsonl. A line that was cut off or damaged is left out.

    Returns:
        Charts of the training loss, of dev's RSUM and R@1, and for embedding sets of their health; none where the file
        is missing or has no numbers.
    """
    records = list(_records(file))
    train, start = _kind(records, "train"), _kind(records, "start")
    x = "epoch" if _are_after_epochs(records) else "step"
    dev = _kind(records, "dev", x)
    losses = {"total": "loss", "ranking": "ranking loss", "plateau": "loss of equal scores"}
    recalls = {"i2t": "image to text", "t2i": "text to image"}
    charts = [
        Chart("training_loss", "Training loss", "step", "loss", _lines(train, losses), zero=True),
        Chart("dev_rsum", _best(dev, x), x, "RSUM", _lines(dev, {"rsum": "RSUM"})),
        Chart("dev_r1", "R@1 on dev", x, "R@1, %", _of_sides(dev, recalls)),
        *_health([*start, *train]),
    ]
    return [chart for chart in charts if chart.lines]


def _are_after_epochs(records: Sequence[Record]) -> bool:
    """Whether dev was only evaluated after whole epochs, each of which has the same number of steps."""
    known = [record for record in records if _is_number(record["step"]) and _is_number(record["epoch"])]
    paces = [record["step"] / record["epoch"] for record in known if record["epoch"] > 0]
    steps_per_epoch = max(paces, default=0.0)  # that of an epoch's last step, which is always logged
    return all(record["step"] == steps_per_epoch * record["epoch"] for record in known if "dev" in record)


def _best(dev: Sequence[tuple[float, Record]], x: str) -> str:
    """The title of the chart of dev's RSUM."""
    known = [(record["rsum"], place) for place, record in dev if _is_number(record.get("rsum"))]
    if not known:
        return "RSUM on dev"
    rsum, place = max(known, key=lambda pair: pair[0])
    return f"RSUM on dev: best {rsum:.1f} at {x} {place:,}"


def _records(file: Path) -> Iterator[Record]:
    """The whole lines of a file of records."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record and "epoch" in record:
            yield record


def _kind(records: Sequence[Record], kind: str, x: str = "step") -> list[tuple[float, Record]]:
    """The records of a kind, each with its place."""
    return [
        (record[x], record[kind]) for record in records if isinstance(record.get(kind), dict) and _is_number(record[x])
    ]


def _lines(records: Sequence[tuple[float, Record]], names: dict[str, str]) -> tuple[Line, ...]:
    """A line for each key that the records have."""
    lines = [_line(name, [(x, record.get(key)) for x, record in records]) for key, name in names.items()]
    kept = [line for line in lines if line.x]
    if len(kept) > 1 and kept[0].name == "loss" and list(kept[0].y) == list(kept[1].y):
        del kept[1]  # the ranking loss is the whole loss
    return tuple(kept)


def _of_sides(records: Sequence[tuple[float, Record]], names: dict[str, str]) -> tuple[Line, ...]:
    """A line of R@1 for each direction."""
    lines = [
        _line(name, [(x, record.get(side, {}).get("r1")) for x, record in records]) for side, name in names.items()
    ]
    return tuple(line for line in lines if line.x)


def _health(records: Sequence[tuple[float, Record]]) -> list[Chart]:
    """Charts of embedding sets during training."""
    titles = {
        "log_variance": ("Log variance within sets", "log variance"),
        "embeddings_used": ("Embeddings used", "effective number"),
    }
    charts = []
    for key, (title, label) in titles.items():
        lines = _lines(records, {f"image_{key}": "images", f"text_{key}": "captions"})
        charts.append(Chart(f"health_{key}", title, "step", label, lines))
    return charts


def _line(name: str, values: Sequence[tuple[float, Any]]) -> Line:
    """A line through the finite numbers among some values; of many points, means of neighbours."""
    points = [(float(x), float(y)) for x, y in values if _is_number(y)]
    size = -(-len(points) // _MOST_POINTS) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    means = [[sum(numbers) / len(group) for numbers in zip(*group, strict=True)] for group in groups]
    return Line(name, [x for x, _ in means], [y for _, y in means])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
