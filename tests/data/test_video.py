"""Clips: frames and which are shown, the video encoder, the corpora, and runs on them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, WORDS, Outcome
from PIL import Image
from torch import Tensor

import vse
from vse.aggregators import GPO
from vse.build import build_corpus, read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.batches import BatchSampler, TrainingData, make_loader
from vse.data.clips import Clip, Clips, FrameFeatures, find_clips, read_frames, sample_frames
from vse.data.corpus import Corpus
from vse.data.video_formats import mrw, msrvtt, tgif, vatex
from vse.data.vocabulary import Vocabulary
from vse.encoders import Video
from vse.errors import InputError
from vse.model import Tower
from vse.sets import lengths_to_mask

Cli = Callable[..., Outcome]


def frames(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    """Pictures of one grey each, brighter and brighter: frame i has the value 10 * i."""
    return [Image.new("RGB", size, (10 * i,) * 3) for i in range(count)]


def shown(pictures: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(picture).mean()) / 10) for picture in pictures]


def write_gif(path: Path, count: int) -> Path:
    first, *others = frames(count)
    first.save(path, save_all=True, append_images=others, duration=40)
    return path


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
    source: Any = frames(12)
    if kind == "gif":
        source = write_gif(tmp_path / "clip.gif", 12)
    elif kind == "folder":
        source = tmp_path / "clip"
        source.mkdir()
        (source / "notes.txt").write_text("no picture")
        for i, picture in enumerate(frames(12)):
            picture.save(source / f"frame{i}.png")  # frame10 after frame9
    assert shown(read_frames(source, lambda total: np.arange(total))) == list(range(12))
    assert shown(read_frames(source, lambda total: np.array([5, 2, 2, 11]))) == [5, 2, 2, 11]


def test_one_crop_and_colour_for_a_clip() -> None:
    """A static clip stays static under augmentation; clips differ."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    clip = [Image.fromarray(noise)] * 5
    torch.manual_seed(0)
    transform = Clip(frames=3, size=16, resize=20)
    first, second = transform.read(clip, train=True), transform.read(clip, train=True)
    for result in (first, second):
        assert result.shape == (3, 3, 16, 16) and result.dtype == torch.uint8
        assert torch.equal(result[0], result[1]) and torch.equal(result[0], result[2])
    assert not torch.equal(first, second)
    flat = [Image.new("RGB", (40, 30), (90, 120, 150))] * 3  # a crop and a flip change nothing
    colours = {tuple(transform.read(flat, train=True)[0, :, 0, 0].tolist()) for _ in range(20)}
    assert (
        len(colours) > 10 and len({tuple(Clip(3, 16, 20, jitter=0.0).read(flat, train=True)[0, :, 0, 0].tolist())}) == 1
    )
    half = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], dtype=np.uint8), 30, 0), 20, 1)).convert("RGB")
    draws = [Clip(1, 16, 20).read([half], train=True)[0, 0].float() for _ in range(40)]
    flipped = sum(bool(d[:, :4].mean() > d[:, -4:].mean() + 20) for d in draws)
    assert 5 < flipped < 35
    plain = Clip(frames=3, size=16, resize=20, augment=False)
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
    clip = Clip(frames=9, size=8, resize=8)
    for name, message in (
        ("cut.gif", "cut.gif: not a GIF"),
        ("text.gif", "text.gif: not a GIF or other clip that can be read"),
        ("none.gif", "none.gif: no such clip"),
        ("empty", "empty: holds no pictures; expected a clip's frames"),
        ("mixed", "mixed: its frames differ in size"),
    ):
        with pytest.raises(InputError, match=message):
            clip.read(tmp_path / name)
    with pytest.raises(InputError, match="expected a GIF file, a folder, or a list of pictures, got int"):
        clip.read(5)
    for arguments, message in (
        ({"frames": 0}, "frames and max_skip must be at least 1 and trim not negative, got 0, 3 and 0"),
        ({"trim": -1}, "trim not negative, got 8, 3 and -1"),
        ({"size": 99, "resize": 9}, "resize not below it, got 99 and 9"),
        ({"jitter": 0.6}, r"jitter must be in \[0, 0.5\], got 0.6"),
    ):
        with pytest.raises(ValueError, match=message):
            Clip(**arguments)  # type: ignore[arg-type]


@pytest.fixture
def clip_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 3, 32, 32, generator=generator), lengths_to_mask(torch.tensor([4, 2, 1]))


@pytest.mark.parametrize("context", ["last", "last_step", "max", "mean"])
@pytest.mark.parametrize("features", [False, True])
def test_padding_and_batch_mates_change_nothing(
    features: bool, context: Any, clip_batch: tuple[Tensor, Tensor]
) -> None:
    inputs, mask = clip_batch
    if features:
        inputs = inputs.mean((3, 4))
    torch.manual_seed(0)
    encoder = Video(8, in_dim=3 if features else None, backbone="resnet18", context=context).eval()
    result = encoder(inputs, mask)
    assert result.context is not None and result.context.shape == (3, 8)
    assert encoder.dim == result.features.shape[2] == (3 if features else 512) and encoder.context_dim == 8
    garbage = inputs.clone()
    garbage[~mask] = math.nan
    again = encoder(garbage, mask)
    assert again.context is not None
    assert torch.equal(again.features, result.features) and torch.equal(again.context, result.context)
    for row, length in enumerate(mask.sum(1)):
        alone = encoder(inputs[row : row + 1, :length])
        assert alone.context is not None
        torch.testing.assert_close(result.features[row, :length], alone.features[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.context[row], alone.context[0], atol=1e-5, rtol=0)


def test_masked_frames_get_no_gradient(clip_batch: tuple[Tensor, Tensor]) -> None:
    inputs, mask = clip_batch
    garbage = inputs.masked_fill(~mask[..., None, None, None], math.nan).requires_grad_()
    encoder = Video(8, backbone="resnet18")
    result = encoder(garbage, mask)
    assert result.context is not None
    (result.features.sum() + result.context.sum()).backward()
    assert garbage.grad is not None and not garbage.grad[~mask].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_frames_are_pooled_cells(clip_batch: tuple[Tensor, Tensor]) -> None:
    inputs, mask = clip_batch
    encoder = Video(8, backbone="resnet18").eval()
    expected = torch.stack([encoder.backbone(encoder.normalise(clip)).mean(1) for clip in inputs])
    torch.testing.assert_close(encoder(inputs).features, expected, atol=1e-5, rtol=0)
    pixels = (inputs * 40 + 128).clamp(0, 255).byte()
    torch.testing.assert_close(
        encoder(pixels).features,
        torch.stack([encoder(encoder.normalise(clip)[None]).features[0] for clip in pixels]),
        atol=1e-5,
        rtol=0,
    )


def test_dropout_acts_on_the_context() -> None:
    result = Video(64, in_dim=3, dropout=0.5).train()(torch.randn(20, 4, 3))
    assert result.context is not None and abs((result.context == 0).float().mean() - 0.5) < 0.1


def test_freezing_a_clips_backbone() -> None:
    encoder = Video(8, backbone="resnet18", freeze_epochs=1)
    for epoch in (0, 1):
        encoder.set_epoch(epoch)
        assert all(p.requires_grad == (epoch == 1) for p in encoder.backbone.parameters())
        assert all(p.requires_grad for p in encoder.gru.parameters())
    Video(8, in_dim=4).set_epoch(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Video(7, in_dim=3), "dim must be even to concatenate two directions, got 7"),
        (lambda: Video(8, in_dim=3, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Video(8, in_dim=3, context="first"), "context must be one of"),  # type: ignore[arg-type]
        (lambda: Video(8, backbone="resnet18", freeze_epochs=-1), "freeze_epochs must be at least 0, got -1"),
        (lambda: Video(8, in_dim=3)(torch.zeros(2, 4, 5)), "features must be 3 wide, got 5"),
        (lambda: Video(8, backbone="resnet18")(torch.zeros(2, 3, 32, 32)), r"got \(2, 3, 32, 32\)"),
        (
            lambda: Video(8, backbone="resnet18")(torch.zeros(2, 4, 5, 32, 32)),
            r"pictures must be \(B, 3, height, width\)",
        ),
        (lambda: Video(8, in_dim=3)(torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool)), "has no element"),
    ],
)
def test_bad_video_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


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
        sampled = found.sampled(Clip(frames=3), seed=1)
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
        "wide": (np.ones((2, 5), dtype=np.float32), "wide.npy: clip wide is 5 wide, the others 4"),
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
    with pytest.raises(InputError, match="packed.npz: holds no array named b, as the clip is"):
        FrameFeatures(tmp_path / "packed.npz", ["a", "b"]).read(np.array([1]))
    packed = (tmp_path / "packed.npz").read_bytes()
    (tmp_path / "packed.npz").write_bytes(packed[:60])
    with pytest.raises(InputError, match="packed.npz: not complete arrays of numbers"):
        find_clips(tmp_path, "packed", ["a"])
    with pytest.raises(InputError, match="no such folder, nor gifs.npz; expected {id}.gif"):
        find_clips(tmp_path, "gifs", ["a"])
    with pytest.raises(InputError, match="a.npy: expected a folder or an .npz file of frames"):
        find_clips(folder, "a.npy", ["a"])
    with pytest.raises(InputError, match="features: holds nothing of clip b"):
        find_clips(tmp_path, "features", ["b", "a"])
    with pytest.raises(InputError, match="features: has no b.npy, nor 1 others of 3 clips"):
        find_clips(tmp_path, "features", ["a", "b", "c"])


def write_clips(folder: Path, ids: list[str]) -> None:
    """Frame features, 6 wide, of two to five frames."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for clip in ids:
        np.save(folder / f"{clip}.npy", rng.standard_normal((rng.integers(2, 6), 6)).astype(np.float32))


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, 4))


def write_dataset(kind: str, root: Path, train: int = 12, others: int = 6) -> Path:
    """A small corpus in the published format, with frame features; MRW has one sentence a clip, the others two."""
    rng = np.random.default_rng(0)
    sizes = {"train": train, "val": others, "test": others}
    per_clip = 1 if kind == "mrw" else 2
    clips = {part: [f"{part}_{i}" for i in range(size)] for part, size in sizes.items()}
    root.mkdir()
    everything = [clip for part in clips.values() for clip in part]
    write_clips(root / "features", everything)
    if kind == "tgif":
        rows = [f"https://host/x/{clip}.gif\t{sentence(rng)}\t33" for clip in everything for _ in range(per_clip)]
        (root / "tgif-v1.0.tsv").write_text("\n".join(rows) + "\n")
        for part, names in clips.items():
            (root / f"{part}.txt").write_text("".join(f"https://host/x/{clip}.gif\n" for clip in names))
    elif kind == "mrw":
        entries = [{"id": clip, "sentence": sentence(rng), "title": "mrw"} for clip in everything]
        (root / "mrw-v1.0.json").write_text(json.dumps(entries))
        for part, names in clips.items():
            (root / "split").mkdir(exist_ok=True)
            (root / "split" / f"{'valid' if part == 'val' else part}.tsv").write_text(
                "".join(f"{clip}\t{i}\n" for i, clip in enumerate(names))
            )
    elif kind == "msrvtt":
        for file, parts in (("train_val", {"train": "train", "val": "validate"}), ("test", {"test": "test"})):
            places = [(clip, split) for part, split in parts.items() for clip in clips[part]]
            videos = [{"video_id": clip, "split": split, "id": i} for i, (clip, split) in enumerate(places)]
            sentences = [
                {"caption": sentence(rng), "video_id": video["video_id"], "sen_id": i}
                for i in range(per_clip)
                for video in videos
            ]
            (root / f"{file}_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    else:
        names_of = {"train": "training_v1.0", "val": "validation_v1.0", "test": "public_test_english_v1.1"}
        for part, name in names_of.items():
            texts = [[sentence(rng) for _ in range(per_clip)] for _ in clips[part]]
            pairs = zip(clips[part], texts, strict=True)
            content = [{"videoID": clip, "enCap": captions, "chCap": ["x"]} for clip, captions in pairs]
            (root / f"vatex_{name}.json").write_text(json.dumps(content))
    return root


READERS: dict[str, Callable[..., Corpus]] = {"tgif": tgif, "mrw": mrw, "msrvtt": msrvtt, "vatex": vatex}


@pytest.mark.parametrize("kind", READERS)
def test_published_formats(kind: str, tmp_path: Path) -> None:
    root = write_dataset(kind, tmp_path / kind)
    for split, part, size in (("train", "train", 12), ("dev", "val", 6), ("test", "test", 6), ("testall", "test", 6)):
        corpus = READERS[kind](str(root), split, frames="features")
        assert list(corpus.image_ids) == [f"{part}_{i}" for i in range(size)] and corpus.video
        counts = np.bincount(corpus.image_of_caption)
        assert (counts == (1 if kind == "mrw" else 2)).all() and len(corpus.captions) == counts.sum()
        assert all(set(text.split()) <= set(WORDS) for text in corpus.captions)
        assert isinstance(corpus.images, FrameFeatures) and len(corpus.images) == size
    first = {text for text, i in zip(corpus.captions, corpus.image_of_caption, strict=True) if i == 0}
    content = "".join(path.read_text() for path in root.rglob("*.*") if path.suffix in (".json", ".tsv"))
    assert len(first) and all(text in content for text in first)


def test_captions_belong_to_their_clips(tmp_path: Path) -> None:
    """MSR-VTT's sentences come in any order; TGIF's several sentences of a clip all count."""
    root = write_dataset("msrvtt", tmp_path / "m")
    corpus = msrvtt(str(root), "test")
    entries = json.loads((root / "test_videodatainfo.json").read_text())["sentences"]
    assert [e["caption"] for e in entries] == corpus.captions
    assert [e["video_id"] for e in entries] == [corpus.image_ids[i] for i in corpus.image_of_caption]


def test_clips_as_gifs_and_as_frames(tmp_path: Path) -> None:
    root = write_dataset("tgif", tmp_path / "t")
    (root / "gifs").mkdir()
    (root / "frames").mkdir()
    for i in range(6):
        write_gif(root / "gifs" / f"test_{i}.gif", 4)
        (root / "frames" / f"test_{i}").mkdir()
    gifs, folders = tgif(str(root), "test").images, tgif(str(root), "test", frames="frames").images
    assert isinstance(gifs, Clips) and gifs[2] == root / "gifs" / "test_2.gif"
    assert isinstance(folders, Clips) and folders[2] == root / "frames" / "test_2"


def test_vatex_ids_divide_the_files(tmp_path: Path) -> None:
    root = write_dataset("vatex", tmp_path / "v")
    (root / "test_ids.txt").write_text("val_3\nval_1\n")
    corpus = vatex(str(root), "test")
    assert list(corpus.image_ids) == ["val_3", "val_1"] and len(corpus.captions) == 4


def test_bad_video_corpora(tmp_path: Path) -> None:
    roots = {kind: write_dataset(kind, tmp_path / kind) for kind in READERS}

    def fails(kind: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            READERS[kind](str(roots[kind]), "test", frames="features")

    for kind, source, copy, message in (
        ("msrvtt", "train_val_videodatainfo.json", "copy_videodatainfo.json", "a clip is twice in copy_videodatainfo"),
        ("vatex", "vatex_training_v1.0.json", "vatex_training_v1.1.json", "clip train_0 is twice in its vatex_"),
    ):
        (roots[kind] / copy).write_bytes((roots[kind] / source).read_bytes())
        with pytest.raises(InputError, match=message):
            READERS[kind](str(roots[kind]), "train", frames="features")
        (roots[kind] / copy).unlink()

    with (roots["tgif"] / "test.txt").open("a") as file:
        file.write("https://host/lost.gif\n")
    fails("tgif", "test.txt: clip lost has no caption")
    (roots["tgif"] / "test.txt").unlink()
    fails("tgif", r"test.txt: no such file there or in .*'split'.*; expected the urls of a split")
    write_lines = "https://host/a.gif no tab\n"
    (roots["tgif"] / "tgif-v1.0.tsv").write_text(write_lines)
    (roots["tgif"] / "test.txt").write_text("https://host/a.gif\n")
    fails("tgif", "tgif-v1.0.tsv: line 1: expected url <tab> sentence, found 'https://host/a.gif no tab'")
    (roots["mrw"] / "test.tsv").write_text("test_0\n")
    fails("mrw", "test.tsv: there are .*test.tsv, .*split/test.tsv; expected the ids of a split")
    (roots["mrw"] / "test.tsv").unlink()
    (roots["mrw"] / "mrw-v1.0.json").write_text('[{"id": "test_0"}]')
    fails("mrw", "mrw-v1.0.json: expected a list of entries with id and sentence; lacks or garbles 'sentence'")
    (roots["msrvtt"] / "test_videodatainfo.json").write_text('{"videos": []}')
    fails("msrvtt", "test_videodatainfo.json: 'videos' or 'sentences' lack or garble 'sentences'")
    number = {"videos": [{"video_id": 3, "split": "test"}], "sentences": []}
    (roots["msrvtt"] / "test_videodatainfo.json").write_text(json.dumps(number))
    fails("msrvtt", "lack or garble the id 3")
    (roots["vatex"] / "vatex_public_test_english_v1.1.json").write_text('[{"videoID": "test_0", "enCap": "a bc"}]')
    fails("vatex", "lacks or garbles enCap, 'a bc'")
    for path in roots["msrvtt"].glob("*.json"):
        path.unlink()
    fails("msrvtt", r"no \*videodatainfo\*.json there; expected MSR-VTT's annotations")
    (roots["vatex"] / "vatex_public_test_english_v1.1.json").write_text('[{"videoID": "test_0", "enCap": [" "]}]')
    fails("vatex", "a caption of clip test_0 is empty")
    (roots["vatex"] / "vatex_public_test_english_v1.1.json").unlink()
    fails("vatex", r"no vatex_public_test\*.json there; expected VATEX's captions, as published")


CONFIGS = {"tgif": "pvse/tgif", "mrw": "pvse/mrw", "msrvtt": "vse_infty/msrvtt", "vatex": "vse_infty/vatex"}
TINY = ["model.embed_dim=8", "train.batch_size=8", "data.workers=0", "data.vocabulary.min_count=1"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_video_config_trains_on_features(kind: str, cli: Cli, tmp_path: Path) -> None:
    """In the published format; the tables have the median rank and its share of the candidates."""
    root = write_dataset(kind, tmp_path / kind)
    settings = [*TINY, f"data.root={root}", f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    if kind in ("tgif", "mrw"):
        settings += ["data.options.frames=features", "model.image.encoder.weights=null"]
    outcome = cli("train", ROOT / "configs" / f"{CONFIGS[kind]}.yaml", *settings)
    assert outcome.code == 0 and "warning" not in outcome.err, outcome.err
    table = cli("eval", tmp_path / "run")
    assert table.code == 0 and "Video to text" in table.out and "nMR" in table.out
    metrics = json.loads((tmp_path / "run" / "test.json").read_text())
    captions = 6 if kind == "mrw" else 12
    assert metrics["i2t"]["nmr"] == metrics["i2t"]["medr"] / captions
    assert metrics["t2i"]["nmr"] == metrics["t2i"]["medr"] / 6
    model = vse.load(tmp_path / "run")
    clips = [torch.randn(n, 6) for n in (3, 5, 2)]
    together = model.encode_images(clips)
    alone = torch.cat([model.encode_images([clip]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_recipes_for_clips() -> None:
    recipes: dict[str, tuple[int, int, int]] = {"pvse/tgif": (3, 8, 6), "pvse/mrw": (5, 4, 0)}
    for name, (count, shown_frames, trim) in recipes.items():
        config = read_config(ROOT / "configs" / f"{name}.yaml")
        assert config.model.image.aggregator.arguments["num_embeddings"] == count
        assert config.model.text.aggregator.arguments["num_embeddings"] == count
        transform = config.data.transform
        assert transform is not None and transform.name == "clip"
        assert (transform.arguments["frames"], transform.arguments["trim"]) == (shown_frames, trim)
        encoder = config.model.image.encoder
        assert (encoder.name, encoder.arguments["backbone"], encoder.arguments["context"]) == (
            "video",
            "resnet152",
            "last",
        )
        assert config.loss.terms.keys() == {"diversity", "mmd"} and config.train.batch_size == 128
    for name in ("msrvtt", "vatex"):
        config = read_config(ROOT / "configs" / "vse_infty" / f"{name}.yaml")
        assert config.model.image.encoder.name == "regions" and config.model.image.aggregator.name == "gpo"


def test_frames_of_features_are_sampled(tmp_path: Path) -> None:
    """Eight of them, other ones in other epochs, the same in workers; also from an archive."""
    root = write_dataset("tgif", tmp_path / "t")
    for file in (root / "features").glob("*.npy"):
        np.save(file, np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32))
    np.savez(root / "packed.npz", **{f.stem: np.load(f) for f in (root / "features").glob("*.npy")})
    config = ROOT / "configs" / "pvse" / "tgif.yaml"
    read = {}
    for place in ("features", "packed"):
        corpus = build_corpus(read_config(config, [f"data.root={root}", f"data.options.frames={place}"]), "train")
        epochs = [np.stack(corpus.images.read(np.arange(12), epoch)) for epoch in (None, 0, 0, 1)]
        assert all(batch.shape == (12, 8, 6) for batch in epochs)
        assert np.array_equal(epochs[1], epochs[2]) and not np.array_equal(epochs[1], epochs[3])
        assert not np.array_equal(epochs[0], epochs[1])
        read[place] = epochs
        data = TrainingData(corpus, Vocabulary.build(corpus.captions), 0.0, seed=1)
        batches = []
        for workers in (0, 2):
            sampler = BatchSampler(corpus.image_of_caption, len(corpus.images), 8, "pair", 1)
            batches.append([batch.images for batch in make_loader(data, sampler, workers, False)])
        assert len(batches[0]) == 3 and all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(*read.values(), strict=True))


@pytest.fixture
def gif_run(tmp_path: Path) -> list[str]:
    """The demo of moving shapes, made small."""
    world = "data.options={train_scenes: 12, eval_scenes: 5}"
    settings = [f"data.root={tmp_path / 'world'}", world, f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    return [str(ROOT / "configs" / "demo_video.yaml"), *TINY, *settings, "data.transform.size=32"]


def test_trained_end_to_end_on_gifs(gif_run: list[str], cli: Cli, tmp_path: Path) -> None:
    """Train, go on, evaluate; workers change nothing; GIF files become embeddings."""
    for settings in (["train.epochs=2"], ["train.epochs=1", "data.workers=1"], ["train.epochs=2"]):
        place = tmp_path / ("run" if settings == ["train.epochs=2"] and not (tmp_path / "run").exists() else "parts")
        outcome = cli("train", *gif_run, *settings, "optim.schedule.name=constant", f"run.dir={place}")
        assert outcome.code == 0, outcome.err
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("run", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    assert "Text to video" in cli("eval", tmp_path / "run").out
    model = vse.load(tmp_path / "run")
    gifs = sorted((tmp_path / "world" / "gifs").glob("test*.gif"))
    embeddings = model.encode_images(gifs, batch_size=2)
    assert embeddings.shape == (5, 1, 8)
    transform = Clip(frames=3, size=32, resize=48)
    tensors = [transform.read(gif) for gif in gifs]
    torch.testing.assert_close(model.encode_images(tensors), embeddings, atol=1e-5, rtol=0)
    ragged = model.encode_images([tensors[0][:2], tensors[1]])
    torch.testing.assert_close(ragged[1], embeddings[1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"clips must be \(frames, 3, height, width\) of one size, got \(3, 32, 32\)"):
        model.encode_images([tensors[0][0]])


def test_mistakes_are_one_line(gif_run: list[str], cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *gif_run, "--dry-run").code == 0
    square = cli("train", *gif_run, "data.transform={name: square, size: 32}")
    assert "data.transform.name: square is for pictures, but" in square.error and "has frames" in square.error
    missing = cli("train", *[s for s in gif_run if "transform" not in s], "data.transform=null")
    assert missing.code == 2
    grid = cli("train", *gif_run, "model.image.encoder={name: grid, backbone: resnet18}")
    assert "grid reads pictures, but" in grid.error and "has frames" in grid.error
    regions = cli("train", *gif_run, "model.image.encoder={name: regions}")
    assert "regions reads features, but" in regions.error
    gif = sorted((tmp_path / "world" / "gifs").glob("train*.gif"))[3]
    gif.write_bytes(gif.read_bytes()[:40])
    assert f"{gif.name}: not a" in cli("train", *gif_run).error
    gif.unlink()
    assert f"has no {gif.name}" in cli("train", *gif_run).error
    demo = ["configs/demo.yaml", *gif_run[1:5]]
    clip = cli("train", ROOT / demo[0], *demo[1:], "data.transform={name: clip}", "model.image.encoder={name: video}")
    assert clip.code == 2


def test_clips_of_different_lengths_share_a_batch(tmp_path: Path) -> None:
    corpus = vatex(str(write_dataset("vatex", tmp_path / "v")), "train")
    data = TrainingData(corpus, Vocabulary.build(corpus.captions), 0.0, seed=1)
    batch = data[0, np.arange(8)]
    assert not isinstance(batch, InputError) and batch.image_mask is not None
    lengths = [len(corpus.images[i]) for i in range(4)]
    assert batch.image_mask.sum(1).tolist() == lengths and batch.images.shape == (4, max(lengths), 6)
    assert (batch.images[~batch.image_mask] == 0).all()


def test_gpo_over_frames_ignores_padding() -> None:
    """VSE∞ on frame features is its region model: the mask is all there is to it."""
    from vse.encoders import Regions

    torch.manual_seed(0)
    tower = Tower(Regions(6, 8), GPO()).eval()
    clips = [torch.randn(n, 6) for n in (4, 2)]
    padded = torch.zeros(2, 4, 6)
    padded[0], padded[1, :2] = clips
    together = tower(padded, lengths_to_mask(torch.tensor([4, 2]))).embeddings
    for row, clip in enumerate(clips):
        torch.testing.assert_close(tower(clip[None]).embeddings[0], together[row], atol=1e-5, rtol=0)
