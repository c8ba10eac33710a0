"""Corpora of clips: one function per dataset format, each returning a :class:`vse.data.corpus.Corpus`.

Where a clip's frames are: ``root/frames``, see :func:`vse.data.clips.find_clips`; ``frames`` is an option of each.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vse.data.clips import find_clips
from vse.data.corpus import Corpus
from vse.data.formats import check_scenes, read_json, read_lines
from vse.data.synthetic import render_world
from vse.errors import InputError

_FOLDERS = (".", "data", "split", "splits", "data/splits")
_PARTS = {"train": ("train",), "dev": ("val", "valid"), "test": ("test",), "testall": ("test",)}
_NAMES = {(s, end): tuple(f"{name}{end}" for name in names) for s, names in _PARTS.items() for end in (".txt", ".tsv")}


def tgif(root: str, split: str, frames: str = "gifs") -> Corpus:
    """TGIF (Li et al. 2016), as published: ``tgif-v1.0.tsv`` and ``train.txt``, ``val.txt`` and ``test.txt``.

    The TSV has url, sentence and, in some copies, the number of frames on each line; the split files (``valid.txt`` in
    PVSE's) list urls; they lie in ``root``, or in ``data``, ``split``, ``splits`` or ``data/splits`` there. A clip's id
    is its file's name. Several sentences of one clip all count. Raises InputError, naming file and line, when something
    is missing or does not fit.
    """
    table = _find(root, ("tgif-v1.0*.tsv",), "TGIF's urls and sentences")
    listed = _find(root, _NAMES[split, ".txt"], "the urls of a split, one a line")
    pairs = []
    for number, line in enumerate(read_lines(table, "url, sentence and number of frames"), start=1):
        url, _, rest = line.partition("\t")
        sentence = rest.split("\t")[0].strip()
        if not sentence:
            raise InputError(f"{table}: line {number}: expected url <tab> sentence, found {line[:80]!r}")
        pairs.append((_stem(url), sentence))
    ids = [_stem(url) for url in read_lines(listed, "url")]
    return _corpus(root, split, frames, ids, pairs, listed)


def synthetic_clips(
    root: str, split: str, seed: int = 0, train_scenes: int = 1500, eval_scenes: int = 150, frames: str = "gifs"
) -> Corpus:
    """The demo's clips of moving shapes (see :mod:`vse.data.synthetic`), rendered once under ``root`` as TGIF is.

    Splits train (``train_scenes``), dev and test (``eval_scenes`` each).
    """
    if split not in ("train", "dev", "test"):
        raise InputError(f"the synthetic corpus has the splits train, dev and test, not {split}")
    check_scenes(seed, train_scenes, eval_scenes)
    sizes = {"train": train_scenes, "dev": eval_scenes, "test": eval_scenes}
    render_world(Path(root), sizes, seed, clips=True)
    return tgif(root, split, frames)


def mrw(root: str, split: str, frames: str = "gifs") -> Corpus:
    """MRW (Song & Soleymani 2019), as published: a JSON list of {"id", "sentence", ...} and TSV files of ids.

    ``mrw-v1.0.json`` and ``train.tsv``, ``valid.tsv`` or ``val.tsv``, ``test.tsv`` lie in ``root``, or in ``data``,
    ``split``, ``splits`` or ``data/splits`` there; a clip's id is in the first column. Raises InputError, naming the
    file, when something is missing or does not fit.
    """
    file = _find(root, ("mrw-v1.0*.json",), "MRW's ids and sentences")
    listed = _find(root, _NAMES[split, ".tsv"], "the ids of a split, one a line")
    content = read_json(file)
    try:
        pairs = [(str(entry["id"]), entry["sentence"].strip()) for entry in content]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: expected a list of entries with id and sentence; lacks or garbles {error}") from None
    ids = [line.split("\t")[0].strip() for line in read_lines(listed, "id")]
    return _corpus(root, split, frames, ids, pairs, listed)


def msrvtt(root: str, split: str, frames: str = "features") -> Corpus:
    """MSR-VTT (Xu et al. 2016), as published: ``*videodatainfo*.json`` with "videos" and "sentences".

    All such files in ``root`` are read; splits are those of their entries (train, validate, test). Ids are like
    ``video7010``. Raises InputError, naming the file, when something is missing or does not fit.
    """
    files = sorted(Path(root).glob("*videodatainfo*.json"))
    if not files:
        raise InputError(f"{root}: no *videodatainfo*.json there; expected MSR-VTT's annotations")
    part = {"dev": "validate", "testall": "test"}.get(split, split)
    ids: list[str] = []
    pairs: list[tuple[str, str]] = []
    for file in files:
        content = read_json(file)
        try:
            ids += [_text(video["video_id"]) for video in content["videos"] if video["split"] == part]
            pairs += [(_text(entry["video_id"]), entry["caption"].strip()) for entry in content["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: 'videos' or 'sentences' lack or garble {error}") from None
    if len(set(ids)) != len(ids):
        raise InputError(f"{root}: a clip is twice in {', '.join(file.name for file in files)}; is one a copy?")
    return _corpus(root, split, frames, ids, pairs, files[0])


def vatex(root: str, split: str, frames: str = "features") -> Corpus:
    """VATEX (Wang et al. 2019), as published: lists of {"videoID", "enCap"}; the English captions are used.

    ``vatex_training_v1.0.json`` is train; dev and test are ``vatex_validation_v1.0.json`` and
    ``vatex_public_test_english_v1.1.json``, or, where ``root`` has ``{split}_ids.txt`` (the field divides the
    validation set in two, the test set's captions having been secret), those ids among all files. Raises InputError,
    naming the file, when something is missing or does not fit.
    """
    listed = Path(root) / f"{split.removesuffix('all')}_ids.txt"
    names = {"train": "training", "dev": "validation"}
    pattern = "vatex_*.json" if listed.is_file() else f"vatex_{names.get(split, 'public_test')}*.json"
    files = sorted(Path(root).glob(pattern))
    if not files:
        raise InputError(f"{root}: no {pattern} there; expected VATEX's captions, as published")
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for file in files:
        content = read_json(file)
        try:
            for entry in content:
                if _text(entry["videoID"]) in seen:
                    raise InputError(f"{root}: clip {entry['videoID']} is twice in its vatex_*.json; is one a copy?")
                seen.add(entry["videoID"])
                captions = entry.get("enCap", [])
                if not isinstance(captions, list):
                    raise TypeError(f"enCap, {captions!r:.40}")
                pairs += [(_text(entry["videoID"]), text.strip()) for text in captions]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: expected a list of videoID and enCap; lacks or garbles {error}") from None
    ids = read_lines(listed, "id") if listed.is_file() else list(dict.fromkeys(clip for clip, _ in pairs))
    return _corpus(root, split, frames, ids, pairs, listed if listed.is_file() else files[0])


def _corpus(
    root: str, split: str, frames: str, ids: Iterable[str], pairs: list[tuple[str, str]], listed: Path
) -> Corpus:
    """Corpus of the clips ``ids``, as ``listed``, and of those captions in ``pairs`` that describe them."""
    place = {clip: index for index, clip in enumerate(dict.fromkeys(ids))}
    captions, image_of_caption, numbers = [], [], []
    for number, (clip, caption) in enumerate(pairs):
        if clip in place:
            if not caption:
                raise InputError(f"{root}: a caption of clip {clip} is empty")
            captions.append(caption)
            image_of_caption.append(place[clip])
            numbers.append(number)
    if not captions:
        raise InputError(f"{listed}: no clip in split {split} with a caption")
    without = next(iter(set(place.values()) - set(image_of_caption)), None)
    if without is not None:
        raise InputError(f"{listed}: clip {list(place)[without]} has no caption")
    clips = find_clips(Path(root), frames, list(place))
    name = f"{root} ({split})"
    return Corpus(name, clips, captions, np.array(image_of_caption), list(place), numbers, video=True)


def _find(root: str, places: tuple[str, ...], what: str) -> Path:
    """Return the one file of some names or patterns that is there."""
    found = [file for folder in _FOLDERS for name in places for file in sorted((Path(root) / folder).glob(name))]
    if len(found) != 1:
        problem = f"there are {', '.join(map(str, found))}" if found else f"no such file there or in {_FOLDERS[1:]}"
        raise InputError(f"{Path(root) / ' or '.join(places)}: {problem}; expected {what}")
    return found[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the id {value!r:.40}")
    return value


def _stem(url: str) -> str:
    return url.strip().rsplit("/", 1)[-1].removesuffix(".gif")


VIDEO_CORPORA: dict[str, Callable[..., Corpus]] = {
    "tgif": tgif,
    "mrw": mrw,
    "msrvtt": msrvtt,
    "vatex": vatex,
    "synthetic_clips": synthetic_clips,
}
