"""What the cards of a page are made from: a model, its corpus, and the pictures."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vse.aggregators.base import traits_of
from vse.data.corpus import Corpus
from vse.evaluation.blocks import ScoreBlocks, blocks_of_embeddings
from vse.evaluation.encode import CorpusEmbeddings
from vse.model import VSEModel
from vse.pages.html import Markup, tag
from vse.pages.looks import Cells, Layout, Look, look
from vse.pages.pictures import LARGE, Gallery, Thumbnail, read_picture, show
from vse.pages.queries import Answers, answer
from vse.ragged import Sets
from vse.similarity import max_cosine

_MOST_EMBEDDINGS = 8  # of a set that are shown one by one


@dataclass(frozen=True)
class Exhibit:
    """A model, its corpus, and the pictures of a page.

    Attributes:
        model: The model, in evaluation mode.
        corpus: The corpus.
        embeddings: The corpus's embeddings.
        layout: Where the elements of an image are in its picture.
        pictures: The files of the images that have pictures.
        gallery: The thumbnails of the page.
    """

    model: VSEModel
    corpus: Corpus
    embeddings: CorpusEmbeddings
    layout: Layout
    pictures: dict[int, Path]
    gallery: Gallery = field(default_factory=Gallery)

    @property
    def blocks(self) -> ScoreBlocks:
        """The scores (images, captions)."""
        return blocks_of_embeddings(*self.embeddings)

    @property
    def matches_words(self) -> bool:
        """Whether the model compares words with regions."""
        towers = self.model.image, self.model.text
        return all(traits_of(tower.aggregator).keeps_elements for tower in towers)

    @functools.cached_property
    def captions_of(self) -> list[np.ndarray]:
        """The indices of each image's captions."""
        owners = self.corpus.image_of_caption
        ends = np.cumsum(np.bincount(owners, minlength=len(self.corpus.images)))
        return np.split(np.argsort(owners, kind="stable"), ends[:-1])

    def item(self, image: int) -> np.ndarray:
        """Return what the image encoder reads of an image."""
        return np.asarray(self.corpus.images.read(np.array([image]))[0])

    def look_at_image(self, image: int) -> Look | None:
        """Find where the image tower looks."""
        return look(self.model.image, torch.from_numpy(self.item(image))[None])[0]

    def look_at_caption(self, caption: int) -> Look | None:
        """Find where the text tower looks."""
        return look(self.model.text, self.tokens(caption))[0]

    def tokens(self, caption: int) -> Tensor:
        """Return the ids (1, L) of a caption's tokens."""
        assert self.model.vocabulary is not None
        return torch.as_tensor(self.model.vocabulary.encode(self.corpus.captions[caption]))[None]

    def thumbnail(self, image: int, size: int = LARGE) -> Thumbnail | None:
        """Return the thumbnail of an image, or None if it has no picture."""
        path = self.pictures.get(image)
        return None if path is None else self.gallery.add(str(image), lambda: read_picture(path), size)

    def under_look(self, image: int) -> tuple[str, Thumbnail | None]:
        """Return the name and the thumbnail of the picture that a look is drawn on.

        Where cells do not cover the whole picture, it is what the transform leaves of it.
        """
        if not isinstance(self.layout, Cells) or self.layout.whole:
            return str(image), self.thumbnail(image)
        pixels = self.item(image)
        if pixels.dtype != np.uint8:
            return str(image), None
        name = f"{image} as it is read"
        return name, self.gallery.add(name, lambda: Image.fromarray(pixels.transpose(1, 2, 0)))

    def show_image(self, image: int, size: int = LARGE) -> Markup:
        """Return the picture of an image, or in its place its id and its first caption."""
        thumbnail, label = self.thumbnail(image, size), f"{self.corpus.image_ids[image]}"
        if thumbnail is None:
            captions = [self.corpus.captions[caption] for caption in self.captions_of[image][:1]]
            return tag(
                "div", f"no picture of {label}", *(tag("p", f"“{caption}”") for caption in captions), class_="missing"
            )
        return show(thumbnail, f"image {label}")

    def own_answers(self, side: str, queries: Sequence[int], count: int) -> list[list[Answers]]:
        """Find what each embedding of a query's set is nearest to, by its best cosine with an embedding.

        Args:
            side: "image" or "text", the side of the queries.
            queries: Their indices.
            count: The number of answers.

        Returns:
            For each of the first embeddings, the answers to each query; empty for single embeddings, and where each
            element is an embedding.
        """
        own, other, tower = self.embeddings.images, self.embeddings.captions, self.model.image
        if side == "text":
            own, other, tower = other, own, self.model.text
        if not isinstance(own, Tensor) or own.shape[1] == 1 or traits_of(tower.aggregator).keeps_elements:
            return []
        positives = [self.positives(side, query) for query in queries]
        singles = own.split(1, dim=1)[:_MOST_EMBEDDINGS]
        return [answer(_cosines(single, other), queries, positives, count) for single in singles]

    def positives(self, side: str, query: int) -> np.ndarray:
        """Return the right answers to a query of a side."""
        return self.captions_of[query] if side == "image" else self.corpus.image_of_caption[query : query + 1]


def _cosines(queries: Tensor, candidates: Sets) -> ScoreBlocks:
    """Cosines of single embeddings with the nearest embedding of each candidate."""
    return blocks_of_embeddings(max_cosine, queries, candidates)
