"""The figures of a page as PNG and SVG files, drawn with matplotlib."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from vse.console import show_progress
from vse.errors import InputError
from vse.files import write_file
from vse.pages.charts import Chart
from vse.pages.looks import Boxes, Cells, Layout, darkness, scaled, strongest

_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 2)), (0, (2, 2)))
_HEIGHT, _COLUMNS = 2.4, 6  # of a picture, in inches; of pictures side by side


class PictureFigure(NamedTuple):
    """Where the embeddings of an image look, or the words of a caption in it.

    Attributes:
        name: The name of its file.
        picture: The picture, or None if there is none.
        layout: Where the elements are.
        image: The index of the image.
        weights: The weights (K, N).
        labels: What each of the K is called.
    """

    name: str
    picture: Image.Image | None
    layout: Layout
    image: int
    weights: Tensor
    labels: list[str]


class WordFigure(NamedTuple):
    """Which words the embeddings of a caption look at.

    Attributes:
        name: The name of its file.
        words: The L words.
        weights: Their weights (K, L).
    """

    name: str
    words: list[str]
    weights: Tensor


def check_figures(folder: Path) -> None:
    """Check that figures can be written, before anything is computed.

    Args:
        folder: The folder to write to; it is made if it is missing.

    Raises:
        InputError: matplotlib is not installed, or the folder cannot be made.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--figures needs matplotlib; install it with pip install 'vse-retrieval[figures]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--figures: cannot write in {folder} ({error.strerror})") from None


def save_figures(folder: Path, figures: Sequence[Chart | PictureFigure | WordFigure]) -> int:
    """Save figures as PNG and SVG.

    Args:
        folder: The folder to write to.
        figures: The figures; of several with one name, the first is saved.

    Returns:
        How many figures were saved.

    Raises:
        InputError: A file cannot be written.
    """
    from matplotlib.figure import Figure

    named: dict[str, Chart | PictureFigure | WordFigure] = {}
    for one in figures:
        named.setdefault(one.name, one)
    for name, one in show_progress(named.items(), len(named), "figures", " figures", delay=2):
        figure = Figure(layout="constrained")
        if isinstance(one, Chart):
            _chart(figure, one)
        elif isinstance(one, PictureFigure):
            _picture(figure, one)
        else:
            _words(figure, one)
        for ending in ("png", "svg"):
            write_file(folder / f"{name}.{ending}", lambda file, f=figure, e=ending: f.savefig(file, format=e, dpi=200))  # type: ignore[misc]
    return len(named)


def _chart(figure: Any, chart: Chart) -> None:
    figure.set_size_inches(5, 3.2)
    axes = figure.subplots()
    for number, line in enumerate(chart.lines):
        axes.plot(line.x, line.y, label=line.name, linestyle=_DASHES[number % len(_DASHES)])
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.title.set_fontsize("medium")
    if chart.zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if len(chart.lines) > 1:
        axes.legend(fontsize="small")


def _picture(figure: Any, one: PictureFigure) -> None:
    """The picture, and beside it what each embedding looks at."""
    first = int(one.layout is not None and one.picture is not None)
    panels = len(one.weights) + first
    columns = min(panels, _COLUMNS)
    rows = -(-panels // columns)
    figure.set_size_inches(_HEIGHT * 1.3 * columns, _HEIGHT * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in (*axes[:first], *axes[panels:]):
        unused.axis("off")
    if first:
        axes[0].imshow(one.picture)
    for own, label, weights in zip(axes[first:], one.labels, one.weights, strict=False):
        own.set_title(f"{label}: largest {float(weights.max()):.0%}", fontsize="small")
        _panel(own, weights.numpy(), one)


def _panel(axes: Any, weights: np.ndarray, one: PictureFigure) -> None:
    """The weights of one embedding over the picture."""
    scale = scaled(weights)
    if isinstance(one.layout, Cells):
        axes.axis("off")
        rows, columns = one.layout.rows, one.layout.columns
        width, height = one.picture.size if one.picture else (columns, rows)
        axes.imshow(one.picture if one.picture else np.ones((rows, columns, 3)), extent=(0, width, height, 0))
        shade = np.zeros((rows, columns, 4))
        shade[..., 3] = darkness(scale[one.layout.before :].reshape(rows, columns))
        axes.imshow(shade, extent=(0, width, height, 0), interpolation="nearest")
    elif isinstance(one.layout, Boxes) and one.picture is not None:
        from matplotlib.patches import Rectangle

        axes.axis("off")
        axes.imshow(one.picture)
        for left, top, right, bottom, weight in strongest(one.layout.corners[one.image], scale, *one.picture.size):
            box = Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor="gold", linewidth=0.5 + 2 * weight
            )
            axes.add_patch(box)
    else:
        axes.bar(range(1, len(weights) + 1), weights)
        axes.set_xlabel("element")


def _words(figure: Any, one: WordFigure) -> None:
    """A row for each embedding, a column for each word."""
    figure.set_size_inches(0.8 + 0.55 * len(one.words), 1.1 + 0.3 * len(one.weights))
    axes = figure.subplots()
    axes.imshow(one.weights.numpy(), aspect="auto", cmap="Oranges", vmin=0)
    axes.set_xticks(range(len(one.words)), one.words, rotation=45, ha="right")
    axes.set_yticks(range(len(one.weights)), [str(number + 1) for number in range(len(one.weights))])
    axes.set_ylabel("embedding")
