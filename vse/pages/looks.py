"""Where a model looks: its attention over regions, cells, frames and words, and the drawing of that."""

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vse.aggregators.base import traits_of as traits_of_aggregator
from vse.config import Config
from vse.data.corpus import Corpus, Features
from vse.data.reading import NOT_NPY, read_json
from vse.data.synthetic import GRID
from vse.data.transforms import Square
from vse.encoders.base import traits_of as traits_of_encoder
from vse.errors import InputError
from vse.model import Tower, VSEModel
from vse.pages.html import Markup, tag
from vse.pages.pictures import Thumbnail, show
from vse.pages.rank_weights import element_shares
from vse.sets import FeatureSet

_BOXES = 5  # that are drawn: those with the largest weights
_STRIP = 320, 90  # width and height of a chart of bars
_DARKEST = 0.85  # opacity of the shade over a cell with no weight


class Look(NamedTuple):
    """Where one sample's embeddings come from.

    Attributes:
        weights: Weights (K, N) over the elements, each row adding up to about 1.
        kind: "attention", which the aggregator gives itself, or "share", the mean weight over the dimensions of a
            pooling.
    """

    weights: Tensor
    kind: str


@torch.no_grad()
def look(tower: Tower, inputs: Tensor) -> tuple[Look | None, Tensor]:
    """Find where a tower looks in one sample.

    Args:
        tower: The tower, in evaluation mode.
        inputs: What its encoder reads of one sample, (1, ...).

    Returns:
        The look, or None for a tower that has neither attention nor a pooling of known weights; and the features (N, D)
        that are aggregated.
    """
    parameter = next(tower.parameters())
    inputs = inputs.to(parameter.device)
    features = FeatureSet(*tower.encoder(inputs.to(parameter.dtype) if inputs.is_floating_point() else inputs, None))
    attention = tower.aggregator(*features).attention
    if attention is not None:
        return Look(attention[0].float().cpu(), "attention"), features.features[0]
    shares = element_shares(tower.aggregator, features.features)
    return None if shares is None else Look(shares.float().cpu(), "share"), features.features[0]


class Boxes(NamedTuple):
    """Regions of pictures, as parts of their width and height.

    Attributes:
        corners: (images, N, 4) left, top, right and bottom, from 0 to 1.
    """

    corners: np.ndarray


class Cells(NamedTuple):
    """Elements that are the cells of a grid over the picture, row by row.

    Attributes:
        rows: The number of rows.
        columns: The number of columns.
        before: The number of elements before the cells, such as a [CLS] token.
        whole: Whether the grid covers the whole picture; otherwise it covers what the transform leaves of it.
    """

    rows: int
    columns: int
    before: int = 0
    whole: bool = True


Layout = Boxes | Cells | None


def find_layout(config: Config, model: VSEModel, corpus: Corpus, grid: tuple[int, int] | None = None) -> Layout:
    """Find where the elements of a corpus's images are in the pictures, as far as anything says so.

    Boxes are known for features that ``vse extract --detector`` wrote. Elements are the cells of a grid for pictures
    through a ``grid`` encoder, for the demo's patches, for features that ``vse extract`` took from a backbone with the
    transform ``square``, and where the aggregator or the user says so.

    Args:
        config: The model's config.
        model: The model.
        corpus: The corpus.
        grid: The rows and columns of the grid, if the user says so.

    Returns:
        The layout, or None if it is not known.

    Raises:
        InputError: The grid has another number of cells than an image has elements, or the boxes do not fit.
    """
    kind = corpus.images.kind
    if kind == "frames" or corpus.video:
        return None
    first = corpus.images.read(np.array([0]))[0]
    if kind == "pictures":
        if traits_of_encoder(model.image.encoder).backbone is None:
            return None
        elements = len(look(model.image, torch.from_numpy(first)[None])[1])
        whole = isinstance(getattr(corpus.images, "transform", None), Square)
        return _cells_of(elements, first.shape[1] / first.shape[2], whole)
    elements = len(first)
    if grid is not None and grid[0] * grid[1] != elements:
        raise InputError(
            f"--grid {grid[0]}x{grid[1]}: has {grid[0] * grid[1]} cells, but {corpus.name} {elements} regions"
        )
    told = grid or traits_of_aggregator(model.image.aggregator).grid
    if told is not None:
        return Cells(*told)
    if config.data.format == "synthetic":
        return Cells(GRID, GRID)
    if isinstance(corpus.images, Features):
        return _of_features(corpus.images, elements)
    return None


def _cells_of(elements: int, aspect: float, whole: bool) -> Cells | None:
    """The grid of so many cells with the aspect (height / width) of the picture, perhaps behind a [CLS] token."""
    for before in (0, 1):
        rows = round(((elements - before) * aspect) ** 0.5)
        if rows > 0 and (elements - before) % rows == 0 and round(rows / aspect) == (elements - before) // rows:
            return Cells(rows, (elements - before) // rows, before, whole)
    return None


def _of_features(images: Features, elements: int) -> Layout:
    """What the files beside precomputed features say of their regions."""
    split = images.path.name.removesuffix("_ims.npy")
    names = ("boxes.npy", "sizes.npy", "manifest.json")
    boxes, sizes, manifest = (images.path.with_name(f"{split}_{name}") for name in names)
    if boxes.is_file() and sizes.is_file():
        try:
            corners, shapes = (np.load(file, allow_pickle=False)[images.rows] for file in (boxes, sizes))
            return Boxes(corners.reshape(len(images), elements, 4) / np.tile(shapes, 2)[:, None])
        except NOT_NPY + (IndexError,):
            raise InputError(
                f"{boxes}: does not fit {images.path.name}; expected four numbers for each region"
            ) from None
    if manifest.is_file():
        about = read_json(manifest)
        is_backbone = not {"backbone", "model"}.isdisjoint(about.get("extractor", {}))
        if is_backbone and (about.get("transform") or {}).get("name") == "square":
            return _cells_of(elements, 1.0, True)
    return None


def scaled(values: np.ndarray) -> np.ndarray:
    """Scale weights (N,) for a drawing: the largest becomes 1, but equal weights become one half."""
    scale: np.ndarray = values / max(float(values.max()), 2 / len(values))
    return scale


def draw_look(weights: Tensor, layout: Layout, image: int, thumbnail: Thumbnail | None, label: str) -> Markup:
    """Draw weights over the elements of an image.

    Args:
        weights: The weights (N,).
        layout: Where the elements are.
        image: The index of the image.
        thumbnail: The picture, or None if there is none.
        label: What it is, for those who cannot see it.

    Returns:
        For cells, the picture (or a plain field) with a shade that is dark where there is little weight. For boxes,
        those with the largest weights on the picture. Otherwise bars, one for each element.
    """
    values = weights.numpy()
    scale = scaled(values)
    if isinstance(layout, Cells) and len(values) == layout.before + layout.rows * layout.columns:
        picture = thumbnail or Thumbnail("", 320, 320 * layout.rows // layout.columns)
        shade = _shade(scale[layout.before :].reshape(layout.rows, layout.columns), picture)
        if thumbnail is not None:
            return show(thumbnail, label, shade)
        field = tag("rect", width=picture.width, height=picture.height, fill="#f2f2f2")
        return tag(
            "svg",
            field,
            shade,
            viewBox=f"0 0 {picture.width} {picture.height}",
            class_="picture",
            role="img",
            aria_label=label,
        )
    if isinstance(layout, Boxes) and thumbnail is not None:
        return show(thumbnail, label, *_boxes(layout.corners[image], scale, thumbnail))
    return _strip(values, scale, label)


def darkness(scale: np.ndarray) -> np.ndarray:
    """The opacity of the shade over elements, from 0 over those with full weight to 0.85 over those with none."""
    opacity: np.ndarray = _DARKEST * (1 - scale.clip(0, 1))
    return opacity


def _shade(scale: np.ndarray, picture: Thumbnail) -> Markup:
    """A tiny picture of one black pixel a cell, the more transparent the more weight it has."""
    pixels = np.zeros((*scale.shape, 2), dtype=np.uint8)
    pixels[..., 1] = (255 * darkness(scale)).round()
    content = io.BytesIO()
    Image.fromarray(pixels, "LA").save(content, "PNG", optimize=True)
    return tag(
        "image",
        width=picture.width,
        height=picture.height,
        preserveAspectRatio="none",
        style="image-rendering: pixelated",
        href=f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}",
    )


def strongest(corners: np.ndarray, scale: np.ndarray, width: int, height: int) -> list[tuple[float, ...]]:
    """Choose the boxes with the largest weights.

    Args:
        corners: The boxes (N, 4) of an image, as parts of its width and height.
        scale: Their weights (N,), the largest being 1.
        width: The width of the picture that they are drawn on.
        height: Its height.

    Returns:
        Left, top, right, bottom and weight of five of them, the largest weight last, so that it is drawn on top.
    """
    order = np.argsort(-scale, kind="stable")[:_BOXES][::-1]
    places = corners * np.tile([width, height], 2)
    return [(*map(float, places[place]), float(scale[place])) for place in order]


def _boxes(corners: np.ndarray, scale: np.ndarray, picture: Thumbnail) -> list[Markup]:
    """The boxes with the largest weights; more weight makes a thicker line."""
    parts = []
    for left, top, right, bottom, weight in strongest(corners, scale, picture.width, picture.height):
        size = {"width": round(right - left, 1), "height": round(bottom - top, 1)}
        for colour, thickness in (("#000", 2.5 + 3 * weight), ("#ffd000", 0.5 + 3 * weight)):  # seen on any picture
            line = tag(
                "rect",
                x=round(left, 1),
                y=round(top, 1),
                **size,
                fill="none",
                stroke=colour,
                stroke_width=round(thickness, 1),
                opacity=round(0.3 + 0.7 * weight, 2),
            )
            parts.append(line)
    return parts


def _strip(values: np.ndarray, scale: np.ndarray, label: str) -> Markup:
    """Bars, one for each element, in their order."""
    width, height = _STRIP
    step = width / len(values)
    bars = [
        tag(
            "rect",
            x=round(n * step, 1),
            y=round(height * (1 - s), 1),
            width=round(step * 0.85, 1),
            height=round(height * s, 1),
        )
        for n, s in enumerate(scale.clip(0, 1).tolist())
    ]
    base = tag("line", x1=0, x2=width, y1=height, y2=height, stroke="currentColor")
    return tag(
        "svg", tag("g", *bars, fill="var(--c0)"), base, viewBox=f"0 0 {width} {height}", role="img", aria_label=label
    )
