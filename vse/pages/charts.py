"""Charts of lines, drawn as SVG for a page."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vse.pages.html import Markup, tag

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40  # the margins, in which the axes are labelled
_DASHES = ("none", "7 4", "2 3", "10 3 2 3", "12 5", "4 4")  # lines can be told apart without colours
_COLOURS = 6
_STYLE = """svg { --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0538a; --c4: #a87900; --c5: #3a9bd1;
  font: 12px system-ui, sans-serif; } text { fill: #5f6670; } .title { fill: #1c1e21; font-weight: 600; }
.grid { stroke: #d5d9df; } polyline { fill: none; stroke-width: 2; }"""  # of a file of its own


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        name: Its name in the legend.
        x: The places of its points, increasing.
        y: Their heights.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Chart(NamedTuple):
    """A chart of lines.

    Attributes:
        name: The name of its file.
        title: What it shows.
        x_label: The title of the horizontal axis.
        y_label: The title of the vertical axis.
        lines: Its lines, which have at least one point together.
        zero: Whether the vertical axis shows 0.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    zero: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Choose round numbers for an axis.

    Args:
        low: The lowest value.
        high: The highest value.
        count: About how many numbers there should be.

    Returns:
        Round numbers at equal distances; the first is at most ``low`` and the last at least ``high``.

    >>> ticks(0.3, 8.1)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def draw(chart: Chart) -> Markup:
    """Draw a chart as a figure with its title and, for several lines, a legend.

    Args:
        chart: The chart.

    Returns:
        The figure.
    """
    caption = [tag("b", chart.title)]
    if len(chart.lines) > 1:
        samples = [_legend(number, line.name) for number, line in enumerate(chart.lines)]
        caption.append(tag("span", *samples, class_="legend"))
    return tag("figure", tag("figcaption", *caption), _drawing(chart))


def drawing_file(chart: Chart) -> str:
    """Draw a chart as an SVG file of its own, with its title and a legend below it.

    Args:
        chart: The chart.

    Returns:
        The file's content.
    """
    height = _HEIGHT + 24 + 18 * len(chart.lines) + 8
    parts = [
        tag("style", Markup(_STYLE)),
        tag("rect", width=_WIDTH, height=height, fill="#ffffff"),
        tag("text", chart.title, x=_LEFT, y=17, class_="title"),
        tag("g", *_parts(chart), transform="translate(0 24)"),
    ]
    for number, line in enumerate(chart.lines):
        y = _HEIGHT + 24 + 18 * number + 9
        parts.append(tag("line", x1=_LEFT, y1=y, x2=_LEFT + 32, y2=y, stroke_width=2.5, **_stroke(number)))
        parts.append(tag("text", line.name, x=_LEFT + 40, y=y + 4))
    svg = tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}", width=_WIDTH)
    return svg + "\n"


def _legend(number: int, name: str) -> Markup:
    sample = tag("line", x1=0, y1=5, x2=32, y2=5, stroke_width=2.5, **_stroke(number))
    return tag("span", tag("svg", sample, viewBox="0 0 32 10", aria_hidden="true"), name)


def _stroke(number: int) -> dict[str, str]:
    """The colour and the dashes of a line."""
    turn = number // _COLOURS  # further lines have the first ones' colours with other dashes
    return {"stroke": f"var(--c{number % _COLOURS})", "stroke_dasharray": _DASHES[(number + turn) % len(_DASHES)]}


class _Axis(NamedTuple):
    """Where values stand in the drawing: ``low`` at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def _drawing(chart: Chart) -> Markup:
    """The axes and the lines."""
    label = f"{chart.title}: {', '.join(line.name for line in chart.lines)}"
    size = f"0 0 {_WIDTH} {_HEIGHT}"
    return tag("svg", *_parts(chart), viewBox=size, class_="chart", role="img", aria_label=label)


def _parts(chart: Chart) -> list[Markup]:
    """The elements of the axes and the lines."""
    xs = [x for line in chart.lines for x in line.x]
    ys = [y for line in chart.lines for y in line.y] + ([0.0] if chart.zero else [])
    rows = ticks(min(ys), max(ys))
    right = max(xs) if max(xs) > min(xs) else min(xs) + 1
    across = _Axis(min(xs), right, _LEFT, _WIDTH - _RIGHT)
    upwards = _Axis(rows[0], rows[-1], _HEIGHT - _BOTTOM, _TOP)
    columns = [value for value in ticks(min(xs), max(xs)) if min(xs) <= value <= right]
    if all(float(x).is_integer() for x in xs):  # epochs, steps, ranks
        columns = [value for value in columns if value.is_integer()]
    parts = [*_grid(rows, columns, across, upwards), *_titles(chart)]
    for number, line in enumerate(chart.lines):
        parts += _points(line, number, across, upwards)
    return parts


def _grid(rows: Sequence[float], columns: Sequence[float], across: _Axis, upwards: _Axis) -> list[Markup]:
    """Lines at the round numbers of the vertical axis, and the numbers of both."""
    parts = []
    for value in rows:
        y = upwards.place(value)
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{value:,g}", x=_LEFT - 6, y=y + 4, text_anchor="end"))
    foot = _HEIGHT - _BOTTOM + 17
    parts += [tag("text", f"{value:,g}", x=across.place(value), y=foot, text_anchor="middle") for value in columns]
    return parts


def _titles(chart: Chart) -> list[Markup]:
    """The titles of both axes."""
    middle, half = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        tag("text", chart.x_label, x=middle, y=_HEIGHT - 5, text_anchor="middle"),
        tag("text", chart.y_label, x=11, y=half, text_anchor="middle", transform=f"rotate(-90 11 {half})"),
    ]


def _points(line: Line, number: int, across: _Axis, upwards: _Axis) -> list[Markup]:
    """A line, and a dot on each point where there are few."""
    places = [(across.place(x), upwards.place(y)) for x, y in zip(line.x, line.y, strict=True)]
    parts = [tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), **_stroke(number))]
    if len(places) <= 40:
        parts += [tag("circle", cx=x, cy=y, r=2.5, fill=f"var(--c{number % _COLOURS})") for x, y in places]
    return parts
