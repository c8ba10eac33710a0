"""The pictures of a corpus as thumbnails; each is in the page once, however often it is shown."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vse.config import Config
from vse.data.clips import iterate_frames
from vse.data.corpus import Corpus
from vse.data.formats import karpathy
from vse.data.reading import read_json
from vse.data.transforms import PictureFiles, open_picture
from vse.errors import InputError
from vse.pages.html import Markup, tag

LARGE, SMALL = 320, 160  # the longer side of a thumbnail, in pixels
_QUALITY = 78  # of JPEG
_ENDINGS = ("", ".jpg", ".jpeg", ".png", ".gif")


class Thumbnail(NamedTuple):
    """A picture in the page.

    Attributes:
        label: The id of its element.
        width: Its width, of the coordinates in which it is drawn on.
        height: Its height.
    """

    label: str
    width: int
    height: int


class Gallery:
    """The thumbnails of a page.

    >>> gallery = Gallery()
    >>> show(gallery.add("a.jpg", lambda: open_picture("a.jpg")), "a dog")
    '<svg viewBox="0 0 320 213" ...><use href="#p0"></use></svg>'
    """

    def __init__(self) -> None:
        self._pictures: dict[str, tuple[Thumbnail, Image.Image]] = {}
        self._sizes: dict[str, int] = {}

    def add(self, key: str, read: Callable[[], Image.Image], size: int = LARGE) -> Thumbnail | None:
        """Add a picture.

        Args:
            key: Its name: a picture of the same name is not read again.
            read: Reads it.
            size: How many pixels its longer side needs here.

        Returns:
            The thumbnail, or None if the picture cannot be read.
        """
        if key not in self._pictures:
            try:
                picture = read()
            except InputError:
                return None
            scale = LARGE / max(picture.size)
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture.thumbnail((LARGE, LARGE))
            self._pictures[key] = Thumbnail(f"p{len(self._pictures)}", width, height), picture
        self._sizes[key] = max(size, self._sizes.get(key, 0))
        return self._pictures[key][0]

    def picture(self, key: str) -> Image.Image | None:
        """Return the picture of a name, at most :data:`LARGE` pixels wide and high, if it has been added."""
        return self._pictures[key][1] if key in self._pictures else None

    def content(self) -> Markup:
        """Return the element that holds all pictures and shows none of them."""
        images = [
            tag("image", id=thumbnail.label, width=thumbnail.width, height=thumbnail.height, href=_jpeg(picture, size))
            for (thumbnail, picture), size in zip(self._pictures.values(), self._sizes.values(), strict=True)
        ]
        return tag("svg", tag("defs", *images), class_="gallery", aria_hidden="true")


def _jpeg(picture: Image.Image, size: int) -> str:
    """A picture as a data: URI."""
    small = picture.copy()
    small.thumbnail((size, size))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def show(thumbnail: Thumbnail, label: str, *overlay: Markup) -> Markup:
    """Show a picture.

    Args:
        thumbnail: The picture.
        label: What it is, for those who cannot see it.
        overlay: Elements that are drawn over it, in the coordinates of the thumbnail.

    Returns:
        The element.
    """
    use = tag("use", href=f"#{thumbnail.label}")
    box = f"0 0 {thumbnail.width} {thumbnail.height}"
    return tag("svg", use, *overlay, viewBox=box, class_="picture", role="img", aria_label=label)


def find_pictures(config: Config, corpus: Corpus, split: str) -> dict[int, Path]:
    """Find the pictures or clips of a corpus.

    A corpus of features has pictures where ``images/`` in the data's folder has a file for the image's id: the one that
    ``id_mapping.json`` names, or one that is called like the id, with or without an ending.

    Args:
        config: The config of the data.
        corpus: The corpus.
        split: Its split.

    Returns:
        The file, or a clip's folder, of each image that has one.
    """
    if isinstance(corpus.images, PictureFiles):
        return {image: Path(corpus.images[image]) for image in range(len(corpus.images))}
    root = Path(config.data.root)
    if config.data.format == "synthetic":
        source = karpathy(str(root), split).images
        return {image: Path(source[image]) for image in range(len(source))}
    return _beside_features(root, corpus)


def _beside_features(root: Path, corpus: Corpus) -> dict[int, Path]:
    """The pictures of precomputed features, as far as they are there."""
    folder, mapping = root / "images", root / "id_mapping.json"
    if not folder.is_dir():
        return {}
    known = read_json(mapping) if mapping.is_file() else {}
    names = known if isinstance(known, dict) else {}
    found = {}
    for image, label in enumerate(map(str, corpus.image_ids)):
        for ending in _ENDINGS:
            path = folder / f"{names.get(label, label)}{ending}"
            if path.is_file():
                found[image] = path
                break
    return found


def read_picture(path: Path) -> Image.Image:
    """Read a picture, or the first frame of a clip.

    Args:
        path: The file, or a clip's folder.

    Returns:
        The picture in RGB.

    Raises:
        InputError: It is missing or damaged.
    """
    if path.is_dir():
        return next(iterate_frames(path))
    return open_picture(path)
