import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outline import Outline

from vse.pages.charts import Chart, Line, draw, ticks


def test_round_numbers() -> None:
    assert ticks(0.3, 8.1) == [0, 2, 4, 6, 8, 10]
    assert ticks(-15.2, -2) == [-20, -15, -10, -5, 0]
    assert ticks(0.058, 0.064) == [0.058, 0.06, 0.062, 0.064]
    assert ticks(5, 5)[0] <= 5 <= ticks(5, 5)[-1] and ticks(0, 0) == [0, 0.2]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_they_reach_both_ends(low: float, span: float) -> None:
    numbers = ticks(low, low + span)
    assert numbers[0] <= low + 1e-6 * span and numbers[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(numbers) <= 12
    np.testing.assert_allclose(np.diff(numbers), numbers[1] - numbers[0], rtol=1e-3)


def places(chart: Chart) -> list[list[tuple[float, float]]]:
    outline = Outline(draw(chart))
    lines = [outline.elements[place][1]["points"] for place in outline.find("polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in lines]


def test_points_are_where_the_axes_say() -> None:
    chart = Chart("c", "T", "x", "y", (Line("a", [0, 5, 10], [0.0, 1.0, 4.0]), Line("b", [0, 10], [4.0, 4.0])))
    a, b = places(chart)
    assert [x for x, _ in a] == pytest.approx([52, 260, 468])
    assert [y for _, y in a] == pytest.approx([230, 175, 10])  # 0 at the bottom, 4 at the top
    assert b == [(52, 10), (468, 10)]


def test_titles_and_names_are_shown_and_escaped() -> None:
    outline = Outline(draw(Chart("c", "<T>", "step", "loss", (Line("a & b", [1], [1.0]), Line("c", [1], [2.0])))))
    assert outline.text(outline.find("b")[0]) == "<T>"
    legend = outline.find("span", "legend")
    assert outline.text(legend[0]) == "a & bc"
    assert {"step", "loss"} <= {outline.text(place) for place in outline.find("text")}
    dashes = [outline.elements[place][1]["stroke-dasharray"] for place in outline.find("polyline")]
    assert len(set(dashes)) == 2  # they can be told apart in black and white
    assert not Outline(draw(Chart("c", "T", "x", "y", (Line("a", [1], [1.0]),)))).find("span", "legend")


@pytest.mark.parametrize(("x", "shown"), [([1, 2], ["1", "2"]), ([1, 1.5, 2], ["1", "1.2", "1.4", "1.6", "1.8", "2"])])
def test_epochs_have_whole_numbers(x: list[float], shown: list[str]) -> None:
    """There is no epoch 1.2; other values have such numbers."""
    outline = Outline(draw(Chart("c", "T", "epoch", "loss", (Line("a", x, [10.0 * value for value in x]),))))
    texts = [outline.text(place) for place in outline.find("text")]
    assert [text for text in texts if text in ("1", "1.2", "1.4", "1.6", "1.8", "2")] == shown
