"""Pictures: decoding, augmentation and resizing."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vse.data.transforms import Crop, PictureFiles, ScaledCrop, Square, kind_of, open_picture
from vse.errors import InputError


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth picture without symmetry: 80 wide, 60 high."""
    x, y = np.meshgrid(np.linspace(0, 1, 80), np.linspace(0, 1, 60))
    return Image.fromarray((255 * np.stack([x, y, x * y], -1)).astype(np.uint8))


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size and a.mode == b.mode == "RGB"
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def test_every_kind_of_picture(photo: Image.Image, tmp_path: Path) -> None:
    grey = photo.convert("L")
    wide = Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257)
    clear = photo.convert("RGBA")
    clear.putalpha(Image.new("L", photo.size, 0))
    half = photo.convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: a viewer turns it by 90 degrees
    cases: dict[str, tuple[Image.Image, dict[str, Any], Image.Image]] = {
        "grey.png": (grey, {}, grey.convert("RGB")),
        "sixteen.png": (wide, {}, grey.convert("RGB")),
        "palette.png": (half, {}, half.convert("RGB")),
        "palette.gif": (half, {}, half.convert("RGB")),
        "clear.png": (clear, {}, Image.new("RGB", photo.size, "white")),
        "cmyk.jpg": (photo.convert("CMYK"), {"quality": 95}, photo),
        "turned.jpg": (photo.transpose(Image.Transpose.ROTATE_90), {"exif": exif, "quality": 95}, photo),
        "plain.webp": (photo, {"lossless": True}, photo),
        "bits.png": (grey.convert("1"), {}, grey.convert("1").convert("RGB")),
    }
    for name, (picture, options, expected) in cases.items():
        picture.save(tmp_path / name, **options)
        assert difference(open_picture(tmp_path / name), expected) < 14, name
    assert difference(open_picture(photo), photo) == 0


def test_bad_pictures(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    for name in ("cut", "text", "empty"):
        with pytest.raises(InputError, match=f"{name}.jpg: not a picture that can be read"):
            open_picture(tmp_path / f"{name}.jpg")
    Image.fromarray(np.zeros((4, 4), dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match="deep.tif: .*32 bits a pixel; expected 8 or 16"):
        open_picture(tmp_path / "deep.tif")

    def damaged(*_: object) -> None:
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    with pytest.raises(InputError, match="whole.jpg: not a picture that can be read .required argument"):
        open_picture(tmp_path / "whole.jpg")
    monkeypatch.undo()
    with pytest.raises(InputError, match="none.jpg: no such picture"):
        open_picture(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="not a picture that can be read"):
        open_picture(tmp_path)


def test_evaluation_shows_the_whole_picture_or_its_centre(photo: Image.Image) -> None:
    square = Square(size=32).read(photo)
    assert square.dtype == torch.uint8

    def differ(found: Tensor, expected: Image.Image) -> float:
        return float(np.abs(found.permute(1, 2, 0).numpy().astype(float) - np.asarray(expected)).max())

    assert differ(square, photo.resize((32, 32), Image.Resampling.BILINEAR)) <= 1
    crop = Crop(size=24, resize=30).read(photo)  # 40 x 30, then the middle
    resized = photo.resize((40, 30), Image.Resampling.BILINEAR)
    assert differ(crop, resized.crop((8, 3, 32, 27))) <= 1
    assert torch.equal(Square(size=32).read(photo), square)


def test_windows_scale_both_sides_alike(photo: Image.Image) -> None:
    torch.manual_seed(0)
    windows = [ScaledCrop(0.6)(photo) for _ in range(300)]
    scales = torch.tensor([[w.width / 80, w.height / 60] for w in windows])
    assert ((scales[:, 0] - scales[:, 1]).abs() < 0.02).all()
    assert 0.59 < scales.min() < 0.62 and 0.98 < scales.max() <= 1 and abs(scales.mean() - 0.8) < 0.02
    corners = {np.asarray(w)[0, 0].tobytes() for w in windows}
    assert len(corners) > 100  # at many places
    assert ScaledCrop(1.0)(photo).size == photo.size


@pytest.mark.parametrize("transform", [Square(16), Crop(16, 20)], ids=["square", "crop"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(
    photo: Image.Image, tmp_path: Path, transform: Square | Crop
) -> None:
    photo.save(tmp_path / "a.png")
    pictures = PictureFiles([tmp_path / "a.png"] * 3, transform, seed=1, threads=2)
    state = torch.get_rng_state()
    batch = pictures.read(np.array([0, 1, 2]), epoch=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert np.array_equal(pictures.read(np.array([2, 0]), epoch=4), batch[[2, 0]])
    assert not np.array_equal(batch[0], batch[1])
    other_seed = PictureFiles(pictures.paths, transform, seed=2)
    for other in (pictures.read(np.array([0]), epoch=5), other_seed.read(np.array([0]), epoch=4)):
        assert not np.array_equal(other[0], batch[0])
    whole = pictures.read(np.array([0, 1]))
    assert whole.shape == (2, 3, 16, 16) and np.array_equal(whole[0], whole[1])
    flipped = [pictures.read(np.array([0]), epoch)[0, 0] for epoch in range(40)]
    rising = [float(row[:, -1].mean() > row[:, 0].mean()) for row in flipped]
    assert 0.25 < np.mean(rising) < 0.75  # half of them mirrored


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(size=0), "size must be at least 1, got 0"),
        (lambda: Square(min_scale=0.0), r"min_scale must be in \(0, 1\], got 0.0"),
        (lambda: Square(aspect="free"), "aspect must be one of 'picture' or 'random', got 'free'"),  # type: ignore[arg-type]
        (lambda: Crop(size=0), "size must be at least 1, got 0"),
        (lambda: Crop(size=224, resize=200), "resize must be at least 224, got 200"),
    ],
)
def test_bad_transforms(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def slow_bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """OpenCV's INTER_LINEAR, as it is documented: the four pixels around each new pixel's centre, and no others."""
    height, width = pixels.shape[:2]
    found = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = min(int(y), height - 2), min(int(x), width - 2)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                found[row, column] += weight * pixels[top + dy, left + dx]
    return found


def test_resizing_without_antialiasing(photo: Image.Image) -> None:
    """What the published checkpoints on grids saw; what evaluation shows and what training's windows become."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for picture in (photo, noise):
        expected = slow_bilinear(np.asarray(picture, dtype=float), 24)
        sharp = Square(24, antialias=False).read(picture)
        assert sharp.dtype == torch.uint8 and type(sharp) is torch.Tensor
        assert np.abs(sharp.permute(1, 2, 0).numpy() - expected).max() <= 1
        middle = Crop(20, 24, antialias=False).read(picture.resize((24, 24)))
        assert torch.equal(middle, Crop(20, 24).read(picture.resize((24, 24))))  # nothing to resize
    assert (Square(24).read(noise).float() - Square(24, antialias=False).read(noise).float()).abs().max() > 60
    makers: list[Callable[[bool], Square | Crop]] = [
        lambda antialias: Square(24, antialias=antialias),
        lambda antialias: Square(24, aspect="random", antialias=antialias),
        lambda antialias: Crop(24, 30, antialias=antialias),
    ]
    for make in makers:
        spread = {}
        for antialias in (True, False):
            torch.manual_seed(0)
            drawn = [make(antialias).read(noise, train=True) for _ in range(5)]
            assert all(tensor.shape == (3, 24, 24) for tensor in drawn)
            spread[antialias] = torch.stack(drawn).float().std()
        assert spread[False] > 1.2 * spread[True]


def test_windows_are_the_same_with_and_without_antialiasing(photo: Image.Image) -> None:
    """The same random numbers choose the same window and flip: a smooth picture looks alike."""
    options: list[dict[str, Any]] = [{}, {"aspect": "random"}]
    for chosen in options:
        pair = []
        for antialias in (True, False):
            torch.manual_seed(3)
            square = Square(24, antialias=antialias, **chosen)
            pair.append(torch.stack([square.read(photo, train=True) for _ in range(9)]).float())
        assert (pair[0] - pair[1]).abs().max() < 12 and pair[0].std(0).max() > 20


def test_dives_windows(photo: Image.Image) -> None:
    """RandomResizedCrop(size, scale=(0.36, 1)) and a flip in training, the whole picture as a square in evaluation."""
    square = Square(32, min_scale=0.6, aspect="random")
    assert torch.equal(square.read(photo), Square(32).read(photo))
    official = v2.Compose([v2.RandomResizedCrop(32, scale=(0.36, 1)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    torch.manual_seed(0)
    drawn = torch.stack([square.read(photo, train=True) for _ in range(50)])
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.stack([official(photo) for _ in range(50)]))
    torch.manual_seed(0)
    assert not torch.equal(drawn, torch.stack([Square(32).read(photo, train=True) for _ in range(50)]))
    still = Square(32, aspect="random", augment=False)
    assert torch.equal(still.read(photo, train=True), still.read(photo))


def test_what_a_transform_reads() -> None:
    """Its own word counts; one that does not say reads what the corpus has."""
    assert kind_of(Square(), "frames") == "pictures"
    assert kind_of(object(), "frames") == "frames"
