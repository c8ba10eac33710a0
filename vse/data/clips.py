"""Clips: frames from GIF files, folders of pictures or arrays, and which of them are shown."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vse.data.transforms import open_picture, seeded, to_tensor
from vse.errors import InputError, first_line

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"}


class Clips(list[Path]):
    """A corpus's clips: GIF files, or folders of pictures in the order of their names."""


def sample_frames(total: int, count: int, train: bool, max_skip: int = 3, trim: int = 0) -> np.ndarray:
    """Which ``count`` of a clip's ``total`` frames are shown, in order (PVSE, Song & Soleymani 2019, released code).

    In training every s-th from a random start, s uniform in 1..``max_skip``, drawn from torch's global generator; in
    evaluation the first ``count`` of every s-th, with the largest s that gives as many, without ``trim`` frames at both
    ends as far as that leaves one. A clip that is too short repeats its last frame.

    >>> sample_frames(total=9, count=3, train=False).tolist(), sample_frames(total=2, count=3, train=False).tolist()
    ([0, 3, 6], [0, 1, 1])
    """
    if train:
        skip = int(torch.randint(1, max_skip + 1, ()))
        start = int(torch.randint(0, max(0, total - skip * count) + 1, ()))
        shown = np.arange(start, total, skip)[:count]
    else:
        trim = min(trim, (total - 1) // 2)
        skip = max(1, (total - 2 * trim + 1) // count)
        shown = np.arange(trim, total - trim, skip)[:count]
    return np.concatenate([shown, np.repeat(shown[-1:], count - len(shown))])


class Clip:
    """Some frames of a clip, cropped and coloured alike (PVSE, Song & Soleymani 2019).

    ``frames`` of them are shown, see :func:`sample_frames` for ``max_skip`` and ``trim``. Training takes one random
    resized crop, flip (probability 0.5) and jitter of brightness, contrast and hue (``jitter``) for the whole clip, or,
    without ``augment``, what evaluation takes: frames resized to ``resize``, their centre of ``size``. Of precomputed
    frame features it chooses the frames and does nothing else. Raises ValueError for sizes and numbers below 1,
    ``resize`` below ``size``, a negative ``trim``, ``jitter`` outside [0, 0.5].

    >>> Clip(frames=4).read([Image.new("RGB", (320, 240))] * 9).shape
    torch.Size([4, 3, 224, 224])
    """

    reads = "frames"

    def __init__(
        self,
        frames: int = 8,
        size: int = 224,
        resize: int = 256,
        augment: bool = True,
        jitter: float = 0.1,
        max_skip: int = 3,
        trim: int = 0,
    ) -> None:
        if min(frames, max_skip) < 1 or trim < 0:
            raise ValueError(
                f"frames and max_skip must be at least 1 and trim not negative, got {frames}, {max_skip} and {trim}"
            )
        if not 1 <= size <= resize:
            raise ValueError(f"size must be at least 1 and resize not below it, got {size} and {resize}")
        if not 0 <= jitter <= 0.5:
            raise ValueError(f"jitter must be in [0, 0.5], got {jitter}")
        self.frames, self.max_skip, self.trim = frames, max_skip, trim
        self.evaluate = v2.Compose([v2.Resize(resize), v2.CenterCrop(size)])
        colours = v2.ColorJitter(brightness=jitter, contrast=jitter, hue=jitter)
        random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), colours])
        self.train = random if augment else self.evaluate

    def choose(self, total: int, train: bool) -> np.ndarray:
        """Which frames of ``total`` are shown."""
        return sample_frames(total, self.frames, train, self.max_skip, self.trim)

    def read(self, source: Any, train: bool = False) -> Tensor:
        """Bytes (frames, 3, size, size) of a GIF file, a folder of pictures, or a list of pictures.

        Raises InputError that names the file when it is missing or damaged, or when its frames differ in size.
        """
        pictures = read_frames(source, lambda total: self.choose(total, train))
        if len({picture.size for picture in pictures}) > 1:
            raise InputError(f"{_name(source)}: its frames differ in size")
        transform = self.train if train else self.evaluate
        return torch.stack([to_tensor(picture) for picture in transform(pictures)])  # one list: one crop for all


def iterate_frames(path: Path) -> Iterator[Image.Image]:
    """All frames of a GIF file or a folder, one in memory at a time. Raises InputError that names it."""
    if path.is_dir():
        yield from map(open_picture, list_frames(path))
        return
    with _naming(path), Image.open(path) as clip:
        for index in range(getattr(clip, "n_frames", 1)):
            clip.seek(index)
            yield open_picture(clip.copy())


def read_frames(source: Any, choose: Callable[[int], np.ndarray]) -> list[Image.Image]:
    """RGB frames of a clip, those that ``choose(total)`` names, each decoded once. Raises InputError that names it."""
    if not isinstance(source, str | Path):
        if not isinstance(source, Sequence) or not source:
            raise InputError(f"expected a GIF file, a folder, or a list of pictures, got {type(source).__name__}")
        return [open_picture(source[i]) for i in choose(len(source))]
    path = Path(source)
    if path.is_dir():
        files = list_frames(path)
        indices = choose(len(files))
        decoded = {int(i): open_picture(files[i]) for i in np.unique(indices)}
        return [decoded[int(i)] for i in indices]
    with _naming(path), Image.open(path) as clip:
        indices = choose(getattr(clip, "n_frames", 1))
        decoded = {}
        for index in np.unique(indices):
            clip.seek(int(index))
            decoded[int(index)] = open_picture(clip.copy())
    return [decoded[int(i)] for i in indices]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a clip is decoded is one InputError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such clip") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise InputError(f"{path}: not a GIF or other clip that can be read ({first_line(error)})") from None


def list_frames(folder: Path) -> list[Path]:
    """Pictures of a folder, frame 2 before frame 10. Raises InputError when there are none."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in _PICTURES and not file.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: holds no pictures; expected a clip's frames")
    return sorted(files, key=lambda file: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", file.name)])


class FrameFeatures:
    """Precomputed features of clips' frames: a folder of ``{id}.npy`` or one .npz, (frames, width) for each id.

    They are read as they are asked for; ``sampling`` chooses frames, otherwise all are given. Raises InputError, naming
    the file, for what is missing, of another shape or width, truncated, or not finite.
    """

    def __init__(self, place: Path, ids: Sequence[str], sampling: Clip | None = None, seed: int = 0) -> None:
        self.place, self.ids, self.sampling, self.seed = place, ids, sampling, seed
        self._archive: tuple[int, Any] | None = None
        self.width = 0
        self.width = self._load(0).shape[1]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one clip's features (frames, width) float32."""
        return self.read(np.array([index]))[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}  # a loader process opens the file itself

    def sampled(self, sampling: Clip, seed: int) -> "FrameFeatures":
        """The same, with some frames chosen."""
        return FrameFeatures(self.place, self.ids, sampling, seed)

    def read(self, indices: np.ndarray, epoch: int | None = None) -> list[np.ndarray]:
        """Features (frames, width) float32 of some clips; frames chosen at random when given an epoch."""
        return [self._read(int(index), epoch) for index in indices]

    def _read(self, index: int, epoch: int | None) -> np.ndarray:
        array = self._load(index)
        if self.sampling is not None and epoch is None:
            array = array[self.sampling.choose(len(array), train=False)]
        elif self.sampling is not None and epoch is not None:
            with seeded(self.seed, epoch, index):
                array = array[self.sampling.choose(len(array), train=True)]
        values = array.astype(np.float32)  # a copy: the file is mapped for reading alone
        if not np.isfinite(values).all():
            raise InputError(f"{self._file(index)}: NaN or Inf in the features of clip {self.ids[index]}")
        return values

    def _file(self, index: int) -> Path:
        return self.place if self.place.is_file() else self.place / f"{self.ids[index]}.npy"

    def _load(self, index: int) -> np.ndarray:
        file, label = self._file(index), self.ids[index]
        try:
            if self.place.is_file():
                if self._archive is None or self._archive[0] != os.getpid():  # not one file handle for all processes
                    self._archive = os.getpid(), np.load(file, allow_pickle=False)
                array: np.ndarray = self._archive[1][label]
            else:
                array = np.lib.format.open_memmap(file, mode="r")
        except FileNotFoundError:
            raise InputError(f"{file}: no such file; expected the frame features of clip {label}") from None
        except KeyError:
            raise InputError(f"{file}: holds no array named {label}, as the clip is") from None
        except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
            raise InputError(f"{file}: not complete arrays of numbers ({first_line(error)})") from None
        if array.ndim == 3 and len(array) == 1:  # as VATEX's I3D features are published
            array = array[0]
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape:
            found = f"{array.dtype} of shape {array.shape}"
            raise InputError(f"{file}: expected floats (frames, width) for clip {label}, found {found}")
        if self.width and array.shape[1] != self.width:
            raise InputError(f"{file}: clip {label} is {array.shape[1]} wide, the others {self.width}")
        return array


def find_clips(root: Path, place: str, ids: Sequence[str]) -> Clips | FrameFeatures:
    """Clips or frame features of ``ids`` in ``root/place``, whatever lies there.

    A folder of ``{id}.gif``, of folders ``{id}/`` with pictures, or of ``{id}.npy``; or a file ``place`` (with or
    without its .npz) of arrays. Raises InputError, naming the place and the first id that is missing.
    """
    for file in (root / place, root / f"{place}.npz"):
        if file.is_file() and file.suffix != ".npz":
            raise InputError(f"{file}: expected a folder or an .npz file of frames, and its ending is {file.suffix!r}")
        if file.is_file():
            return FrameFeatures(file, ids)
    folder = root / place
    layout = "expected {id}.gif, folders {id}/ of pictures, or {id}.npy"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, nor {place}.npz; {layout}")
    found = set(os.listdir(folder))
    ending = next((e for e in (".gif", "", ".npy") if ids[0] + e in found), None)
    if ending is None:
        raise InputError(f"{folder}: holds nothing of clip {ids[0]}; {layout}")
    missing = [clip for clip in ids if clip + ending not in found]
    if missing:
        raise InputError(f"{folder}: has no {missing[0] + ending}, nor {len(missing) - 1} others of {len(ids)} clips")
    return FrameFeatures(folder, ids) if ending == ".npy" else Clips(folder / (clip + ending) for clip in ids)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "a clip"
