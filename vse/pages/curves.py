"""The learning curves of a run, from its metrics.jsonl."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
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
    train = [(record["step"], record["train"]) for record in records if "train" in record]
    dev = [(record["epoch"], record["dev"]) for record in records if "dev" in record]
    start = [(0, record["start"]) for record in records if "start" in record]
    losses = {"total": "loss", "ranking": "ranking loss", "plateau": "loss of equal scores"}
    recalls = {"i2t": "to captions", "t2i": "from captions"}
    charts = [
        Chart("training_loss", "Training loss", "step", "loss", _lines(train, losses), zero=True),
        Chart("dev_rsum", "RSUM on dev", "epoch", "RSUM", _lines(dev, {"rsum": "RSUM"})),
        Chart("dev_r1", "R@1 on dev", "epoch", "R@1, %", _of_sides(dev, recalls)),
        *_health([*start, *train]),
    ]
    return [chart for chart in charts if chart.lines]


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


def _lines(records: Sequence[tuple[float, Record]], names: dict[str, str]) -> tuple[Line, ...]:
    """A line for each key that the records have."""
    lines = [_line(name, records, lambda record, key=key: record.get(key)) for key, name in names.items()]  # type: ignore[misc]
    kept = [line for line in lines if line.x]
    if len(kept) > 1 and kept[0].name == "loss" and list(kept[0].y) == list(kept[1].y):
        del kept[1]  # the ranking loss is the whole loss
    return tuple(kept)


def _of_sides(records: Sequence[tuple[float, Record]], names: dict[str, str]) -> tuple[Line, ...]:
    """A line of R@1 for each direction."""
    lines = [
        _line(name, records, lambda record, side=side: record.get(side, {}).get("r1")) for side, name in names.items()
    ]  # type: ignore[misc]
    return tuple(line for line in lines if line.x)


def _health(records: Sequence[tuple[float, Record]]) -> list[Chart]:
    """Charts of embedding sets during training."""
    titles = {
        "log_variance": ("Log variance within sets", "log variance"),
        "embeddings_used": ("Embeddings used", "effective number"),
    }
    return [
        Chart(
            f"health_{key}",
            title,
            "step",
            label,
            _lines(records, {f"image_{key}": "images", f"text_{key}": "captions"}),
        )
        for key, (title, label) in titles.items()
    ]


def _line(name: str, records: Sequence[tuple[float, Record]], value: Callable[[Record], Any]) -> Line:
    """A line through the finite numbers of some records; of many points, means of neighbours."""
    points = [(float(x), float(y)) for x, record in records if _is_number(y := value(record))]
    size = -(-len(points) // _MOST_POINTS) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    means = [[sum(values) / len(group) for values in zip(*group, strict=True)] for group in groups]
    return Line(name, [x for x, _ in means], [y for _, y in means])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
