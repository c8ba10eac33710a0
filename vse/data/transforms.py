"""Pictures from files to bytes: decoding and augmentation. Encoders normalise them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import v2

from vse.errors import InputError, first_line

_AUGMENT_PICTURE = 3  # a random stream of its own


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """Decode a picture, upright (EXIF) and in RGB, whatever its mode: grey, palette, CMYK, 16 bits, transparency.

    Transparent pixels come out white. Raises InputError that names the file when it is missing or damaged.
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
    """Bytes (3, height, width) of an RGB picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class ScaledCrop(nn.Module):
    """A window of a picture, both its sides scaled by one u ~ U(min_scale, 1), at a random place."""

    def __init__(self, min_scale: float) -> None:
        super().__init__()
        self.min_scale = min_scale

    def forward(self, picture: Image.Image) -> Image.Image:
        """Crop."""
        u, x, y = torch.rand(3).tolist()
        scale = self.min_scale + (1 - self.min_scale) * u
        width, height = (max(1, round(side * scale)) for side in picture.size)
        left, top = int(x * (picture.width - width + 1)), int(y * (picture.height - height + 1))
        return picture.crop((left, top, left + width, top + height))


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Torch's global generator, from which torchvision draws, seeded with ``numbers`` inside and as it was outside."""
    seed = np.random.SeedSequence((_AUGMENT_PICTURE, *numbers)).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed[0] >> 1))  # torch.manual_seed sees to every GPU, slowly
        yield


class PictureTransform:
    """What a picture goes through: ``train`` draws from torch's global generator, ``evaluate`` draws nothing."""

    reads = "pictures"
    train: v2.Compose
    evaluate: v2.Compose

    def read(self, source: str | Path | Image.Image, train: bool = False) -> Tensor:
        """Bytes (3, height, width) of a file or a picture. Raises InputError that names a file it cannot read."""
        tensor: Tensor = (self.train if train else self.evaluate)(open_picture(source))
        return tensor


class Square(PictureTransform):
    """The whole picture as a square; in training a scaled window of it, flipped with probability 0.5.

    VSE∞, Chen et al. 2021, its grid experiments: size 512, windows of 0.6 to 1 of both sides. Without ``augment``
    training shows what evaluation shows. ``read`` gives bytes (3, size, size). Raises ValueError for a size below 1 or
    ``min_scale`` outside (0, 1].

    >>> Square(size=512).read(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 512, 512])
    """

    def __init__(self, size: int = 512, min_scale: float = 0.6, augment: bool = True) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must be in (0, 1], got {min_scale}")
        resize = v2.Resize([size, size])
        self.evaluate = v2.Compose([resize, to_tensor])
        random = v2.Compose([ScaledCrop(min_scale), v2.RandomHorizontalFlip(), resize, to_tensor])
        self.train = random if augment else self.evaluate


class Crop(PictureTransform):
    """ImageNet's crops: a random resized one, flipped with probability 0.5, in training; the centre in evaluation.

    PVSE, Song & Soleymani 2019: RandomResizedCrop(224) and flip; Resize(256) and CenterCrop(224). Without
    ``augment`` training shows what evaluation shows. ``read`` gives bytes (3, size, size). Raises ValueError for a size
    below 1 or ``resize`` below ``size``.

    >>> Crop().read(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 224, 224])
    """

    def __init__(self, size: int = 224, resize: int = 256, augment: bool = True) -> None:
        if not 1 <= size <= resize:
            raise ValueError(f"size must be at least 1 and resize not below it, got {size} and {resize}")
        self.evaluate = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), to_tensor])
        random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), to_tensor])
        self.train = random if augment else self.evaluate


class Pictures:
    """Files of pictures or clips as a corpus's images: decoded and transformed as they are asked for.

    ``threads`` decode side by side where nothing is random.
    """

    def __init__(self, paths: Sequence[str | Path], transform: Any, seed: int = 0, threads: int = 0) -> None:
        self.paths, self.transform = paths, transform
        self.seed, self.threads = seed, threads

    def check(self) -> None:
        """Raise InputError, naming the first, when files are missing: better now than in the middle of a run."""
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
            raise InputError(f"{missing[0]}: no such picture{more}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str | Path:
        """Return a file's path."""
        return self.paths[index]

    def read(self, indices: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Bytes (n, 3, height, width), of clips (n, frames, 3, height, width); augmented when given an epoch.

        How depends on seed, epoch and index alone.
        """
        if epoch is None:
            with ThreadPoolExecutor(max(1, self.threads)) as pool:
                return torch.stack(list(pool.map(lambda i: self.transform.read(self.paths[i]), indices))).numpy()
        return torch.stack([self._augment(int(index), epoch) for index in indices]).numpy()

    def _augment(self, index: int, epoch: int) -> Tensor:
        with seeded(self.seed, epoch, index):
            tensor: Tensor = self.transform.read(self.paths[index], train=True)
        return tensor


TRANSFORMS: dict[str, Any] = {"square": Square, "crop": Crop}
