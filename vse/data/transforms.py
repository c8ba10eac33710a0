"""Decode and augment pictures. Their result is bytes; the encoders normalise them.

torchvision is imported where it is used: it takes seconds, and models of precomputed features do without.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn

from vse.data.corpus import Kind
from vse.errors import InputError, check_at_least, check_choice, first_line

if TYPE_CHECKING:
    from torchvision.transforms import v2

_AUGMENT_PICTURE = 3  # the number of an independent random stream


class Transform(Protocol):
    """Reads a picture or a clip and prepares it for the image encoder.

    Any object with this method is a transform; ``data.transform.name`` may name one as ``my_package.module:Class``. It
    may also have an attribute ``reads``, see :func:`kind_of`.
    """

    def read(self, source: Any, train: bool = False) -> Tensor:
        """Read one picture or clip.

        Args:
            source: For a picture, a path or a PIL picture. For a clip, a path or a list of PIL pictures.
            train: Whether to augment as in training, with random numbers from torch's global generator.

        Returns:
            A picture (3, height, width) or a clip (frames, 3, height, width): RGB bytes, or floats that the encoder
            takes as they are.

        Raises:
            InputError: A file is missing or cannot be read.
        """
        ...


def kind_of(transform: object, default: str) -> str:
    """Return what a transform reads, "pictures" or "frames".

    This is the only place that knows what a transform without the attribute ``reads`` is taken to read.

    Args:
        transform: A transform.
        default: The answer for a transform that does not say.

    Returns:
        Its attribute ``reads``, or the default.

    >>> kind_of(Square(), "frames")
    'pictures'
    """
    kind = getattr(transform, "reads", default)
    return kind if isinstance(kind, str) else default


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """Decode a picture of any mode (grey, palette, CMYK, 16 bits, transparent) to RGB, and turn it upright (EXIF).

    Transparent pixels become white.

    Args:
        source: The file, or a picture that is open already.

    Returns:
        The RGB picture.

    Raises:
        InputError: The picture is missing or damaged; the message names the file.
    """
    name = "a picture" if isinstance(source, Image.Image) else str(source)
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        picture.load()
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):  # Pillow would cut off what is above 255
            picture = Image.fromarray((np.asarray(picture, dtype=np.uint16) >> 8).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ValueError("32 bits a pixel; expected 8 or 16")
        if picture.has_transparency_data:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{name}: no such picture") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise InputError(f"{name}: not a picture that can be read ({first_line(error)})") from None


def to_tensor(picture: Image.Image) -> Tensor:
    """Return the bytes (3, height, width) of an RGB picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class ScaledCrop(nn.Module):
    """A window of a picture at a random place, both its sides scaled by one u ~ U(min_scale, 1)."""

    def __init__(self, min_scale: float) -> None:
        super().__init__()
        self.min_scale = min_scale

    def forward(self, picture: Any) -> Any:
        """Crop a picture at random.

        Args:
            picture: A PIL picture, or a tensor (..., height, width).

        Returns:
            The crop, of the same kind as the picture.
        """
        from torchvision.transforms import v2

        u, x, y = torch.rand(3).tolist()
        scale = self.min_scale + (1 - self.min_scale) * u
        whole_height, whole_width = v2.functional.get_size(picture)
        height, width = (max(1, round(side * scale)) for side in (whole_height, whole_width))
        left, top = int(x * (whole_width - width + 1)), int(y * (whole_height - height + 1))
        return v2.functional.crop(picture, top, left, height, width)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's global generator, from which torchvision draws, with ``numbers``; restore it on leaving."""
    seed = np.random.SeedSequence((_AUGMENT_PICTURE, *numbers)).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed[0] >> 1))  # torch.manual_seed sees to every GPU, slowly
        yield


def to_bytes(steps: Sequence[nn.Module], antialias: bool) -> "v2.Compose":
    """Chain steps from PIL pictures to tensors of bytes.

    Pillow always resizes with antialiasing, while torch can do without. So the steps get PIL pictures, or tensors if
    they must resize without antialiasing.

    Args:
        steps: Modules of ``torchvision.transforms.v2``.
        antialias: Whether the steps resize with antialiasing.

    Returns:
        A function from a PIL picture, or a list of them, to tensors (3, height, width).
    """
    from torchvision.transforms import v2

    if antialias:
        return v2.Compose([*steps, v2.PILToTensor()])
    return v2.Compose([v2.ToImage(), *steps, v2.ToPureTensor()])


class PictureTransform:
    """A transform of pictures; ``train`` uses random numbers of torch's global generator, ``evaluate`` uses none."""

    reads: ClassVar[Literal["pictures", "frames"]] = "pictures"
    train: "v2.Compose"
    evaluate: "v2.Compose"

    def read(self, source: str | Path | Image.Image, train: bool = False) -> Tensor:
        """Read bytes (3, height, width) of a file or a PIL picture.

        Args:
            source: The file or the picture.
            train: Whether to augment.

        Returns:
            The picture.

        Raises:
            InputError: The file is missing or damaged.
        """
        tensor: Tensor = (self.train if train else self.evaluate)(open_picture(source))
        return tensor


class Square(PictureTransform):
    """The whole picture as a square; in training a random window of it, flipped with probability 0.5.

    VSE∞ (Chen et al. 2021, its grid experiments): size 512 and windows of 0.6 to 1 of both sides. DivE's code (Kim et
    al. 2023, ``--gpo_aug``, RandomResizedCrop(512, scale=(0.36, 1))) is the same with ``aspect="random"``, as
    0.36 = 0.6 x 0.6.

    Args:
        size: Height and width in pixels of what :meth:`read` gives, bytes (3, size, size).
        min_scale: The smallest window's share of the picture's sides, in (0, 1].
        augment: Whether training takes random windows and flips. Otherwise it sees the same as evaluation.
        aspect: The window's aspect ratio. "picture": the picture's own, both sides scaled by one
            u ~ U(min_scale, 1). "random": one between 3:4 and 4:3, and a share of the area ~ U(min_scale², 1).
        antialias: Whether resizing removes details that are too fine for the new size. The published grid models were
            trained without (OpenCV's INTER_LINEAR).

    Raises:
        ValueError: ``size`` is below 1, ``min_scale`` outside (0, 1], or ``aspect`` unknown.

    >>> Square(size=512).read(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 512, 512])
    """

    def __init__(
        self,
        size: int = 512,
        min_scale: float = 0.6,
        augment: bool = True,
        aspect: Literal["picture", "random"] = "picture",
        antialias: bool = True,
    ) -> None:
        from torchvision.transforms import v2

        check_at_least("size", size, 1)
        check_choice("aspect", aspect, ("picture", "random"))
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must be in (0, 1], got {min_scale}")
        resize = v2.Resize([size, size], antialias=antialias)
        window: list[nn.Module] = [ScaledCrop(min_scale), v2.RandomHorizontalFlip(), resize]
        if aspect == "random":
            crop = v2.RandomResizedCrop(size, scale=(min_scale**2, 1.0), antialias=antialias)
            window = [crop, v2.RandomHorizontalFlip()]
        self.evaluate = to_bytes([resize], antialias)
        self.train = to_bytes(window, antialias) if augment else self.evaluate


class Crop(PictureTransform):
    """ImageNet's crops: a random resized one, flipped with probability 0.5, in training; the centre in evaluation.

    PVSE (Song & Soleymani 2019): RandomResizedCrop(224) and flip; Resize(256) and CenterCrop(224).

    Args:
        size: Height and width in pixels of what :meth:`read` gives, bytes (3, size, size).
        resize: The length to which evaluation resizes the shorter side before it takes the centre.
        augment: Whether training crops and flips at random. Otherwise it sees the same as evaluation.
        antialias: Whether resizing removes details that are too fine for the new size.

    Raises:
        ValueError: ``size`` is below 1, or ``resize`` below ``size``.

    >>> Crop().read(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 224, 224])
    """

    def __init__(self, size: int = 224, resize: int = 256, augment: bool = True, antialias: bool = True) -> None:
        from torchvision.transforms import v2

        check_at_least("size", size, 1)
        check_at_least("resize", resize, size)
        self.evaluate = to_bytes([v2.Resize(resize, antialias=antialias), v2.CenterCrop(size)], antialias)
        random = [v2.RandomResizedCrop(size, antialias=antialias), v2.RandomHorizontalFlip()]
        self.train = to_bytes(random, antialias) if augment else self.evaluate


class Centre(nn.Module):
    """The centre of a picture; where it cannot be halved, the upper left pixels win, as in ``transformers``."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, picture: Any) -> Any:
        """Cut the centre out of a PIL picture or a tensor (..., height, width).

        Args:
            picture: The picture.

        Returns:
            The centre, of the same kind as the picture.
        """
        from torchvision.transforms import v2

        height, width = v2.functional.get_size(picture)
        top, left = int((height - self.height) / 2), int((width - self.width) / 2)
        return v2.functional.crop(picture, top, left, self.height, self.width)


class Pretrained(PictureTransform):
    """The preprocessing that a model of ``transformers`` was published with.

    A config leaves ``size``, ``resize`` and ``resample`` out. They are read from the ``preprocessor_config.json`` of
    the image encoder's model when a run begins (:func:`vse.build.complete`), and kept in the run's config.

    Args:
        model: The folder or name whose preprocessing is read; None for the image encoder's.
        size: Height and width in pixels of what :meth:`read` gives, bytes (3, height, width).
        resize: The length to which the shorter side is resized before the centre is cut out (CLIP), or height and width
            of the whole picture (SigLIP).
        resample: How pixels are interpolated.
        augment: Whether training takes a random window of the picture, without a flip, since captions tell left from
            right. Otherwise it sees the same as evaluation.
        min_scale: The smallest window's share of the picture's area, in (0, 1].

    Raises:
        ValueError: ``size`` or ``resize`` is missing, ``resample`` is unknown, or ``min_scale`` outside (0, 1].

    >>> Pretrained(size=[224, 224], resize=224).read(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 224, 224])
    """

    def __init__(
        self,
        model: str | None = None,
        size: list[int] | None = None,
        resize: int | list[int] | None = None,
        resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] | None = None,
        augment: bool = False,
        min_scale: float = 0.9,
    ) -> None:
        from torchvision.transforms import v2

        if size is None or resize is None:
            raise ValueError(f"size and resize must be known, got {size} and {resize}; expected those of {model}")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1, got {size}")
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must be in (0, 1], got {min_scale}")
        mode = v2.InterpolationMode(resample or "bicubic")
        steps: list[nn.Module] = [v2.Resize(resize, interpolation=mode, antialias=True)]
        if resize != size:
            steps.append(Centre(*size))
        window = v2.RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation=mode, antialias=True)
        self.evaluate = to_bytes(steps, True)
        self.train = to_bytes([window], True) if augment else self.evaluate


class PictureFiles:
    """The images of a corpus as files of pictures, which are decoded and transformed when they are needed.

    Args:
        paths: The files.
        transform: Reads them. Without one, only their paths are available; see :meth:`transformed`.
        seed: The seed of random crops and the like.
        threads: Number of threads that decode in evaluation.

    >>> PictureFiles(["a.jpg", "b.jpg"]).transformed(Square(size=512), seed=1, threads=2).read(np.array([0, 1])).shape
    (2, 3, 512, 512)
    """

    kind: ClassVar[Kind] = "pictures"
    takes: ClassVar[Literal["pictures", "frames"]] = "pictures"
    width: ClassVar[None] = None
    _one: ClassVar[str] = "picture"

    def __init__(
        self, paths: Sequence[str | Path], transform: Transform | None = None, seed: int = 0, threads: int = 0
    ) -> None:
        self.paths, self.transform = paths, transform
        self.seed, self.threads = seed, threads

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str | Path:
        """Return a file's path."""
        return self.paths[index]

    def transformed(self, transform: Transform, seed: int, threads: int) -> "PictureFiles":
        """Return the same files, read through a transform.

        Args:
            transform: The transform.
            seed: The seed of its random crops and the like.
            threads: Number of threads that decode in evaluation.

        Returns:
            The new source.

        Raises:
            InputError: Files are missing, which is better found now than in the middle of a run. The first is named.
        """
        self._check()
        return type(self)(self.paths, transform, seed, threads)

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Read some of the files.

        Args:
            indices: Which, (n,) whole numbers.
            epoch: The training epoch. Random crops and the like depend only on seed, epoch and index. None reads
                them as in evaluation.

        Returns:
            Bytes (n, 3, height, width) of pictures, (n, frames, 3, height, width) of clips.

        Raises:
            InputError: A file is missing or damaged.
            ValueError: The source has no transform yet.
        """
        if self.transform is None:
            raise ValueError(f"{self.kind} are read through a transform; call transformed() first")
        if epoch is not None:
            return torch.stack([self._augment(self.transform, int(index), epoch) for index in indices]).numpy()
        transform = self.transform
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            return torch.stack(list(pool.map(lambda i: transform.read(self.paths[i]), indices))).numpy()

    def _augment(self, transform: Transform, index: int, epoch: int) -> Tensor:
        with seeded(self.seed, epoch, index):
            return transform.read(self.paths[index], train=True)

    def _check(self) -> None:
        """Raise InputError, naming the first, when files are missing."""
        there: dict[str, set[str]] = {}
        missing = []
        for path in self.paths:
            folder, name = os.path.split(path)
            if folder not in there:
                with contextlib.suppress(OSError):
                    there[folder] = set(os.listdir(folder))
            if name not in there.get(folder, ()):
                missing.append(path)
        if missing:
            more = f" (nor {len(missing) - 1} others of {len(self.paths)})" if len(missing) > 1 else ""
            raise InputError(f"{missing[0]}: no such {self._one}{more}")


TRANSFORMS: dict[str, Any] = {"square": Square, "crop": Crop, "pretrained": Pretrained}
