"""A part of a corpus, for training on fewer images (``train.limit``)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vse.data.corpus import Corpus, Features, ImageSource, Kind
from vse.errors import InputError

if TYPE_CHECKING:
    from vse.data.transforms import Transform

_CHOICE = 4  # the number of an independent random stream


class ChosenImages:
    """Some of the images of another source.

    Args:
        source: The source.
        chosen: Which of its images, (n,) whole numbers.

    >>> len(ChosenImages(corpus.images, np.array([2, 5])))
    2
    """

    def __init__(self, source: ImageSource, chosen: np.ndarray) -> None:
        self.source, self.chosen = source, chosen
        self.kind: Kind = source.kind
        self.width: int | None = source.width
        self.takes: Literal["pictures", "frames"] | None = source.takes

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        """Return one image as it is stored."""
        return self.source[int(self.chosen[index])]

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray | list[np.ndarray]:
        """Read some images.

        Args:
            indices: Which images, (n,) whole numbers.
            epoch: The training epoch, as in :class:`vse.data.corpus.ImageSource`.

        Returns:
            What the source gives for them.
        """
        return self.source.read(self.chosen[indices], epoch)

    def transformed(self, transform: "Transform", seed: int, threads: int) -> "ChosenImages":
        """Return the same images, read through a transform.

        Args:
            transform: As in :class:`vse.data.corpus.ImageSource`.
            seed: As there.
            threads: As there.

        Returns:
            The new source.
        """
        return ChosenImages(self.source.transformed(transform, seed, threads), self.chosen)


def choose_images(corpus: Corpus, limit: int | float, seed: int) -> Corpus:
    """Choose some images of a corpus at random, with all of their captions.

    A larger part has all images of a smaller one that has the same seed.

    Args:
        corpus: The corpus.
        limit: Number of images, or their share above 0 and below 1, of which at least one image is left.
        seed: The seed of the choice.

    Returns:
        The part, in the order of the corpus.

    Raises:
        InputError: The corpus has fewer images, or those that were chosen have no caption.

    >>> len(choose_images(corpus, 0.1, seed=1).images)
    2900
    """
    total = len(corpus.images)
    count = limit if isinstance(limit, int) else max(1, round(limit * total))
    if count > total:
        raise InputError(f"{corpus.name} has {total:,} images, fewer than {count:,}")
    chosen = np.sort(np.random.default_rng((_CHOICE, seed)).permutation(total)[:count])
    captions = np.flatnonzero(np.isin(corpus.image_of_caption, chosen))
    images = corpus.images
    return replace(
        corpus,
        images=images.only(chosen) if isinstance(images, Features) else ChosenImages(images, chosen),
        captions=[corpus.captions[i] for i in captions],
        image_of_caption=np.searchsorted(chosen, corpus.image_of_caption[captions]),
        image_ids=_items(corpus.image_ids, chosen),
        caption_ids=_items(corpus.caption_ids, captions),
    )


def _items(ids: Sequence[Any], places: np.ndarray) -> list[Any]:
    return [ids[place] for place in places]
