"""The data formats of clips: one function each, which returns a :class:`vse.data.corpus.Corpus`.

Each has an option ``frames``: where below ``root`` the clips' frames are, see :func:`vse.data.clips.find_clips`. The
table of all formats is :data:`vse.data.formats.FORMATS`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vse.data.clips import find_clips
from vse.data.corpus import Corpus
from vse.data.reading import malformed, read_json, read_lines
from vse.data.synthetic import render_world, world_sizes
from vse.errors import InputError, check_choice

_FOLDERS = (".", "data", "split", "splits", "data/splits")
_PARTS = {"train": ("train",), "dev": ("val", "valid"), "test": ("test",), "testall": ("test",)}
_CAPTIONS = ("all", "last")
Pairs = list[tuple[str, str]]  # the id of a clip, and a caption of it


def tgif(root: str, split: str, frames: str = "gifs", captions: Literal["all", "last"] = "all") -> Corpus:
    """Read TGIF (Li et al. 2016), as published: ``tgif-v1.0.tsv`` and ``train.txt``, ``val.txt`` and ``test.txt``.

    The TSV has url, sentence and, in some copies, the number of frames on each line. The split files (``valid.txt`` in
    PVSE's copy) list urls; they lie in ``root``, or in ``data``, ``split``, ``splits`` or ``data/splits`` there. A
    clip's id is the name of its file.

    Args:
        root: The data set's folder.
        split: The split.
        frames: Where the clips are, below ``root``.
        captions: Which sentences of a clip in dev and test count. "all": every one, and any of them is right. "last":
            the last in the TSV, so that there are as many captions as clips, as in PVSE's published results (11,360 of
            both in test). Training takes all.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing, or a line is not as expected; file and line are named.
    """
    check_choice("captions", captions, _CAPTIONS)
    table = _find(root, ("tgif-v1.0*.tsv",), "TGIF's urls and sentences")
    listed = _find(root, _split_files(split, ".txt"), "the urls of a split, one a line")
    pairs = []
    for number, line in enumerate(read_lines(table, "url, sentence and number of frames"), start=1):
        url, _, rest = line.partition("\t")
        sentence = rest.split("\t")[0].strip()
        if not sentence:
            raise InputError(f"{table}: line {number}: expected url <tab> sentence, found {line[:80]!r}")
        pairs.append((_stem(url), sentence))
    ids = [_stem(url) for url in read_lines(listed, "url")]
    return _corpus(root, split, frames, ids, pairs, listed, captions)


def synthetic_clips(
    root: str, split: str, seed: int = 0, train_scenes: int = 1500, eval_scenes: int = 150, frames: str = "gifs"
) -> Corpus:
    """Read the demo's clips of moving shapes (see :mod:`vse.data.synthetic`), rendered once under ``root``.

    Args:
        root: The folder to render into, in TGIF's layout.
        split: The split: train, dev or test.
        seed: The seed of the scenes.
        train_scenes: Number of clips to train on.
        eval_scenes: Number of clips in dev, and in test.
        frames: Where the clips are, below ``root``.

    Returns:
        The corpus.

    Raises:
        InputError: There is no such split or world, or ``root`` cannot be written.
    """
    render_world(Path(root), world_sizes(split, seed, train_scenes, eval_scenes), seed, clips=True)
    return tgif(root, split, frames)


def mrw(root: str, split: str, frames: str = "gifs", captions: Literal["all", "last"] = "all") -> Corpus:
    """Read MRW (Song & Soleymani 2019), as published: a JSON list of {"id", "sentence", ...} and TSV files of ids.

    ``mrw-v1.0.json`` and ``train.tsv``, ``valid.tsv`` or ``val.tsv``, ``test.tsv`` lie in ``root``, or in ``data``,
    ``split``, ``splits`` or ``data/splits`` there. A clip's id is in the first column.

    Args:
        root: The data set's folder.
        split: The split.
        frames: Where the clips are, below ``root``.
        captions: Which sentences of a clip in dev and test count, see :func:`tgif`. As published, MRW has one for each.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing or is not as expected; the file is named.
    """
    check_choice("captions", captions, _CAPTIONS)
    file = _find(root, ("mrw-v1.0*.json",), "MRW's ids and sentences")
    listed = _find(root, _split_files(split, ".tsv"), "the ids of a split, one a line")
    content = read_json(file)
    try:
        pairs = [(str(entry["id"]), _text(entry["sentence"], "sentence")) for entry in content]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: {malformed(error)}; expected a list of entries with id and sentence") from None
    ids = [line.split("\t")[0].strip() for line in read_lines(listed, "id")]
    return _corpus(root, split, frames, ids, pairs, listed, captions)


def msrvtt(root: str, split: str, frames: str = "features") -> Corpus:
    """Read MSR-VTT (Xu et al. 2016), as published: ``*videodatainfo*.json`` with "videos" and "sentences".

    All such files in ``root`` are read. The splits are those of their entries (train, validate, test). Ids are like
    ``video7010``.

    Args:
        root: The data set's folder.
        split: The split.
        frames: Where the clips are, below ``root``.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing or is not as expected; the file is named.
    """
    files = sorted(Path(root).glob("*videodatainfo*.json"))
    if not files:
        raise InputError(f"{root}: no *videodatainfo*.json there; expected MSR-VTT's annotations")
    part = {"dev": "validate", "testall": "test"}.get(split, split)
    ids: list[str] = []
    pairs: Pairs = []
    for file in files:
        content = read_json(file)
        try:
            ids += [_text(video["video_id"], "video_id") for video in content["videos"] if video["split"] == part]
            pairs += [
                (_text(entry["video_id"], "video_id"), _text(entry["caption"], "caption"))
                for entry in content["sentences"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: {malformed(error)}; expected MSR-VTT's lists 'videos' and 'sentences'") from None
    if len(set(ids)) != len(ids):
        raise InputError(f"{root}: a clip occurs twice in {', '.join(file.name for file in files)}; is one a copy?")
    return _corpus(root, split, frames, ids, pairs, files[0])


def vatex(root: str, split: str, frames: str = "features") -> Corpus:
    """Read the English captions of VATEX (Wang et al. 2019), as published: lists of {"videoID", "enCap"}.

    ``vatex_training_v1.0.json`` is train; dev and test are ``vatex_validation_v1.0.json`` and
    ``vatex_public_test_english_v1.1.json``. The captions of the test set were secret once, so the field divides the
    validation set in two: where ``root`` has ``{split}_ids.txt``, the split is those ids among all files.

    Args:
        root: The data set's folder.
        split: The split.
        frames: Where the clips are, below ``root``.

    Returns:
        The corpus.

    Raises:
        InputError: A file is missing or is not as expected; the file is named.
    """
    listed = Path(root) / f"{split.removesuffix('all')}_ids.txt"
    names = {"train": "training", "dev": "validation"}
    pattern = "vatex_*.json" if listed.is_file() else f"vatex_{names.get(split, 'public_test')}*.json"
    files = sorted(Path(root).glob(pattern))
    if not files:
        raise InputError(f"{root}: no {pattern} there; expected VATEX's captions, as published")
    pairs: Pairs = []
    seen: set[str] = set()
    for file in files:
        found = _vatex_captions(file)
        if twice := seen & found.keys():
            raise InputError(f"{root}: clip {min(twice)} occurs twice in its vatex_*.json; is one a copy?")
        seen |= found.keys()
        pairs += [(clip, text) for clip, texts in found.items() for text in texts]
    ids = read_lines(listed, "id") if listed.is_file() else list(dict.fromkeys(clip for clip, _ in pairs))
    return _corpus(root, split, frames, ids, pairs, listed if listed.is_file() else files[0])


def _vatex_captions(file: Path) -> dict[str, list[str]]:
    """The English captions of each clip in one of VATEX's files."""
    found: dict[str, list[str]] = {}
    content = read_json(file)
    try:
        for entry in content:
            clip, texts = _text(entry["videoID"], "videoID"), entry.get("enCap", [])
            if not isinstance(texts, list):
                raise TypeError(f"enCap must be a list, got {texts!r:.40}")
            if clip in found:
                raise InputError(f"{file.parent}: clip {clip} occurs twice in its vatex_*.json; is one a copy?")
            found[clip] = [_text(text, "a caption of enCap") for text in texts]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: {malformed(error)}; expected a list of entries with videoID and enCap") from None
    return found


def _corpus(
    root: str, split: str, frames: str, ids: Iterable[str], pairs: Pairs, listed: Path, kept: str = "all"
) -> Corpus:
    """Corpus of the clips ``ids``, which ``listed`` lists, and of the captions in ``pairs`` that describe them."""
    place = {clip: index for index, clip in enumerate(dict.fromkeys(ids))}
    chosen = [(number, clip, caption) for number, (clip, caption) in enumerate(pairs) if clip in place]
    if not chosen:
        raise InputError(f"{listed}: no clip in split {split} with a caption")
    empty = next((clip for _, clip, caption in chosen if not caption), None)
    if empty is not None:
        raise InputError(f"{root}: a caption of clip {empty} is empty")
    described = {clip for _, clip, _ in chosen}
    without = next((clip for clip in place if clip not in described), None)
    if without is not None:
        raise InputError(f"{listed}: clip {without} has no caption")
    if kept == "last" and split != "train":
        last = {clip: number for number, clip, _ in chosen}
        chosen = [entry for entry in chosen if entry[0] == last[entry[1]]]
    clips = find_clips(Path(root), frames, list(place))
    captions = [caption for _, _, caption in chosen]
    image_of_caption = np.array([place[clip] for _, clip, _ in chosen])
    numbers = [number for number, _, _ in chosen]
    return Corpus(f"{root} ({split})", clips, captions, image_of_caption, list(place), numbers, video=True)


def _split_files(split: str, ending: str) -> tuple[str, ...]:
    return tuple(f"{name}{ending}" for name in _PARTS[split])


def _find(root: str, places: tuple[str, ...], what: str) -> Path:
    """The one file that has one of some names or patterns."""
    found = [file for folder in _FOLDERS for name in places for file in sorted((Path(root) / folder).glob(name))]
    if len(found) != 1:
        problem = f"no such file there or in {', '.join(_FOLDERS[1:])}"
        if found:
            problem = f"found {', '.join(map(str, found))}, which are too many"
        raise InputError(f"{Path(root) / ' or '.join(places)}: {problem}; expected {what}")
    return found[0]


def _text(value: Any, name: str) -> str:
    """A text without the spaces around it. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r:.40}")
    return value.strip()


def _stem(url: str) -> str:
    return url.strip().rsplit("/", 1)[-1].removesuffix(".gif")
