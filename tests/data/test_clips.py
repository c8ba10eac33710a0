"""Clips: their frames, and which of them are shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import grey_frames, write_gif
from PIL import Image

from vse.data.clips import (
    ClipTransform,
    FrameFeatures,
    find_clips,
    frames_at_rate,
    gif_durations,
    iterate_frames,
    read_frames,
    sample_frames,
)
from vse.errors import InputError


def shown(pictures: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(picture).mean()) / 10) for picture in pictures]


def test_evaluation_spreads_its_frames() -> None:
    for total in range(1, 60):
        for count in (1, 4, 8):
            for trim in (0, 6):
                found = sample_frames(total, count, train=False, trim=trim)
                left = min(trim, (total - 1) // 2)
                inside = list(range(left, total - left))
                step = max(1, (len(inside) + 1) // count)  # as the released code has it
                some = inside[::step][:count]
                assert found.tolist() == some + some[-1:] * (count - len(some))


def test_training_draws_skip_and_start() -> None:
    torch.manual_seed(0)
    draws = [sample_frames(30, 4, train=True) for _ in range(900)]
    skips = [int(d[1] - d[0]) for d in draws]
    assert all((np.diff(d) == s).all() for d, s in zip(draws, skips, strict=True))
    assert [skips.count(s) / 900 for s in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.06)
    starts = {s: {int(d[0]) for d, k in zip(draws, skips, strict=True) if k == s} for s in (1, 2, 3)}
    assert starts == {s: set(range(30 - 4 * s + 1)) for s in (1, 2, 3)}  # as the released code has it
    short = [sample_frames(3, 4, train=True).tolist() for _ in range(50)]
    assert {tuple(d) for d in short} == {(0, 1, 2, 2), (0, 2, 2, 2), (0, 0, 0, 0)}
    long = [sample_frames(100, 8, train=False, trim=6).tolist(), sample_frames(14, 8, train=False, trim=6).tolist()]
    assert long == [[6, 17, 28, 39, 50, 61, 72, 83], [6, 7, 7, 7, 7, 7, 7, 7]]


@pytest.mark.parametrize("kind", ["gif", "folder", "list"])
def test_frames_are_read_from_anything(kind: str, tmp_path: Path) -> None:
    source: Any = grey_frames(12)
    if kind == "gif":
        source = write_gif(tmp_path / "clip.gif", 12)
    elif kind == "folder":
        source = tmp_path / "clip"
        source.mkdir()
        (source / "notes.txt").write_text("no picture")
        for i, picture in enumerate(grey_frames(12)):
            picture.save(source / f"frame{i}.png")  # frame10 after frame9
    assert shown(read_frames(source, lambda total: np.arange(total))) == list(range(12))
    assert shown(read_frames(source, lambda total: np.array([5, 2, 2, 11]))) == [5, 2, 2, 11]


def test_one_crop_and_colour_for_a_clip() -> None:
    """A static clip stays static under augmentation; clips differ."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    clip = [Image.fromarray(noise)] * 5
    torch.manual_seed(0)
    transform = ClipTransform(frames=3, size=16, resize=20)
    first, second = transform.read(clip, train=True), transform.read(clip, train=True)
    for result in (first, second):
        assert result.shape == (3, 3, 16, 16) and result.dtype == torch.uint8
        assert torch.equal(result[0], result[1]) and torch.equal(result[0], result[2])
    assert not torch.equal(first, second)
    flat = [Image.new("RGB", (40, 30), (90, 120, 150))] * 3  # a crop and a flip change nothing
    colours = {tuple(transform.read(flat, train=True)[0, :, 0, 0].tolist()) for _ in range(20)}
    assert len(colours) > 10
    steady = ClipTransform(3, 16, 20, jitter=0.0)
    assert len({tuple(steady.read(flat, train=True)[0, :, 0, 0].tolist()) for _ in range(20)}) == 1
    half = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], dtype=np.uint8), 30, 0), 20, 1)).convert("RGB")
    draws = [ClipTransform(1, 16, 20).read([half], train=True)[0, 0].float() for _ in range(40)]
    flipped = sum(bool(d[:, :4].mean() > d[:, -4:].mean() + 20) for d in draws)
    assert 5 < flipped < 35
    plain = ClipTransform(frames=3, size=16, resize=20, augment=False)
    assert torch.equal(plain.read(clip, train=True), plain.read(clip))
    assert torch.equal(plain.read(clip), transform.read(clip))


def test_bad_clips(tmp_path: Path) -> None:
    whole = write_gif(tmp_path / "whole.gif", 9).read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gif").write_text("no clip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for i, size in enumerate([(8, 8), (9, 8)]):
        Image.new("RGB", size).save(tmp_path / "mixed" / f"{i}.png")
    clip = ClipTransform(frames=9, size=8, resize=8)
    for name, message in (
        ("cut.gif", "cut.gif: not a GIF"),
        ("text.gif", "text.gif: not a GIF or other clip that can be read"),
        ("none.gif", "none.gif: no such clip"),
        ("empty", "empty: contains no pictures; expected the frames of a clip"),
        ("mixed", "mixed: its frames differ in size"),
    ):
        with pytest.raises(InputError, match=message):
            clip.read(tmp_path / name)
    with pytest.raises(InputError, match="expected a GIF file, a folder, or a list of pictures, got int"):
        clip.read(5)
    for arguments, message in (
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"max_skip": 0}, "max_skip must be at least 1, got 0"),
        ({"trim": -1}, "trim must be at least 0, got -1"),
        ({"size": 99, "resize": 9}, "resize must be at least 99, got 9"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"fps": 0.0}, "fps must be positive, got 0.0"),
        ({"fps": float("inf")}, "fps must be finite, got inf"),
        ({"jitter": 0.6}, r"jitter must be in \[0, 0.5\], got 0.6"),
    ):
        with pytest.raises(ValueError, match=message):
            ClipTransform(**arguments)  # type: ignore[arg-type]


def test_frame_features_in_a_folder_or_an_archive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"clip{i}": rng.standard_normal((i + 2, 5)).astype(np.float32 if i else np.float16) for i in range(4)}
    arrays["clip3"] = arrays["clip3"][None]  # (1, frames, width)
    (tmp_path / "features").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "features" / f"{name}.npy", array)
    np.savez(tmp_path / "packed.npz", **arrays)  # type: ignore[arg-type]
    ids = ["clip2", "clip0", "clip3"]
    for place in ("features", "packed", "packed.npz"):
        found = find_clips(tmp_path, place, ids)
        assert isinstance(found, FrameFeatures) and found.width == 5 and len(found) == 3
        for index, name in enumerate(ids):
            expected = arrays[name].reshape(-1, 5).astype(np.float32)
            assert np.array_equal(found[index], expected) and found[index].dtype == np.float32
        sampled = found.transformed(ClipTransform(frames=3), seed=1, threads=0)
        assert [len(a) for a in sampled.read(np.arange(3))] == [3, 3, 3]
        assert np.array_equal(sampled.read(np.array([1]))[0], arrays["clip0"][[0, 1, 1]].astype(np.float32))
        first = sampled.read(np.arange(3), epoch=2)
        assert all(np.array_equal(a, b) for a, b in zip(first, sampled.read(np.arange(3), epoch=2), strict=True))


def test_bad_frame_features(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones((3, 4), dtype=np.float32))
    bad: dict[str, tuple[Any, str]] = {
        "nan": (np.full((2, 4), np.nan, dtype=np.float32), "nan.npy: NaN or Inf in the features of clip nan"),
        "wide": (np.ones((2, 5), dtype=np.float32), "wide.npy: clip wide is 5 wide, but the others are 4"),
        "whole": (np.ones((2, 4), dtype=np.int64), r"expected floats \(frames, width\) for clip whole, found int64"),
        "flat": (np.ones(4, dtype=np.float32), r"found float32 of shape \(4,\)"),
        "none": (np.ones((0, 4), dtype=np.float32), r"found float32 of shape \(0, 4\)"),
        "object": (np.array([print]), "object.npy: not complete arrays of numbers"),
    }
    for name, (array, message) in bad.items():
        np.save(folder / f"{name}.npy", array)
        with pytest.raises(InputError, match=message):
            FrameFeatures(folder, ["a", name]).read(np.array([1]))
    np.savez(tmp_path / "packed.npz", a=np.ones((3, 4), dtype=np.float32))
    with pytest.raises(InputError, match="packed.npz: has no array named b for the clip"):
        FrameFeatures(tmp_path / "packed.npz", ["a", "b"]).read(np.array([1]))
    packed = (tmp_path / "packed.npz").read_bytes()
    (tmp_path / "packed.npz").write_bytes(packed[:60])
    with pytest.raises(InputError, match="packed.npz: not complete arrays of numbers"):
        find_clips(tmp_path, "packed", ["a"])
    with pytest.raises(InputError, match="no such folder, nor gifs.npz; expected {id}.gif"):
        find_clips(tmp_path, "gifs", ["a"])
    with pytest.raises(InputError, match="a.npy: expected a folder or an .npz file of frames"):
        find_clips(folder, "a.npy", ["a"])
    with pytest.raises(InputError, match="features: has no file for clip b"):
        find_clips(tmp_path, "features", ["b", "a"])
    with pytest.raises(InputError, match="features: has no b.npy, nor 1 others of 3 clips"):
        find_clips(tmp_path, "features", ["a", "b", "c"])


def slow_frames_at_rate(durations: list[int], fps: float) -> list[int]:
    """The same, by looking at every moment which frame is on."""
    found, tick = [], 0
    while (moment := tick * 100 / fps) < sum(durations):
        frame, end = 0, durations[0]
        while end <= moment:
            frame += 1
            end += durations[frame]
        found.append(frame)
        tick += 1
    return found


def test_frames_at_a_rate() -> None:
    rng = np.random.default_rng(0)
    for fps in (1.0, 3.0, 7.5, 8.0, 30.0, 100.0):
        for _ in range(30):
            durations = rng.integers(1, 40, rng.integers(1, 30)).tolist()
            assert frames_at_rate(durations, fps).tolist() == slow_frames_at_rate(durations, fps)
    assert frames_at_rate([10] * 10, 8).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert frames_at_rate([50, 50], 8).tolist() == [0] * 4 + [1] * 4  # a slow clip repeats frames
    assert frames_at_rate([5], 8).tolist() == [0]  # a clip shorter than one period


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_durations_are_the_files_own(mode: str, tmp_path: Path) -> None:
    """As Pillow tells them frame by frame, with local colour tables, comments and loops."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode) for _ in range(6)]
    durations = [20, 100, 70, 250, 3000, 40]
    noise[0].save(
        tmp_path / "x.gif", save_all=True, append_images=noise[1:], duration=durations, loop=0, comment=b"c" * 400
    )
    with Image.open(tmp_path / "x.gif") as clip:
        told = []
        for number in range(6):
            clip.seek(number)
            told.append(clip.info["duration"])
    content = (tmp_path / "x.gif").read_bytes()
    assert told == durations and gif_durations(content) == [duration // 10 for duration in durations]
    with pytest.raises(ValueError, match="only a GIF file has a known frame rate"):
        gif_durations(b"\x89PNG" + content)


def test_frames_without_a_duration_last_a_tenth_of_a_second(tmp_path: Path) -> None:
    write_gif(tmp_path / "x.gif", 4, [0, 10, 20, 50])
    assert gif_durations((tmp_path / "x.gif").read_bytes()) == [10, 10, 2, 5]


def test_a_clip_is_seen_at_its_rate_before_frames_are_chosen(tmp_path: Path) -> None:
    """20 frames, 25 a second: at 5 a second these are 0, 5, 10 and 15, whatever is chosen of them."""
    gif = write_gif(tmp_path / "x.gif", 20, 40)
    assert shown(read_frames(gif, np.arange, fps=5)) == [0, 5, 10, 15]
    assert shown(read_frames(gif, lambda total: np.array([total - 1, 0, 0]), fps=5)) == [15, 0, 0]
    assert shown(list(iterate_frames(gif, fps=5))) == [0, 5, 10, 15]
    assert shown(list(iterate_frames(gif))) == list(range(20))

    def values(transform: ClipTransform) -> list[int]:
        return [round(float(frame.float().mean()) / 10) for frame in transform.read(gif)]

    assert values(ClipTransform(4, 8, 8, fps=5)) == [0, 5, 10, 15]
    assert values(ClipTransform(2, 8, 8, fps=5, trim=1)) == [5, 10]
    assert values(ClipTransform(4, 8, 8)) == [0, 5, 10, 15] and values(ClipTransform(5, 8, 8)) == [0, 4, 8, 12, 16]
    assert values(ClipTransform(5, 8, 8, fps=50)) == [0, 4, 8, 12, 16]  # each of 20 frames twice
    torch.manual_seed(0)
    flat = ClipTransform(2, 8, 8, augment=False, max_skip=1, fps=5)
    drawn = {round(float(frame.float().mean()) / 10) for _ in range(40) for frame in flat.read(gif, train=True)}
    assert drawn == {0, 5, 10, 15}


def test_clips_without_a_rate(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, picture in enumerate(grey_frames(4)):
        picture.save(folder / f"{i}.png")
    at_eight = ClipTransform(4, 8, 8, fps=8.0)
    message = "folder: the frame rate of a folder of pictures is unknown, so fps=8 is impossible; .*fps=null"
    for read in (lambda: at_eight.read(folder), lambda: list(iterate_frames(folder, 8.0))):
        with pytest.raises(InputError, match=message):
            read()
    assert torch.equal(
        at_eight.read(grey_frames(4)), ClipTransform(4, 8, 8).read(grey_frames(4))
    )  # as the caller has it
    grey_frames(1)[0].save(tmp_path / "x.webp")
    with pytest.raises(InputError, match="x.webp: not a GIF .*only a GIF file has a known frame rate"):
        at_eight.read(tmp_path / "x.webp")
    cut = write_gif(tmp_path / "cut.gif", 9).read_bytes()
    (tmp_path / "cut.gif").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(InputError, match="cut.gif: not a GIF"):
        at_eight.read(tmp_path / "cut.gif")


def test_clips_resized_without_antialiasing() -> None:
    """All frames alike, in training too; a fine pattern is not blurred away."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    sharp, smooth = (ClipTransform(3, 16, 16, antialias=antialias).read([noise] * 3) for antialias in (False, True))
    assert sharp.shape == (3, 3, 16, 16) and sharp.dtype == torch.uint8 and type(sharp) is torch.Tensor
    assert torch.equal(sharp[0], sharp[2]) and sharp.float().std() > 1.5 * smooth.float().std()
    transform = ClipTransform(3, 16, 16, antialias=False)
    torch.manual_seed(0)
    first, second = (transform.read([noise] * 3, train=True) for _ in range(2))
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2]) and not torch.equal(first, second)


def test_a_duration_is_that_of_the_next_frame_alone() -> None:
    """The second frame has no control block: it does not inherit the first one's 20."""
    head, control, end = b"GIF89a" + bytes(7), b"!\xf9\x04\0\x14\0\0\0", b";"
    frame = b"," + bytes(9) + b"\x02\x01\0\0"
    assert gif_durations(head + control + frame + frame + end) == [20, 10]
