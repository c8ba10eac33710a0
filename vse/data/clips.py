"""Clips: frames from GIF files, folders of pictures or arrays, and the choice of the frames that a model sees."""

import contextlib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vse.data.corpus import Kind
from vse.data.transforms import PictureFiles, Transform, open_picture, seeded, to_bytes
from vse.errors import InputError, check_at_least, check_positive, first_line

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"}
_SHORTEST, _UNTOLD = 2, 10  # in hundredths of a second: browsers show a frame with less than 2 for 10


class ClipFiles(PictureFiles):
    """Clips as a corpus's images: GIF files, or folders of pictures in the order of their names.

    >>> ClipFiles(["a.gif"]).transformed(ClipTransform(frames=4), seed=1, threads=0).read(np.array([0])).shape
    (1, 4, 3, 224, 224)
    """

    kind: ClassVar[Kind] = "frames"
    takes: ClassVar[Literal["pictures", "frames"]] = "frames"
    _one: ClassVar[str] = "clip"


def sample_frames(total: int, count: int, train: bool, max_skip: int = 3, trim: int = 0) -> np.ndarray:
    """Choose the frames of a clip that the model sees (PVSE, Song & Soleymani 2019, released code).

    Training takes every s-th frame from a random start, with s uniform in 1..``max_skip``. Evaluation takes every s-th
    frame from the first on, with s = max(1, (frames + 1) // count), as in the released code. Where a clip is too short,
    its last frame is repeated.

    Args:
        total: Number of frames that the clip has.
        count: Number of frames to show.
        train: Whether to choose at random, with torch's global generator.
        max_skip: The largest s in training.
        trim: Number of frames that evaluation leaves out at each end, unless no frame would be left.

    Returns:
        (count,) numbers of frames, in order.

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


def frames_at_rate(durations: Sequence[int], fps: float) -> np.ndarray:
    """Find the frames that a clip shows at the times 0, 1/fps, 2/fps, ...

    A clip faster than ``fps`` loses frames, a slower one repeats some.

    Args:
        durations: How long each frame is shown, in hundredths of a second.
        fps: Frames per second.

    Returns:
        The number of the frame at each of these times.

    >>> frames_at_rate([5, 5, 5, 5, 5], fps=10).tolist()
    [0, 2, 4]
    """
    ends = np.cumsum(durations)
    times = 100 * np.arange(math.ceil(ends[-1] * fps / 100)) / fps
    return np.minimum(np.searchsorted(ends, times, side="right"), len(ends) - 1)


def gif_durations(content: bytes) -> list[int]:
    """Read how long a GIF file shows each of its frames, in hundredths of a second, without decoding a picture.

    A duration below 2 counts as 10, as in browsers.

    Args:
        content: The file's bytes.

    Returns:
        The duration of each frame in hundredths of a second, in the order of the frames.

    Raises:
        ValueError: These are not the bytes of a GIF file.
    """
    if content[:3] != b"GIF":
        raise ValueError("only a GIF file has a known frame rate")
    position = 13 + _colours(content[10])
    durations, duration = [], 0
    while content[position : position + 1] in (b"!", b","):
        if content[position] == ord("!"):
            if content[position + 1] == 0xF9:  # what controls the next picture
                duration = int.from_bytes(content[position + 4 : position + 6], "little")
            position = _after_blocks(content, position + 2)
        else:
            durations.append(duration if duration >= _SHORTEST else _UNTOLD)
            duration = 0
            position = _after_blocks(content, position + 11 + _colours(content[position + 9]))
    return durations


def _colours(flags: int) -> int:
    """Length of the colour table that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(content: bytes, position: int) -> int:
    """Where a GIF goes on after a chain of blocks, each of which begins with its length; the last is empty."""
    while content[position]:
        position += content[position] + 1
    return position + 1


class FrameTransform(Transform, Protocol):
    """A transform of clips, which can also choose frames and transform a single one.

    Attributes:
        fps: Frames per second to which a clip is reduced before its frames are chosen; None keeps every frame.
    """

    fps: float | None

    def choose(self, total: int, train: bool) -> np.ndarray:
        """Choose the frames that the model sees.

        Args:
            total: Number of frames that the clip has.
            train: Whether to choose at random.

        Returns:
            The numbers of the frames, in order.
        """
        ...

    def evaluate(self, frame: Image.Image) -> Tensor:
        """Turn one frame into bytes (3, height, width), as evaluation sees it."""
        ...


class ClipTransform:
    """Some frames of a clip, all cropped and coloured alike (PVSE, Song & Soleymani 2019).

    Training takes one random resized crop, one flip (probability 0.5) and one jitter of brightness, contrast and hue
    for the whole clip. Evaluation resizes the frames and takes their centre. If the frames are precomputed
    features, the transform only chooses among them.

    Args:
        frames: Number of frames shown, chosen by :func:`sample_frames`.
        size: Height and width in pixels of what :meth:`read` gives, bytes (frames, 3, size, size).
        resize: The length to which evaluation resizes the shorter side before it takes the centre.
        augment: Whether training crops, flips and jitters. Otherwise its frames look as in evaluation.
        jitter: Strength of the jitter, in [0, 0.5].
        max_skip: The largest step from one frame to the next in training, which draws one from 1 on.
        trim: Number of frames that evaluation leaves out at each end, counted at ``fps`` where that is given.
        fps: Frames per second to which a clip is reduced before its frames are chosen (PVSE, section 3.5: 8). None
            keeps every frame. The rate of a GIF file is known. The rate of a folder of pictures and of precomputed
            features is not, so they are refused; extract them at this rate and leave ``fps`` out. A list of pictures is
            assumed to have this rate.
        antialias: Whether resizing removes details that are too fine for the new size.

    Raises:
        ValueError: A size, number or rate is not positive, ``resize`` is below ``size``, ``trim`` is negative, or
            ``jitter`` is outside [0, 0.5].

    >>> ClipTransform(frames=4).read([Image.new("RGB", (320, 240))] * 9).shape
    torch.Size([4, 3, 224, 224])
    """

    reads: ClassVar[Literal["pictures", "frames"]] = "frames"

    def __init__(
        self,
        frames: int = 8,
        size: int = 224,
        resize: int = 256,
        augment: bool = True,
        jitter: float = 0.1,
        max_skip: int = 3,
        trim: int = 0,
        fps: float | None = None,
        antialias: bool = True,
    ) -> None:
        from torchvision.transforms import v2

        for name, value, least in (("frames", frames, 1), ("max_skip", max_skip, 1), ("trim", trim, 0)):
            check_at_least(name, value, least)
        check_at_least("size", size, 1)
        check_at_least("resize", resize, size)
        if not 0 <= jitter <= 0.5:
            raise ValueError(f"jitter must be in [0, 0.5], got {jitter}")
        if fps is not None:
            check_positive("fps", fps)
        self.frames, self.max_skip, self.trim, self.fps = frames, max_skip, trim, fps
        self.evaluate = to_bytes([v2.Resize(resize, antialias=antialias), v2.CenterCrop(size)], antialias)
        random: list[nn.Module] = [
            v2.RandomResizedCrop(size, antialias=antialias),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=jitter, contrast=jitter, hue=jitter),
        ]
        self.train = to_bytes(random, antialias) if augment else self.evaluate

    def choose(self, total: int, train: bool) -> np.ndarray:
        """Choose the frames that the model sees, see :func:`sample_frames`.

        Args:
            total: Number of frames that the clip has.
            train: Whether to choose at random.

        Returns:
            The numbers of the frames, in order.
        """
        return sample_frames(total, self.frames, train, self.max_skip, self.trim)

    def read(self, source: Any, train: bool = False) -> Tensor:
        """Read bytes (frames, 3, size, size) of a clip.

        Args:
            source: A GIF file, a folder of pictures, or a list of PIL pictures.
            train: Whether to choose frames at random and to augment.

        Returns:
            The frames.

        Raises:
            InputError: The clip is missing or damaged, its frames differ in size, or its rate is not known.
        """
        pictures = read_frames(source, lambda total: self.choose(total, train), self.fps)
        if len({picture.size for picture in pictures}) > 1:
            raise InputError(f"{_name(source)}: its frames differ in size")
        transform = self.train if train else self.evaluate
        return torch.stack(transform(pictures))  # one list: one crop for all


def iterate_frames(path: Path, fps: float | None = None) -> Iterator[Image.Image]:
    """Yield the frames of a clip one by one, so that only one is in memory.

    Args:
        path: A GIF file or a folder of pictures.
        fps: Frames per second; None yields every frame.

    Raises:
        InputError: The clip is missing or damaged, or its rate is not known.
    """
    if path.is_dir():
        yield from map(open_picture, _files_at(path, fps))
        return
    with _opened(path, fps) as (clip, numbers):
        for number in numbers:
            yield _frame(clip, number)


def read_frames(source: Any, choose: Callable[[int], np.ndarray], fps: float | None = None) -> list[Image.Image]:
    """Read some frames of a clip, each decoded once.

    Args:
        source: A GIF file, a folder of pictures, or a list of PIL pictures.
        choose: Returns the numbers of the frames to read, given the number of frames.
        fps: Frames per second to which the clip is reduced first; None keeps every frame.

    Returns:
        The chosen frames in RGB.

    Raises:
        InputError: The clip is missing or damaged, or its rate is not known.
    """
    if not isinstance(source, str | Path):
        if not isinstance(source, Sequence) or not source:
            raise InputError(f"expected a GIF file, a folder, or a list of pictures, got {type(source).__name__}")
        return [open_picture(source[i]) for i in choose(len(source))]
    path = Path(source)
    if path.is_dir():
        files = _files_at(path, fps)
        chosen = choose(len(files))
        decoded = {int(i): open_picture(files[i]) for i in np.unique(chosen)}
        return [decoded[int(i)] for i in chosen]
    with _opened(path, fps) as (clip, numbers):
        chosen = np.asarray(numbers)[choose(len(numbers))]
        decoded = {int(number): _frame(clip, int(number)) for number in np.unique(chosen)}
    return [decoded[int(number)] for number in chosen]


def _files_at(folder: Path, fps: float | None) -> list[Path]:
    """The pictures of a folder. Raises InputError if a frame rate is wanted."""
    if fps is not None:
        raise InputError(
            f"{folder}: the frame rate of a folder of pictures is unknown, so fps={fps:g} is impossible; "
            f"extract its frames at that rate and set data.transform.fps=null"
        )
    return list_frames(folder)


@contextlib.contextmanager
def _opened(path: Path, fps: float | None) -> Iterator[tuple[Image.Image, Sequence[int]]]:
    """An open clip and the numbers of the frames that it shows; an error inside becomes one that names the clip."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as clip:
            count = getattr(clip, "n_frames", 1)
            numbers: Sequence[int] = range(count)
            if fps is not None:
                durations = gif_durations(content)
                if len(durations) != count:
                    raise ValueError(f"it has durations for {len(durations)} frames but {count} frames")
                numbers = frames_at_rate(durations, fps).tolist()
            yield clip, numbers
    except FileNotFoundError:
        raise InputError(f"{path}: no such clip") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise InputError(f"{path}: not a GIF or other clip that can be read ({first_line(error)})") from None


def _frame(clip: Image.Image, number: int) -> Image.Image:
    clip.seek(number)
    return open_picture(clip.copy())


def list_frames(folder: Path) -> list[Path]:
    """List the pictures of a folder, frame 2 before frame 10.

    Args:
        folder: The folder. Hidden files, and files whose ending is not that of a picture, are left out.

    Returns:
        The paths, in the order of the frames.

    Raises:
        InputError: The folder contains no pictures.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in _PICTURES and not file.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: contains no pictures; expected the frames of a clip")
    return sorted(files, key=lambda file: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", file.name)])


class FrameFeatures:
    """Precomputed features of clips' frames: a folder of ``{id}.npy`` or one .npz, (frames, width) for each id.

    Args:
        place: The folder or the .npz file.
        ids: The clips' ids.
        sampling: Chooses the frames of a clip; None takes all of them.
        seed: The seed of the choice in training.

    Raises:
        InputError: A file is missing or damaged, or holds another shape, another width, NaN or Inf.

    >>> FrameFeatures(Path("features"), ["video7010"]).read(np.array([0]))[0].shape
    (28, 2048)
    """

    kind: ClassVar[Kind] = "features"
    takes: ClassVar[Literal["frames"]] = "frames"

    def __init__(self, place: Path, ids: Sequence[str], sampling: FrameTransform | None = None, seed: int = 0) -> None:
        self.place, self.ids, self.sampling, self.seed = place, ids, sampling, seed
        self._archive: tuple[int, Any] | None = None
        self.width: int | None = None
        self.width = self._load(0).shape[1]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one clip's features (frames, width) float32."""
        return self.read(np.array([index]))[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}  # a loader process opens the file itself

    def transformed(self, transform: Any, seed: int, threads: int) -> "FrameFeatures":
        """Return the same features, of some frames of each clip.

        Args:
            transform: A :class:`FrameTransform`, whose choice of frames is used.
            seed: The seed of the choice in training.
            threads: Not used, since there is nothing to decode.

        Returns:
            The new source.

        Raises:
            InputError: The transform has a frame rate, but that of features is unknown.
        """
        if transform.fps is not None:
            raise InputError(
                f"{self.place}: the frame rate of frame features is unknown, so fps={transform.fps:g} is impossible; "
                f"extract them at that rate and set data.transform.fps=null"
            )
        return FrameFeatures(self.place, self.ids, transform, seed)

    def read(self, indices: np.ndarray, epoch: int | None = None) -> list[np.ndarray]:
        """Read the features of some clips.

        Args:
            indices: Which clips, (n,) whole numbers.
            epoch: The training epoch, for a random choice of frames; None chooses as in evaluation.

        Returns:
            (frames, width) float32 for each clip.

        Raises:
            InputError: A file is missing or damaged.
        """
        return [self._read(int(index), epoch) for index in indices]

    def _read(self, index: int, epoch: int | None) -> np.ndarray:
        array = self._load(index)
        if self.sampling is not None and epoch is None:
            array = array[self.sampling.choose(len(array), train=False)]
        elif self.sampling is not None and epoch is not None:
            with seeded(self.seed, epoch, index):
                array = array[self.sampling.choose(len(array), train=True)]
        values = array.astype(np.float32)  # a copy, since the mapped file is read-only
        if not np.isfinite(values).all():
            raise InputError(f"{self._file(index)}: NaN or Inf in the features of clip {self.ids[index]}")
        return values

    def _file(self, index: int) -> Path:
        return self.place if self.place.is_file() else self.place / f"{self.ids[index]}.npy"

    def _load(self, index: int) -> np.ndarray:
        file, label = self._file(index), self.ids[index]
        try:
            if self.place.is_file():
                if self._archive is None or self._archive[0] != os.getpid():  # processes must not share a file handle
                    self._archive = os.getpid(), np.load(file, allow_pickle=False)
                array: np.ndarray = self._archive[1][label]
            else:
                array = np.lib.format.open_memmap(file, mode="r")
        except FileNotFoundError:
            raise InputError(f"{file}: no such file; expected the frame features of clip {label}") from None
        except KeyError:
            raise InputError(f"{file}: has no array named {label} for the clip of that id") from None
        except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
            raise InputError(f"{file}: not complete arrays of numbers ({first_line(error)})") from None
        if array.ndim == 3 and len(array) == 1:  # as VATEX's I3D features are published
            array = array[0]
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape:
            found = f"{array.dtype} of shape {array.shape}"
            raise InputError(f"{file}: expected floats (frames, width) for clip {label}, found {found}")
        if self.width is not None and array.shape[1] != self.width:
            raise InputError(f"{file}: clip {label} is {array.shape[1]} wide, but the others are {self.width} wide")
        return array


def find_clips(root: Path, place: str, ids: Sequence[str]) -> ClipFiles | FrameFeatures:
    """Find the clips or frame features of some ids, in any of the known layouts.

    Args:
        root: The data set's folder.
        place: In ``root``, a folder of ``{id}.gif``, of folders ``{id}/`` with pictures, or of ``{id}.npy``; or an .npz
            file of arrays, with or without its ending.
        ids: The clips' ids.

    Returns:
        The source of images.

    Raises:
        InputError: The place or a clip is missing; the message names the first one.

    >>> find_clips(Path("data/tgif"), "gifs", ["tumblr_nk172bbdPI1u1lr18o1_250"]).kind
    'frames'
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
        raise InputError(f"{folder}: has no file for clip {ids[0]}; {layout}")
    missing = [clip for clip in ids if clip + ending not in found]
    if missing:
        raise InputError(f"{folder}: has no {missing[0] + ending}, nor {len(missing) - 1} others of {len(ids)} clips")
    return FrameFeatures(folder, ids) if ending == ".npy" else ClipFiles([folder / (clip + ending) for clip in ids])


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "a clip"
