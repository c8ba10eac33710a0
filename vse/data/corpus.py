"""What a corpus and a source of images are."""

import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vse.errors import InputError, first_line

# What numpy raises for a damaged file.
NOT_NPY = (ValueError, OSError, EOFError, SyntaxError, OverflowError, TypeError, MemoryError, tokenize.TokenError)


SPLITS = ("train", "dev", "test", "testall")


@dataclass(frozen=True)
class Corpus:
    """Images and the captions that describe them. Raises InputError when the parts do not fit."""

    name: str  # what messages call it: the file or folder it came from
    images: Any  # indexable and lazily read: Features, FrameFeatures, Clips, or picture paths
    captions: list[str]
    image_of_caption: np.ndarray  # (captions,) index of each caption's image
    image_ids: Sequence[Any]  # unique
    caption_ids: Sequence[Any]
    video: bool = False  # whether the images are clips

    def __post_init__(self) -> None:
        if not len(self.images) or not self.captions:
            raise InputError(f"{self.name}: holds {len(self.images)} images and {len(self.captions)} captions")
        if len(set(self.image_ids)) != len(self.images):
            raise InputError(
                f"{self.name}: {len(self.images)} images but {len(set(self.image_ids))} different image ids"
            )
        if len(set(self.caption_ids)) != len(self.caption_ids):
            raise InputError(
                f"{self.name}: {len(self.captions)} captions but {len(set(self.caption_ids))} different caption ids"
            )
        for label, caption in zip(self.caption_ids, self.captions, strict=False):
            try:
                caption.encode()
            except UnicodeEncodeError:  # half an emoji, as "\\ud83d" in a JSON file
                raise InputError(f"{self.name}: caption {label} is no valid text: {caption!r}"[:300]) from None
        if not len(self.image_of_caption) == len(self.caption_ids) == len(self.captions):
            raise InputError(
                f"{self.name}: {len(self.captions)} captions but {len(self.caption_ids)} caption ids and "
                f"{len(self.image_of_caption)} image indices"
            )

    @property
    def positives(self) -> np.ndarray:
        """(images, captions) bool: which caption describes which image."""
        return np.arange(len(self.images))[:, None] == self.image_of_caption[None, :]


class Features:
    """Precomputed features, read from a memory-mapped .npy file (rows, regions, width) as they are asked for.

    Raises InputError, naming the file, when the header is not that of a 3-D float array or the file is truncated; and,
    naming file and image, when a row that is read holds NaN or Inf.
    """

    def __init__(self, path: Path, rows: np.ndarray | None = None, ids: Sequence[Any] = ()) -> None:
        self.path = path
        self._array: np.ndarray | None = None
        array = self._open()
        if array.ndim != 3 or array.dtype not in (np.float32, np.float16) or 0 in array.shape:
            raise InputError(
                f"{path}: expected a float32 or float16 array (rows, regions, width), "
                f"found {array.dtype} of shape {array.shape}"
            )
        self.rows = np.arange(len(array)) if rows is None else rows
        self.ids = ids
        self.width = array.shape[2]

    def _open(self) -> np.ndarray:
        if self._array is None:
            try:
                # np.load would hand anything that is no .npy file to the unpickler.
                self._array = np.lib.format.open_memmap(self.path, mode="r")
            except FileNotFoundError:
                raise InputError(f"{self.path}: no such file") from None
            except NOT_NPY as error:
                raise InputError(f"{self.path}: not a complete .npy file of numbers ({first_line(error)})") from None
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # a loader process opens the file itself

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one image's features (regions, width) float32."""
        return self.read(np.array([index]))[0]

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Features (n, regions, width) float32 of some images, the same in every epoch."""
        values = self._open()[self.rows[indices]].astype(np.float32, copy=False)
        bad = ~np.isfinite(values).all((1, 2))
        if bad.any():
            index = int(indices[int(bad.argmax())])
            label = f"image {self.ids[index]}" if len(self.ids) else f"image {index}"
            raise InputError(f"{self.path}: NaN or Inf in the features of {label} (row {int(self.rows[index])})")
        return values

    def same_rows(self, first: int, second: int) -> bool:
        """Whether two rows of the file are equal."""
        array = self._open()
        return np.array_equal(array[first], array[second], equal_nan=True)


class ArrayFeatures:
    """Features (images, regions, width) held in memory as bytes, read as float32 in [-1, 1]."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.width = array.shape[2]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one image's features (regions, width) float32."""
        return self.read(np.array([index]))[0]

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Features (n, regions, width) float32 of some images, the same in every epoch."""
        return self.array[indices].astype(np.float32) / 127.5 - 1
