"""The data formats of clips."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import WORDS, write_dataset, write_gif

from vse.data.clips import ClipFiles, FrameFeatures
from vse.data.corpus import Corpus
from vse.data.formats import FORMATS
from vse.data.video_formats import mrw, msrvtt, tgif, vatex
from vse.errors import InputError

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
    assert isinstance(gifs, ClipFiles) and gifs[2] == root / "gifs" / "test_2.gif"
    assert isinstance(folders, ClipFiles) and folders[2] == root / "frames" / "test_2"


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
        (
            "msrvtt",
            "train_val_videodatainfo.json",
            "copy_videodatainfo.json",
            "a clip occurs twice in copy_videodatainfo",
        ),
        ("vatex", "vatex_training_v1.0.json", "vatex_training_v1.1.json", "clip train_0 occurs twice in its vatex_"),
    ):
        (roots[kind] / copy).write_bytes((roots[kind] / source).read_bytes())
        with pytest.raises(InputError, match=message):
            READERS[kind](str(roots[kind]), "train", frames="features")
        (roots[kind] / copy).unlink()

    with (roots["tgif"] / "test.txt").open("a") as file:
        file.write("https://host/lost.gif\n")
    fails("tgif", "test.txt: clip lost has no caption")
    (roots["tgif"] / "test.txt").unlink()
    fails("tgif", r"test.txt: no such file there or in data, split, .*; expected the urls of a split")
    write_lines = "https://host/a.gif no tab\n"
    (roots["tgif"] / "tgif-v1.0.tsv").write_text(write_lines)
    (roots["tgif"] / "test.txt").write_text("https://host/a.gif\n")
    fails("tgif", "tgif-v1.0.tsv: line 1: expected url <tab> sentence, found 'https://host/a.gif no tab'")
    (roots["mrw"] / "test.tsv").write_text("test_0\n")
    fails("mrw", "test.tsv: found .*test.tsv, .*split/test.tsv, which are too many; expected the ids of a split")
    (roots["mrw"] / "test.tsv").unlink()
    (roots["mrw"] / "mrw-v1.0.json").write_text('[{"id": "test_0"}]')
    fails("mrw", "mrw-v1.0.json: 'sentence' is missing; expected a list of entries with id and sentence")
    (roots["msrvtt"] / "test_videodatainfo.json").write_text('{"videos": []}')
    fails("msrvtt", "test_videodatainfo.json: 'sentences' is missing; expected MSR-VTT's lists 'videos' and")
    number = {"videos": [{"video_id": 3, "split": "test"}], "sentences": []}
    (roots["msrvtt"] / "test_videodatainfo.json").write_text(json.dumps(number))
    fails("msrvtt", r"a value has the wrong type \(video_id must be a text, got 3\)")
    (roots["vatex"] / "vatex_public_test_english_v1.1.json").write_text('[{"videoID": "test_0", "enCap": "a bc"}]')
    fails("vatex", r"a value has the wrong type \(enCap must be a list, got 'a bc'\)")
    for path in roots["msrvtt"].glob("*.json"):
        path.unlink()
    fails("msrvtt", r"no \*videodatainfo\*.json there; expected MSR-VTT's annotations")
    (roots["vatex"] / "vatex_public_test_english_v1.1.json").write_text('[{"videoID": "test_0", "enCap": [" "]}]')
    fails("vatex", "a caption of clip test_0 is empty")
    (roots["vatex"] / "vatex_public_test_english_v1.1.json").unlink()
    fails("vatex", r"no vatex_public_test\*.json there; expected VATEX's captions, as published")


@pytest.mark.parametrize("kind", ["tgif", "mrw"])
def test_the_last_caption_of_each_clip(kind: str, tmp_path: Path) -> None:
    """In dev and test as many captions as clips, each the clip's last in the file; training keeps all."""
    root = write_dataset(kind, tmp_path / kind)
    if kind == "mrw":  # as published it has one sentence a clip: give some a second
        entries = json.loads((root / "mrw-v1.0.json").read_text())
        entries += [{**entry, "sentence": f"second {entry['sentence']}"} for entry in reversed(entries)]
        (root / "mrw-v1.0.json").write_text(json.dumps(entries))
    for split, size in (("dev", 6), ("test", 6), ("testall", 6)):
        every = READERS[kind](str(root), split, frames="features")
        last = READERS[kind](str(root), split, frames="features", captions="last")
        assert len(every.captions) == 2 * size and len(last.captions) == len(last.images) == size
        assert last.image_ids == every.image_ids
        pairs = zip(every.image_of_caption.tolist(), every.captions, every.caption_ids, strict=True)
        expected = {image: (caption, number) for image, caption, number in pairs}  # a later one replaces an earlier one
        found = zip(last.image_of_caption.tolist(), last.captions, last.caption_ids, strict=True)
        assert {image: (caption, number) for image, caption, number in found} == expected
    assert len(READERS[kind](str(root), "train", frames="features", captions="last").captions) == 24
    with pytest.raises(ValueError, match="captions must be one of 'all' or 'last', got 'first'"):
        READERS[kind](str(root), "test", frames="features", captions="first")


def test_one_table_has_every_format() -> None:
    assert {name: FORMATS[name] for name in READERS} == READERS
    assert {"precomp", "karpathy", "coco", "id_mapping", "folder", "synthetic", "synthetic_clips"} < FORMATS.keys()
