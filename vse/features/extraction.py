"""Features of a corpus's own pictures and clips, written as the files that training reads."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vse.build import build_image_encoder, build_transform, read_corpus
from vse.config import Config
from vse.data.clips import Clips, iterate_frames
from vse.data.corpus import Corpus
from vse.data.formats import read_json
from vse.data.transforms import Pictures, open_picture, to_tensor
from vse.errors import InputError, first_line
from vse.features.detector import Detector
from vse.files import claim_folder, write_file
from vse.runtime import autocast, pick_device, seed_everything

Arrays = dict[str, np.ndarray]
_COMPARED = ("items", "corpus_sha256", "extractor", "transform", "weights_sha256", "precision", "dtype")
_SHARED = ("extractor", "transform", "weights_sha256", "precision", "dtype")  # by all splits of a folder


@dataclass(frozen=True)
class _Job:
    """One split's extraction."""

    config: Config
    corpus: Corpus
    folder: Path
    split: str
    model: nn.Module  # the detector, or an encoder with a backbone
    transform: Any
    half: bool
    manifest: dict[str, Any]

    @property
    def journal(self) -> Path:
        return self.folder / f".{self.split}_unfinished.json"

    @property
    def result(self) -> Path:
        return self.folder / f"{self.split}_manifest.json"


def extract_features(
    config: Config, folder: Path, splits: list[str], detector: Detector | None = None, half: bool = False
) -> None:
    """Write the features of a config's corpus into ``folder``, split by split.

    Pictures become ``precomp`` files, rows in the corpus's order: the cells of the config's ``grid`` backbone, its
    evaluation transform before it, or the boxes of a ``detector``. Clips become ``features/{id}.npy``, all their frames
    average-pooled by the config's ``video`` backbone. Float16 with ``half``. ``{split}_manifest.json`` says what made
    them. What is finished is not done again, also after the process was killed. Raises InputError for a folder that
    holds something else, and for anything wrong with the corpus.
    """
    device = pick_device(config.run.device)
    model: nn.Module | None = detector
    with claim_folder(folder, str(folder), "extracting"):
        for split in dict.fromkeys(splits):
            corpus = read_corpus(config, split)
            if hasattr(corpus.images, "width"):
                raise InputError(f"{corpus.name}: has features already; expected pictures or clips")
            kind = "frames" if isinstance(corpus.images, Clips) else "pictures"
            if detector is not None and kind == "frames":
                raise InputError(f"{corpus.name}: has clips, and the detector is for pictures")
            without = set(range(len(corpus.images))) - set(corpus.image_of_caption.tolist())
            if without:
                raise InputError(f"{corpus.name}: image {corpus.image_ids[min(without)]} has no caption")
            if model is None:
                seed_everything(config.run.seed)  # random weights, when there are no others
                model = build_image_encoder(config, kind)
            model.eval().to(device)
            transform = None if detector else build_transform(config, kind)
            manifest = _manifest(config, corpus, split, model, transform, half)
            job = _Job(config, corpus, folder, split, model, transform, half, manifest)
            if _is_finished(job):
                print(f"{folder}: {split} is finished")
                continue
            with torch.no_grad(), autocast(device, config.run.precision):
                (_extract_clips if kind == "frames" else _extract_pictures)(job, device)


def _manifest(
    config: Config, corpus: Corpus, split: str, model: nn.Module, transform: Any, half: bool
) -> dict[str, Any]:
    """What made the features, in plain values; what decides them is compared."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(model, Detector) or name.startswith("backbone."):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    rows = [*map(str, corpus.image_ids), *corpus.captions, *map(str, corpus.image_of_caption)]
    encoder = config.model.image.encoder.arguments
    shown = ("size", "resize")
    return {
        "torch": torch.__version__,
        "data": {**config.data.model_dump(include={"format", "root", "options"}), "split": split},
        "weights": model.weights if isinstance(model, Detector) else encoder.get("weights"),
        "items": len(corpus.images),
        "corpus_sha256": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        "extractor": model.settings
        if isinstance(model, Detector)
        else {"backbone": encoder["backbone"], "pixels": encoder["pixels"]},
        "transform": None
        if config.data.transform is None or transform is None
        else {k: v for k, v in config.data.transform.model_dump().items() if k in (*shown, "name")},
        "weights_sha256": digest.hexdigest(),
        "precision": config.run.precision,
        "dtype": "float16" if half else "float32",
    }


def _is_finished(job: _Job) -> bool:
    """Whether the split's features are there, or were begun; if not, it is begun.

    Raises InputError when something else made what is in the folder.
    """
    for path in job.folder.glob("*_manifest.json"):
        _same(path, job.manifest, _COMPARED if path == job.result else _SHARED)
    clips = isinstance(job.corpus.images, Clips)
    targets = [job.folder / f"{job.split}_{name}" for name in ("ims.npy", "caps.txt", "ids.txt")]
    if clips:
        targets = [job.folder / "features" / f"{label}.npy" for label in job.corpus.image_ids]
    if job.result.is_file():
        if missing := [path for path in targets if not path.is_file()]:
            says = f"though {job.result.name} says that it is finished; remove that"
            raise InputError(f"{missing[0]}: is missing, {says}")
        return True
    if job.journal.is_file():
        _same(job.journal, job.manifest, _COMPARED)
        return False
    if not clips and (job.folder / "precomp").is_dir():
        raise InputError(f"{job.folder / 'precomp'}: training would read that and not what is extracted beside it")
    if there := [path for path in targets if path.exists()]:
        raise InputError(f"{there[0]}: is there, and no manifest says what made it; remove it or choose another folder")
    _write_json(job.journal, job.manifest)
    return False


def _same(path: Path, manifest: dict[str, Any], keys: Sequence[str]) -> None:
    """Raise InputError when a manifest differs from this one."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged; remove it with the features beside it")
    wanted = json.loads(json.dumps(manifest))
    if differ := [key for key in keys if found.get(key) != wanted[key]]:
        raise InputError(
            f"{path}: made with another {', '.join(differ)}; remove it with its features, or choose another folder"
        )


def _extract_pictures(job: _Job, device: torch.device) -> None:
    """Precomp files of one split."""
    config, corpus, model = job.config, job.corpus, job.model
    paths, threads = corpus.images, max(1, config.data.workers)
    if isinstance(model, Detector):

        def read(rows: np.ndarray) -> Any:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(lambda row: to_tensor(open_picture(paths[row])), rows))

        def compute(pictures: Any, first: int) -> Arrays:
            names = [str(paths[first + n]) for n in range(len(pictures))]
            return model([picture.to(device) for picture in pictures], names)

    else:
        source = Pictures(paths, job.transform, threads=threads)
        source.check()

        def read(rows: np.ndarray) -> Any:
            return torch.from_numpy(source.read(rows))

        def compute(pictures: Any, first: int) -> Arrays:
            cells: Tensor = model.backbone(model.normalise(pictures.to(device)))  # type: ignore[operator]
            return {"ims": cells.float().cpu().numpy()}

    rows = RowWriter(job.folder, job.split, len(paths), job.manifest)
    title = f"extracting {job.split}"
    for start, arrays in _computed(read, compute, rows.done, len(paths), config.eval.batch_size, title):
        arrays["ims"] = _as_kind(arrays["ims"], job.half, f"image {corpus.image_ids[start]}")
        rows.write(start, arrays)
    order = np.argsort(corpus.image_of_caption, kind="stable")
    captions = [" ".join(corpus.captions[i].split()) for i in order]
    labels = [str(corpus.image_ids[corpus.image_of_caption[i]]) for i in order]
    for name, lines in (("caps", captions), ("ids", labels)):
        text = "".join(f"{line}\n" for line in lines).encode()
        write_file(job.folder / f"{job.split}_{name}.txt", lambda file, text=text: file.write(text))  # type: ignore[misc]
    rows.finish()


def _extract_clips(job: _Job, device: torch.device) -> None:
    """One file of frame features per clip."""
    model, size, labels = job.model, job.config.eval.batch_size, job.corpus.image_ids
    place = job.folder / "features"
    place.mkdir(exist_ok=True)
    for unfinished in place.glob(".*.tmp"):  # of a process that was killed while writing
        unfinished.unlink()
    files = [place / f"{label}.npy" for label in labels]
    waiting = [row for row, file in enumerate(files) if not file.exists()]

    def read(rows: np.ndarray) -> Any:
        path = job.corpus.images[waiting[rows[0]]]
        frames = [to_tensor(job.transform.evaluate(frame)) for frame in iterate_frames(path)]
        return torch.stack(frames)

    def compute(frames: Any, first: int) -> Arrays:
        parts = [model.normalise(part.to(device)) for part in frames.split(size)]  # type: ignore[operator]
        pooled = [model.backbone(part).mean(1).float().cpu() for part in parts]  # type: ignore[operator]
        return {"frames": torch.cat(pooled).numpy()}

    for start, arrays in _computed(read, compute, 0, len(waiting), 1, f"extracting {job.split}"):
        row = waiting[start]
        values = _as_kind(arrays["frames"], job.half, f"clip {labels[row]}")
        write_file(files[row], lambda file, values=values: np.save(file, values))  # type: ignore[misc]
    _write_json(job.result, job.manifest)
    job.journal.unlink()


def _computed(
    read: Callable[[np.ndarray], Any],
    compute: Callable[[Any, int], Arrays],
    first: int,
    total: int,
    size: int,
    title: str,
) -> Iterator[tuple[int, Arrays]]:
    """Rows' numbers and arrays, batch by batch; the next batch is read meanwhile."""
    starts = list(range(first, total, size))
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(total=total, initial=first, desc=title, unit=" items", unit_scale=True) as bar,
    ):
        waiting = None
        for number, start in enumerate(starts):
            batch = (waiting or pool.submit(read, np.arange(start, min(start + size, total)))).result()
            if number + 1 < len(starts):
                following = starts[number + 1]
                waiting = pool.submit(read, np.arange(following, min(following + size, total)))
            yield start, compute(batch, start)
            bar.update(min(size, total - start))


def _as_kind(values: np.ndarray, half: bool, first: str) -> np.ndarray:
    """Numbers of the kind that is written. Raises InputError when they do not fit it."""
    with np.errstate(over="ignore"):
        converted: np.ndarray = values.astype(np.float16 if half else np.float32)
    if not np.isfinite(converted).all():
        raise InputError(f"features of {first} or the next ones are not finite numbers of {converted.dtype}")
    return converted


class RowWriter:
    """Arrays of a known number of rows, written in order; what a killed process has written is kept.

    ``{split}_{name}.npy`` appear when all rows are there, and then the manifest. Raises InputError for a damaged
    journal, and when the disk has no room for all rows: that is known before the first is written.
    """

    def __init__(self, folder: Path, split: str, rows: int, manifest: dict[str, Any]) -> None:
        self.folder, self.split, self.rows, self.manifest = folder, split, rows, manifest
        self.journal = folder / f".{split}_unfinished.json"
        known = read_json(self.journal) if self.journal.is_file() else {}
        self.done: int = known.get("done", 0)
        try:
            self.arrays = {name: self._open(name, kind) for name, kind in known.get("shapes", {}).items()}
        except (OSError, ValueError) as error:
            raise InputError(f"{self.journal}: what it tells of is damaged ({first_line(error)}); remove it") from None

    @property
    def shapes(self) -> dict[str, list[Any]]:
        """Shape and type of each array."""
        return {name: [*array.shape, str(array.dtype)] for name, array in self.arrays.items()}

    def write(self, start: int, values: Arrays) -> None:
        """Write rows from ``start`` on; the first ones decide the shapes."""
        for name, value in values.items():
            if name not in self.arrays:
                shape = (self.rows, *value.shape[1:])
                file = self.folder / f".unfinished_{self.split}_{name}.npy"
                self.arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=value.dtype, shape=shape)
                try:
                    with open(file, "r+b") as opened:  # a full disk is told now; a memory map would only crash
                        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
                except OSError as error:
                    file.unlink()
                    raise InputError(f"{file}: cannot be written ({error.strerror})") from None
            self.arrays[name][start : start + len(value)] = value
            self.done = start + len(value)
        for array in self.arrays.values():
            array.flush()
        _write_json(self.journal, {**self.manifest, "done": self.done, "shapes": self.shapes})

    def finish(self) -> None:
        """Put the arrays in their places and say so in the manifest."""
        for name in self.arrays:
            os.replace(self._file(name), self._file(name, finished=True))
        _write_json(self.folder / f"{self.split}_manifest.json", {**self.manifest, "arrays": self.shapes})
        self.journal.unlink(missing_ok=True)

    def _open(self, name: str, kind: list[Any]) -> np.memmap:
        """An array that is being written; numpy would fill up a file that was cut short."""
        *shape, dtype = kind
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._file(name).stat().st_size <= size:
            raise ValueError(f"{self._file(name).name} is truncated")
        return np.lib.format.open_memmap(self._file(name), mode="r+")

    def _file(self, name: str, finished: bool = False) -> Path:
        """An array's place; of one that is finished already, though the process was killed then, that of the result."""
        result, unfinished = (self.folder / f"{p}{self.split}_{name}.npy" for p in ("", ".unfinished_"))
        return result if finished or (result.exists() and not unfinished.exists()) else unfinished


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
