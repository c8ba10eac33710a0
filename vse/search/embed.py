"""Embed pictures, clips, features or captions into the shards of an index."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vse import __version__
from vse.batchwise import as_written, check_same_origin, computed, weights_digest
from vse.build import build_corpus, build_transform, read_config
from vse.checkpoints.load import Loaded, load_model
from vse.checkpoints.native import find_checkpoint
from vse.config_files import names_config
from vse.console import warn
from vse.data.clips import ClipFiles
from vse.data.corpus import Corpus, ImageSource
from vse.data.reading import read_lines
from vse.data.transforms import PictureFiles
from vse.distributed import broadcast, is_main
from vse.encoders.base import traits_of
from vse.errors import InputError, check_at_least
from vse.evaluation.encode import check_corpus
from vse.files import claim_folder, sha256, write_json
from vse.model import VSEModel, kind_of_images
from vse.ragged import Sets, padded
from vse.runtime import autocast, pick_device
from vse.search.approximate import SAMPLE
from vse.search.shards import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    Item,
    Shard,
    Skipped,
    has_shard,
    read_manifest,
    sizes_and_rows,
    summarise,
    write_shard,
)

SHARD = 8192  # items of a shard: what is lost at most when the process is killed
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NAMED = 10  # items that could not be read of which each is named on the terminal
_OF_SOURCE = ("data.format", "data.root", "data.options")  # overrides of what is embedded
_OF_MODEL = ("model", "data.transform", "data.vocabulary")  # overrides that change embeddings
_COMPARED = {
    "kind": "kind of items",
    "items_sha256": "list of items",
    "checkpoint_sha256": "checkpoint",
    "overrides": "overrides",
    "precision": "eval.precision",
    "dtype": "dtype",
    "shard": "--shard",
}


class Source(NamedTuple):
    """What is to be embedded.

    Attributes:
        kind: "images" or "captions".
        ids: The items' ids.
        folder: The folder that the files are below, if there are files.
        files: The items' files, if they have some.
        captions: The items' captions, if they have some.
        read: Reads some items, (n,) numbers; None for one that cannot be read, and why.
    """

    kind: str
    ids: Sequence[str]
    folder: Path | None
    files: Sequence[str] | None
    captions: Sequence[str] | None
    read: Callable[[np.ndarray], "Batch"]

    def item(self, number: int) -> Item:
        """Return what an index knows of an item."""
        file, caption = (None if part is None else part[number] for part in (self.files, self.captions))
        return Item(self.ids[number], file, caption or None)


class Batch(NamedTuple):
    """Items that were read.

    Attributes:
        numbers: The numbers of those that could be read.
        inputs: What the model embeds.
        skipped: The numbers of the others, and what is wrong with them.
    """

    numbers: list[int]
    inputs: list[Any]
    skipped: list[tuple[int, str]]


class _Embedded(NamedTuple):
    """A batch of items, embedded."""

    numbers: list[int]
    sizes: np.ndarray  # (items,)
    embeddings: np.ndarray  # (rows, H)
    skipped: list[tuple[int, str]]


def embed(
    run: str,
    source: str,
    folder: Path,
    overrides: Sequence[str] = (),
    splits: Sequence[str] = ("test",),
    *,
    captions: bool = False,
    half: bool = True,
    shard: int = SHARD,
    vocabulary: Path | None = None,
) -> Loaded:
    """Embed pictures, clips, features or captions into an index; work that is finished is not repeated.

    The index is written in shards. A process that is killed loses the shard that it was at; the same call goes on. A
    picture or clip that cannot be read is named and left out. Several processes embed a share each.

    Args:
        run: A run folder, a checkpoint, or the config of a pretrained model.
        source: A folder of pictures (for a model of clips: of GIF files), which are found at any depth; or a config or
            run folder, whose data are embedded.
        folder: The index.
        overrides: Settings ("key=value") that differ from the run's. Those of ``data.format``, ``data.root`` and
            ``data.options`` apply to the source, if it is a config.
        splits: The splits to embed, when the source is a config. With several, ids begin with "split/".
        captions: Whether to embed the captions, when the source is a config, instead of the images.
        half: Whether to write float16 instead of float32. Scores are computed in float32 either way.
        shard: The number of items in a shard.
        vocabulary: A vocabulary file for a checkpoint that came without one, see :func:`vse.load`.

    Returns:
        The model that embedded.

    Raises:
        InputError: The folder holds something else, or another model or list of items began it; or nothing could be
            read.
    """
    check_at_least("--shard", shard, 1)
    loaded = load_model(run, of_model(overrides), vocabulary)
    config = loaded.config
    model = loaded.model.to(pick_device(config.run.device))
    found = find_source(loaded, source, overrides, splits, captions)
    manifest = {
        "format": FORMAT,
        "vse": __version__,
        "torch": torch.__version__,
        **about_checkpoint(run, loaded),
        "overrides": [item for item in of_model(overrides) if item.startswith(_OF_MODEL)],
        "kind": found.kind,
        "source": source,
        "splits": list(splits),
        "folder": None if found.folder is None else str(found.folder),
        "items_sha256": _digest_of(found),
        "precision": config.eval.precision,
        "dtype": "float16" if half else "float32",
        "shard": shard,
    }
    with claim_folder(folder, str(folder), "embedding") if is_main() else nullcontext():
        if broadcast(_is_finished(folder, manifest) if is_main() else None):
            return loaded
        numbers = range(-(-len(found.ids) // shard))
        missing = broadcast([number for number in numbers if not has_shard(folder, number)] if is_main() else None)
        with torch.no_grad(), autocast(model.device, config.eval.precision):
            _write_missing(folder, model, found, missing, shard, config.eval.batch_size, half)
        if is_main():
            write_json(folder / MANIFEST, {**manifest, **summarise(folder, len(numbers))})
            (folder / UNFINISHED).unlink()
    return loaded


def describe(folder: Path) -> str:
    """Describe a finished index in one line.

    Args:
        folder: The index.

    Returns:
        The line.
    """
    manifest = read_manifest(folder)
    sizes = manifest["embeddings_per_item"]
    many = f"{sizes[0]} to {sizes[1]}" if isinstance(sizes, list) else str(sizes)
    skipped = len(manifest["skipped"])
    left_out = f"; {skipped:,} could not be read ({folder / MANIFEST} names them)" if skipped else ""
    shape = f"{many} x {manifest['width']} {manifest['dtype']} numbers each"
    return f"{folder}: finished: {manifest['items']:,} {manifest['kind']}, {shape}{left_out}"


def of_model(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that apply to the run and not to what is embedded."""
    return [item for item in overrides if not item.startswith(_OF_SOURCE)]


def about_checkpoint(run: str, loaded: Loaded) -> dict[str, str]:
    """Return what a manifest says of the model: where it came from, and its digest.

    Args:
        run: The run folder, checkpoint or config, as the user named it.
        loaded: The model.

    Returns:
        "checkpoint", a path or the name of a config; and "checkpoint_sha256", the digest of the checkpoint's file, or
        of the weights where the config of a pretrained model was named.
    """
    if not names_config(run):
        file = find_checkpoint(run).resolve()
        return {"checkpoint": str(file), "checkpoint_sha256": sha256(file)}
    name = str(Path(run).resolve()) if Path(run).exists() else run
    return {"checkpoint": name, "checkpoint_sha256": weights_digest(loaded.model.state_dict())}


def find_source(loaded: Loaded, source: str, overrides: Sequence[str], splits: Sequence[str], captions: bool) -> Source:
    """Find what is to be embedded.

    Args:
        loaded: The model that will embed.
        source: As in :func:`embed`.
        overrides: As in :func:`embed`.
        splits: As in :func:`embed`.
        captions: As in :func:`embed`.

    Returns:
        The items, which are read when they are needed.

    Raises:
        InputError: There is no such data, or the model does not read it.
    """
    if _is_folder(source):
        if captions:
            raise InputError(f"{source}: a folder of pictures has no captions; name a config or a run")
        return _of_folder(loaded, Path(source))
    if not Path(source).exists() and not names_config(source):
        raise InputError(f"{source}: no such folder of pictures, config or run (`vse configs` lists shipped configs)")
    own = [item for item in overrides if item.startswith(_OF_SOURCE)]
    data = read_config(source, own).data
    content = loaded.config.model_dump()
    content["data"] |= {"format": data.format, "root": data.root, "options": data.options}
    config = loaded.config.replaced(content)
    corpora = [build_corpus(config, split) for split in splits]
    for corpus in corpora:
        check_corpus(loaded.model, corpus)
    prefixes = [f"{split}/" if len(splits) > 1 else "" for split in splits]
    return (_of_captions if captions else _of_images)(corpora, prefixes)


def _of_folder(loaded: Loaded, folder: Path) -> Source:
    """The pictures, or GIF files of clips, in a folder and the folders in it; hidden ones are left out."""
    kind = kind_of_images(traits_of(loaded.model.image.encoder))
    if kind == "features":
        raise InputError(f"{folder}: the model reads precomputed features, not pictures; name a config of such data")
    endings = (".gif",) if kind == "frames" else _PICTURES
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(place, folder)
        files += [
            os.path.normpath(os.path.join(below, name))
            for name in sorted(names)
            if name.lower().endswith(endings) and not name.startswith(".")
        ]
    if not files:
        raise InputError(f"{folder}: no file in it ends in {', '.join(endings)}; expected pictures, or a config")
    paths = [os.path.join(folder, file) for file in files]
    transform = build_transform(loaded.config, kind)
    reader = ClipFiles if kind == "frames" else PictureFiles
    images = reader(paths, transform, loaded.config.run.seed, loaded.config.data.workers)
    return Source("images", files, folder.resolve(), files, None, lambda rows: _read_images(images, rows))


def _of_images(corpora: Sequence[Corpus], prefixes: Sequence[str]) -> Source:
    """The images of some splits, each with its first caption."""
    ids = [f"{prefix}{label}" for corpus, prefix in zip(corpora, prefixes, strict=True) for label in corpus.image_ids]
    captions: list[str] = []
    for corpus in corpora:
        first = {image: caption for caption, image in reversed(list(enumerate(corpus.image_of_caption.tolist())))}
        captions += [corpus.captions[first[image]] if image in first else "" for image in range(len(corpus.images))]
    starts = np.cumsum([0, *(len(corpus.images) for corpus in corpora)])
    folder, files = _files_of([corpus.images for corpus in corpora])

    def read(rows: np.ndarray) -> Batch:
        found = Batch([], [], [])
        for corpus, first, end in zip(corpora, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            own = rows[(rows >= first) & (rows < end)]
            if len(own):
                part = _read_images(corpus.images, own - first)
                found.numbers.extend(number + first for number in part.numbers)
                found.inputs.extend(part.inputs)
                found.skipped.extend((number + first, reason) for number, reason in part.skipped)
        return found

    return Source("images", ids, folder, files, captions, read)


def _files_of(sources: Sequence[ImageSource]) -> tuple[Path | None, list[str] | None]:
    """The folder that all files of some images share, and the files below it; None for images without files."""
    if any(source.kind == "features" for source in sources):
        return None, None
    paths = [os.path.abspath(source[row]) for source in sources for row in range(len(source))]
    folder = os.path.commonpath({os.path.dirname(path) for path in paths})
    return Path(folder), [os.path.relpath(path, folder) for path in paths]


def _read_images(images: ImageSource, rows: np.ndarray) -> Batch:
    """Some images; where one cannot be read, the others are read without it."""
    try:
        return Batch(rows.tolist(), list(images.read(rows)), [])
    except InputError:
        if images.kind == "features":  # one file holds all of them
            raise
    found = Batch([], [], [])
    for row in rows.tolist():
        try:
            found.inputs.append(images.read(np.array([row]))[0])
            found.numbers.append(row)
        except InputError as error:
            found.skipped.append((row, str(error)))
    return found


def _of_captions(corpora: Sequence[Corpus], prefixes: Sequence[str]) -> Source:
    """The captions of some splits."""
    ids = [f"{prefix}{label}" for corpus, prefix in zip(corpora, prefixes, strict=True) for label in corpus.caption_ids]
    captions = [caption for corpus in corpora for caption in corpus.captions]

    def read(rows: np.ndarray) -> Batch:
        return Batch(rows.tolist(), [captions[row] for row in rows], [])

    return Source("captions", ids, None, None, captions, read)


def _digest_of(source: Source) -> str:
    """A hash of all ids and captions."""
    digest = hashlib.sha256()
    for part in (source.ids, source.captions or ()):
        for text in part:
            digest.update(text.encode(errors="surrogateescape") + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


@torch.no_grad()
def measuring_queries(
    loaded: Loaded, source: str, overrides: Sequence[str], splits: Sequence[str], captions: bool, file: Path | None
) -> tuple[Sets | None, Literal["images", "captions"] | None]:
    """Embed queries to measure the recall of an approximate index with: texts for images, and images for captions.

    Args:
        loaded: The model that has made the index, on its device.
        source: As in :func:`embed`.
        overrides: As in :func:`embed`.
        splits: As in :func:`embed`.
        captions: Whether the index holds captions.
        file: A file of captions, one a line; None for the other side of the source's data.

    Returns:
        The queries and their kind; None for both when the source is a folder and there is no file.

    Raises:
        InputError: The file cannot be read.
    """
    model, precision = loaded.model, loaded.config.eval.precision
    with autocast(model.device, precision):
        if file is not None:
            return model.text_sets(read_lines(file, "caption")), "captions"
        if _is_folder(source):
            return None, None
        other = find_source(loaded, source, overrides, splits, not captions)
        rows = np.unique(np.linspace(0, len(other.ids) - 1, SAMPLE).astype(np.int64))
        inputs = _as_tensors(other.read(rows).inputs)
        return (model.image_sets(inputs), "images") if captions else (model.text_sets(inputs), "captions")


def _is_folder(source: str) -> bool:
    """Whether a source is a folder of pictures, and no config or run."""
    return Path(source).is_dir() and not (Path(source) / "config.yaml").is_file()


def _is_finished(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the index is there, or was begun; if not, it is begun.

    Raises InputError when something else is in the folder, or the index was made in another way.
    """
    for name in (MANIFEST, UNFINISHED):
        if (folder / name).is_file():
            check_same_origin(folder / name, manifest, list(_COMPARED), "shards", _COMPARED)
            return name == MANIFEST
    if other := next((path for path in sorted(folder.iterdir()) if path.name != ".lock"), None):
        raise InputError(f"{folder}: holds {other.name}, which is not of an index; choose a new or empty folder")
    write_json(folder / UNFINISHED, manifest)
    return False


def _write_missing(
    folder: Path, model: VSEModel, source: Source, missing: Sequence[int], shard: int, batch_size: int, half: bool
) -> None:
    """Embed the shards that are not there yet."""
    encode = model.image_sets if source.kind == "images" else model.text_sets
    total, skipped = len(source.ids), 0
    stretches = [range(number * shard, min((number + 1) * shard, total)) for number in missing]

    def compute(batch: Batch, first: int) -> _Embedded:
        return _embed_batch(batch, encode, batch_size, half, f"the embeddings of {source.ids[first]}")

    batches = computed(source.read, compute, stretches, total, batch_size, f"embedding {source.kind}")
    for number, parts in groupby(batches, key=lambda part: part[0] // shard):
        found = list(_reported((embedded for _, embedded in parts), source, skipped))
        skipped += sum(len(part.skipped) for part in found)
        _write(folder, number, source, found, half)


def _embed_batch(batch: Batch, encode: Callable[..., Sets], batch_size: int, half: bool, what: str) -> _Embedded:
    """Embed what could be read of a batch."""
    if not batch.numbers:
        return _Embedded([], np.empty(0, dtype=np.int32), np.empty((0, 0)), batch.skipped)
    sizes, rows = sizes_and_rows(padded(encode(_as_tensors(batch.inputs), batch_size)))
    embeddings = as_written(rows.float().cpu().numpy(), half, what)
    return _Embedded(batch.numbers, sizes.cpu().numpy().astype(np.int32), embeddings, batch.skipped)


def _as_tensors(inputs: Sequence[Any]) -> list[Any]:
    """Arrays as tensors; texts as they are."""
    return [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in inputs]


def _reported(parts: Iterator[_Embedded], source: Source, before: int) -> Iterator[_Embedded]:
    """Name the first items that cannot be read; the manifest has all of them."""
    for part in parts:
        for _, reason in part.skipped[: max(0, _NAMED - before)]:
            warn(f"left out: {reason}")
        before += len(part.skipped)
        yield part


def _write(folder: Path, number: int, source: Source, found: Sequence[_Embedded], half: bool) -> None:
    """Write a shard."""
    filled = [part for part in found if part.numbers]
    rows = [part.embeddings for part in filled] or [np.empty((0, 0), dtype=np.float16 if half else np.float32)]
    sizes = np.concatenate([part.sizes for part in found])
    items = [source.item(row) for part in filled for row in part.numbers]
    skipped = [Skipped(source.ids[row], reason) for part in found for row, reason in part.skipped]
    write_shard(folder, number, Shard(np.concatenate(rows), sizes), items, skipped)
