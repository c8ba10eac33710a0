"""The corpus and the protocol of its images."""

import copy
import hashlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from vse import cache
from vse.console import show_progress
from vse.data.captions import captions_digest
from vse.data.reading import NOT_NPY
from vse.errors import InputError, first_line

if TYPE_CHECKING:
    from vse.data.transforms import Transform

_LARGE = 1 << 26  # bytes of a file from which on it is remembered that its values are finite
_BLOCK = 256  # rows that are checked at a time

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


@dataclass(frozen=True, repr=False)
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
        InputError: A part is empty or of another type, the parts differ in length, an id is repeated, an image index is
            out of range, or a caption is not valid text.

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
        if not isinstance(self.images, Sized):
            found = type(self.images).__name__
            raise InputError(f"{self.name}: images must be an ImageSource, got {found}, which has no length")
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
        self._check_indices()
        for label, caption in zip(self.caption_ids, self.captions, strict=True):
            if not isinstance(caption, str):
                found = type(caption).__name__
                raise InputError(f"{self.name}: caption {label} must be a str, got {found} {caption!r}"[:300])
            try:
                caption.encode()
            except UnicodeEncodeError:  # half an emoji, as "\\ud83d" in a JSON file
                raise InputError(f"{self.name}: caption {label} is not valid text: {caption!r}"[:300]) from None

    def _check_indices(self) -> None:
        """Raise InputError unless ``image_of_caption`` holds indices of images."""
        indices, images = self.image_of_caption, len(self.images)
        expected = f"{self.name}: image_of_caption must be an array of whole numbers (captions,)"
        if not isinstance(indices, np.ndarray):
            raise InputError(f"{expected}, got {type(indices).__name__}; np.array(...) makes one")
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise InputError(f"{expected}, got {indices.dtype} of shape {indices.shape}")
        if indices.min() < 0 or indices.max() >= images:
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise InputError(f"{self.name}: image_of_caption holds {wrong}, but there are {images} images")

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.images):,} images, {len(self.captions):,} captions)"

    @property
    def positives(self) -> np.ndarray:
        """(images, captions) bool, True where the caption describes the image."""
        return np.arange(len(self.images))[:, None] == self.image_of_caption[None, :]

    @property
    def digest(self) -> str:
        """The SHA-256 digest of the captions and of the image that each describes, in hexadecimal."""
        digest = hashlib.sha256(self.image_of_caption.astype("<i8").tobytes())
        digest.update(captions_digest(self.captions).encode())
        return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, which tell whether it has changed; None if it is missing."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def _finite(array: np.ndarray) -> np.ndarray:
    """What np.isfinite gives; of float16, which NumPy converts slowly, by the bits of the exponent."""
    if array.dtype == np.float16:
        finite: np.ndarray = (array.view(np.uint16) & 0x7C00) != 0x7C00
        return finite
    return np.isfinite(array)


class Features:
    """Precomputed features in a memory-mapped .npy file (rows, regions, width).

    :class:`ArrayFeatures` has features that are in memory.

    Args:
        path: The file, float32 or float16.
        rows: The row of each image, all rows in their order by default.
        ids: The images' ids, for error messages.

    Raises:
        InputError: ``path`` is not a path, or the file is missing or truncated, or is not a 3-D array of floats; when
            reading, a row holds NaN or Inf, or the file has changed.

    >>> Features(Path("dev_ims.npy")).read(np.array([3, 1])).shape
    (2, 36, 2048)
    """

    kind: ClassVar[Kind] = "features"
    takes: ClassVar[None] = None

    def __init__(self, path: str | Path, rows: np.ndarray | None = None, ids: Sequence[Any] = ()) -> None:
        if not isinstance(path, str | Path):
            found = type(path).__name__
            raise InputError(f"Features takes the path of a .npy file, got {found}; ArrayFeatures takes an array")
        self.path = path = Path(path)
        self._array: np.ndarray | None = None
        self._stamp = _stamp(path)
        self._is_checked = False  # whether all its values are known to be finite
        array = self._open()
        if array.ndim != 3 or array.dtype not in (np.float32, np.float16) or 0 in array.shape:
            raise InputError(
                f"{path}: expected a float32 or float16 array (rows, regions, width), "
                f"found {array.dtype} of shape {array.shape}"
            )
        self.rows = np.arange(len(array)) if rows is None else rows
        self.ids = ids
        self.shape, self.dtype, self.size = array.shape, array.dtype, array.nbytes  # of the file
        self.width: int | None = array.shape[2]
        self._type: np.dtype = np.dtype(np.float32)  # that is read

    def __repr__(self) -> str:
        return f"Features({str(self.path)!r}, {len(self):,} images, {self.shape[1]} regions, {self.width} wide)"

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
            Features (n, regions, width) float32, or in the file's type if this is :meth:`as_stored`.

        Raises:
            InputError: The features of an image hold NaN or Inf, or the file has changed since it was opened.
        """
        self._check_unchanged()  # a file that became shorter would end the process
        values = self._open()[self.rows[indices]].astype(self._type, copy=False)
        self._check_unchanged()
        if not self._is_checked:
            bad = ~np.isfinite(values).all((1, 2))
            if bad.any():
                raise self._not_finite(int(indices[int(bad.argmax())]))
        return values

    def _check_unchanged(self) -> None:
        if self._stamp is not None and _stamp(self.path) != self._stamp:
            raise InputError(f"{self.path}: has changed while it was in use; start again when it is complete")

    def _not_finite(self, index: int) -> InputError:
        label = f"image {self.ids[index]}" if len(self.ids) else f"image {index}"
        return InputError(f"{self.path}: NaN or Inf in the features of {label} (row {int(self.rows[index])})")

    def checked(self) -> "Features":
        """Check once that all values are finite.

        The result of a large file is kept in the cache, under its size and time stamp.

        Returns:
            The same features, which are not checked again whenever they are read.

        Raises:
            InputError: The features of an image hold NaN or Inf.
        """
        key = repr((str(self.path.resolve()), self._stamp))
        kept = cache.load("not-finite", key) if self.size >= _LARGE else None
        bad = self._rows_not_finite() if kept is None else kept["rows"]
        if kept is None and self.size >= _LARGE:
            cache.save("not-finite", key, {"rows": bad})
        damaged = np.isin(self.rows, bad)
        if damaged.any():
            raise self._not_finite(int(damaged.argmax()))
        result = copy.copy(self)
        result._is_checked = True
        return result

    def _rows_not_finite(self) -> np.ndarray:
        """The rows of the file with a NaN or an Inf."""
        array, found = self._open(), [np.empty(0, dtype=np.int64)]
        title = f"checking {self.path.name}"
        starts = range(0, len(array), _BLOCK)
        for start in show_progress(starts, len(starts), title, " blocks", delay=2):
            bad = ~_finite(array[start : start + _BLOCK]).all((1, 2))
            found.append(start + np.flatnonzero(bad))
        self._check_unchanged()
        return np.concatenate(found)

    def only(self, chosen: np.ndarray) -> "Features":
        """Return some of the images.

        Args:
            chosen: Which images, (n,) whole numbers.

        Returns:
            Their features, from the same file.
        """
        result = copy.copy(self)
        result.rows = self.rows[chosen]
        result.ids = [self.ids[index] for index in chosen] if len(self.ids) else ()
        return result

    def as_stored(self) -> "Features":
        """Return the same features, read in the type of the file: float16 takes half the memory and its way."""
        result = copy.copy(self)
        result._type = self.dtype
        return result

    def in_memory(self) -> "Features":
        """Return the same features, read from memory; the whole file is read now.

        Raises:
            InputError: The file changes meanwhile.
        """
        result = copy.copy(self)
        result._array = np.array(self._open())
        self._check_unchanged()
        result._stamp = None  # the file is not needed any more
        return result

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
    """Features (images, regions, width) held in memory.

    Args:
        array: The features, float32 or float16. Bytes (uint8) are read as values from -1 to 1.

    Raises:
        InputError: The array has another type or another number of axes, is empty, or holds NaN or Inf.

    >>> ArrayFeatures(np.zeros((5, 16, 48), dtype=np.float32))[0].shape
    (16, 48)
    """

    kind: ClassVar[Kind] = "features"
    takes: ClassVar[None] = None

    def __init__(self, array: np.ndarray) -> None:
        expected = "ArrayFeatures takes a float32, float16 or uint8 array (images, regions, width)"
        if not isinstance(array, np.ndarray):
            raise InputError(f"{expected}, got {type(array).__name__}")
        if array.ndim != 3 or array.dtype not in (np.float32, np.float16, np.uint8) or 0 in array.shape:
            raise InputError(f"{expected}, got {array.dtype} of shape {array.shape}")
        finite = np.array([_finite(features).all() for features in array])
        if not finite.all():
            raise InputError(f"the array of ArrayFeatures holds NaN or Inf in the features of image {finite.argmin()}")
        self.array = array
        self.width: int | None = array.shape[2]

    def __repr__(self) -> str:
        return f"ArrayFeatures({len(self):,} images, {self.array.shape[1]} regions, {self.width} wide)"

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
            Features (n, regions, width) float32; those of bytes are from -1 to 1.
        """
        values = self.array[indices].astype(np.float32)
        return values / 127.5 - 1 if self.array.dtype == np.uint8 else values

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
