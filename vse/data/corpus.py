"""The corpus and the protocol of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from vse.data.reading import NOT_NPY
from vse.errors import InputError, first_line

if TYPE_CHECKING:
    from vse.data.transforms import Transform

SPLITS = ("train", "dev", "test", "testall")
Kind = Literal["features", "pictures", "frames"]


@runtime_checkable
class ImageSource(Protocol):
    """The images of a corpus, which are read when they are needed: precomputed features, pictures or clips.

    Any object with these members is a source of images, and a new data format may bring its own. This package has
    :class:`Features`, :class:`ArrayFeatures`, :class:`vse.data.clips.FrameFeatures`,
    :class:`vse.data.transforms.PictureFiles` and :class:`vse.data.clips.ClipFiles`.
    """

    @property
    def kind(self) -> Kind:
        """The kind of images that :meth:`read` returns and that the image encoder must read.

        For each image, "features" are (elements, width), "pictures" (3, height, width) and "frames" (frames, 3, height,
        width).
        """
        ...

    @property
    def width(self) -> int | None:
        """The width of the features, None for pictures and frames."""
        ...

    @property
    def takes(self) -> Literal["pictures", "frames"] | None:
        """The kind of transform that :meth:`transformed` needs, or None if no transform applies.

        Pictures and frames need a transform before they can be read. Features need none.
        """
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return one image as it is stored: its features (elements, width), or the path of its file or folder."""
        ...

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray | list[np.ndarray]:
        """Read some images.

        Args:
            indices: Which images, (n,) whole numbers.
            epoch: The training epoch. Random crops and the like depend only on it, the seed and the image's index. None
                reads the images as in evaluation.

        Returns:
            One array for all of them, or a list of arrays if their lengths may differ.

        Raises:
            InputError: A file is missing or damaged.
        """
        ...

    def transformed(self, transform: "Transform", seed: int, threads: int) -> "ImageSource":
        """Return the same images, read through a transform.

        Args:
            transform: One of the kind that :attr:`takes` names.
            seed: The seed of random crops and the like.
            threads: Number of threads that decode.

        Returns:
            The new source.

        Raises:
            InputError: Files are missing, or the transform does not fit them.
        """
        ...


@dataclass(frozen=True)
class Corpus:
    """Images and the captions that describe them.

    Attributes:
        name: The file or folder that the corpus came from, for messages.
        images: The images, see :class:`ImageSource`.
        captions: The captions.
        image_of_caption: (captions,) the index of the image that each caption describes.
        image_ids: One unique id for each image.
        caption_ids: One unique id for each caption.
        video: Whether the images are clips, as pictures, as frames or as features.

    Raises:
        InputError: A part is empty, the parts differ in length, an id is repeated, or a caption is not valid text.

    >>> corpus = Corpus("mine", PictureFiles(["a.jpg"]), ["a dog", "a pet"], np.array([0, 0]), ["a"], [1, 2])
    >>> corpus.positives.tolist()
    [[True, True]]
    """

    name: str
    images: ImageSource
    captions: list[str]
    image_of_caption: np.ndarray
    image_ids: Sequence[Any]
    caption_ids: Sequence[Any]
    video: bool = False

    def __post_init__(self) -> None:
        if not len(self.images) or not self.captions:
            raise InputError(f"{self.name}: holds {len(self.images)} images and {len(self.captions)} captions")
        if len(set(self.image_ids)) != len(self.images):
            raise InputError(
                f"{self.name}: {len(self.images)} images but {len(set(self.image_ids))} different image ids"
            )
        if not len(self.image_of_caption) == len(self.caption_ids) == len(self.captions):
            raise InputError(
                f"{self.name}: {len(self.captions)} captions but {len(self.caption_ids)} caption ids and "
                f"{len(self.image_of_caption)} image indices"
            )
        if len(set(self.caption_ids)) != len(self.caption_ids):
            raise InputError(
                f"{self.name}: {len(self.captions)} captions but {len(set(self.caption_ids))} different caption ids"
            )
        for label, caption in zip(self.caption_ids, self.captions, strict=True):
            try:
                caption.encode()
            except UnicodeEncodeError:  # half an emoji, as "\\ud83d" in a JSON file
                raise InputError(f"{self.name}: caption {label} is not valid text: {caption!r}"[:300]) from None

    @property
    def positives(self) -> np.ndarray:
        """(images, captions) bool, True where the caption describes the image."""
        return np.arange(len(self.images))[:, None] == self.image_of_caption[None, :]


class Features:
    """Precomputed features in a memory-mapped .npy file (rows, regions, width).

    Args:
        path: The file, float32 or float16.
        rows: The row of each image, all rows in their order by default.
        ids: The images' ids, for error messages.

    Raises:
        InputError: The file is missing or truncated, or is not a 3-D array of floats; when reading, a row holds NaN or
            Inf.

    >>> Features(Path("dev_ims.npy")).read(np.array([3, 1])).shape
    (2, 36, 2048)
    """

    kind: ClassVar[Kind] = "features"
    takes: ClassVar[None] = None

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
        self.width: int | None = array.shape[2]

    def _open(self) -> np.ndarray:
        if self._array is None:
            try:
                # np.load would unpickle a file that is not an .npy file.
                self._array = np.lib.format.open_memmap(self.path, mode="r")
            except FileNotFoundError:
                raise InputError(f"{self.path}: no such file") from None
            except NOT_NPY as error:
                raise InputError(f"{self.path}: not a complete .npy file of numbers ({first_line(error)})") from None
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # each loader process opens the file itself

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one image's features (regions, width) float32."""
        return self.read(np.array([index]))[0]

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Read the features of some images; they are the same in every epoch.

        Args:
            indices: Which images, (n,) whole numbers.
            epoch: The training epoch, which changes nothing here.

        Returns:
            Features (n, regions, width) float32.

        Raises:
            InputError: The features of an image hold NaN or Inf.
        """
        values = self._open()[self.rows[indices]].astype(np.float32, copy=False)
        bad = ~np.isfinite(values).all((1, 2))
        if bad.any():
            index = int(indices[int(bad.argmax())])
            label = f"image {self.ids[index]}" if len(self.ids) else f"image {index}"
            raise InputError(f"{self.path}: NaN or Inf in the features of {label} (row {int(self.rows[index])})")
        return values

    def transformed(self, transform: "Transform", seed: int, threads: int) -> "Features":
        """Return this source: no transform applies to features of regions.

        Args:
            transform: It is not used.
            seed: It is not used.
            threads: It is not used.

        Returns:
            The source itself.
        """
        return self

    def same_rows(self, first: int, second: int) -> bool:
        """Compare two rows of the file; NaN equals NaN.

        Args:
            first: The number of one row in the file.
            second: The number of the other row.

        Returns:
            Whether the rows are equal.
        """
        array = self._open()
        return np.array_equal(array[first], array[second], equal_nan=True)


class ArrayFeatures:
    """Features (images, regions, width) held in memory as bytes, read as float32 in [-1, 1].

    >>> ArrayFeatures(np.zeros((5, 16, 48), dtype=np.uint8))[0].shape
    (16, 48)
    """

    kind: ClassVar[Kind] = "features"
    takes: ClassVar[None] = None

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.width: int | None = array.shape[2]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one image's features (regions, width) float32."""
        return self.read(np.array([index]))[0]

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Read the features of some images; they are the same in every epoch.

        Args:
            indices: Which images, (n,) whole numbers.
            epoch: The training epoch, which changes nothing here.

        Returns:
            Features (n, regions, width) float32, from -1 to 1.
        """
        return self.array[indices].astype(np.float32) / 127.5 - 1

    def transformed(self, transform: "Transform", seed: int, threads: int) -> "ArrayFeatures":
        """Return this source: no transform applies to features of regions.

        Args:
            transform: It is not used.
            seed: It is not used.
            threads: It is not used.

        Returns:
            The source itself.
        """
        return self
