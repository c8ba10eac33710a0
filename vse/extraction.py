"""Features of a corpus's own pictures and clips, written as the files that training reads."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vse.build import build_image_encoder, build_transform, read_corpus
from vse.checkpoint import write_file
from vse.config import Config
from vse.data.clips import Clip, Clips, read_frames
from vse.data.corpora import Corpus
from vse.data.transforms import Pictures, open_picture, to_tensor
from vse.detector import Detector
from vse.errors import InputError
from vse.runtime import autocast, claim_folder, pick_device

Arrays = dict[str, np.ndarray]


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
    with claim_folder(folder):
        for split in splits:
            corpus = read_corpus(config, split)
            if hasattr(corpus.images, "width"):
                raise InputError(f"{corpus.name}: has features already; expected pictures or clips")
            clips = isinstance(corpus.images, Clips)
            if detector is not None and clips:
                raise InputError(f"{corpus.name}: has clips, and the detector is for pictures")
            model: nn.Module = detector or build_image_encoder(config, "frames" if clips else "pictures")
            model.eval().to(device)
            manifest = _manifest(config, corpus, split, model, detector, half)
            kind = np.float16 if half else np.float32
            with torch.no_grad(), autocast(device, config.run.precision):
                if clips:
                    _extract_clips(config, corpus, folder, split, model, device, kind, manifest)
                else:
                    _extract_pictures(config, corpus, folder, split, model, device, kind, manifest)


def _manifest(
    config: Config, corpus: Corpus, split: str, model: nn.Module, detector: Detector | None, half: bool
) -> dict[str, Any]:
    """What decides the features, in plain values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if detector is not None or name.startswith("backbone."):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    transform = None if config.data.transform is None else config.data.transform.model_dump()
    return {
        "torch": torch.__version__,
        "data": {
            "format": config.data.format,
            "root": config.data.root,
            "options": config.data.options,
            "split": split,
        },
        "items": len(corpus.images),
        "ids_sha256": hashlib.sha256("\n".join(map(str, corpus.image_ids)).encode()).hexdigest(),
        "extractor": detector.settings if detector else config.model.image.encoder.model_dump(),
        "transform": None if detector else transform,
        "weights_sha256": digest.hexdigest(),
        "precision": config.run.precision,
        "dtype": "float16" if half else "float32",
    }


def _extract_pictures(
    config: Config,
    corpus: Corpus,
    folder: Path,
    split: str,
    model: nn.Module,
    device: torch.device,
    kind: type,
    manifest: dict[str, Any],
) -> None:
    """Precomp files of one split."""
    if _is_finished(folder, split, manifest):
        return
    size = config.eval.batch_size
    if isinstance(model, Detector):
        paths = corpus.images

        def read(rows: np.ndarray) -> Any:
            return [to_tensor(open_picture(paths[row])) for row in rows]

        def compute(pictures: Any) -> Arrays:
            return model([picture.to(device) for picture in pictures])

    else:
        source = Pictures(corpus.images, build_transform(config, "pictures"), threads=config.data.workers)

        def read(rows: np.ndarray) -> Any:
            return torch.from_numpy(source.read(rows))

        def compute(pictures: Any) -> Arrays:
            cells: Tensor = model.backbone(model.normalise(pictures.to(device)))  # type: ignore[operator]
            return {"ims": cells.float().cpu().numpy()}

    rows = RowWriter(folder, split, len(corpus.images), manifest)
    for start, arrays in _computed(read, compute, rows.done, len(corpus.images), size, f"extracting {split}"):
        if "ims" in arrays:
            arrays["ims"] = _as_kind(arrays["ims"], kind, f"image {corpus.image_ids[start]}")
        rows.write(start, arrays)
    order = np.argsort(corpus.image_of_caption, kind="stable")
    captions = [" ".join(corpus.captions[i].split()) for i in order]
    labels = [str(corpus.image_ids[corpus.image_of_caption[i]]) for i in order]
    for name, lines in (("caps", captions), ("ids", labels)):
        text = "".join(f"{line}\n" for line in lines)
        write_file(folder / f"{split}_{name}.txt", lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    rows.finish()


def _extract_clips(
    config: Config,
    corpus: Corpus,
    folder: Path,
    split: str,
    model: nn.Module,
    device: torch.device,
    kind: type,
    manifest: dict[str, Any],
) -> None:
    """One file of frame features per clip."""
    place, unfinished = folder / "features", folder / f".{split}_unfinished.json"
    if _is_finished(folder, split, manifest):
        return
    _claim(unfinished, manifest, folder)
    place.mkdir(exist_ok=True)
    transform = build_transform(config, "frames")
    assert isinstance(transform, Clip)
    files = [place / f"{label}.npy" for label in corpus.image_ids]
    waiting = [row for row, file in enumerate(files) if not file.exists()]

    def read(rows: np.ndarray) -> Any:
        frames = read_frames(corpus.images[waiting[rows[0]]], np.arange)
        return torch.stack([to_tensor(frame) for frame in transform.evaluate(frames)])

    def compute(frames: Any) -> Arrays:
        parts = frames.split(config.eval.batch_size)
        pooled = [model.backbone(model.normalise(part.to(device))).mean(1) for part in parts]  # type: ignore[operator]
        return {"frames": torch.cat(pooled).float().cpu().numpy()}

    for start, arrays in _computed(read, compute, 0, len(waiting), 1, f"extracting {split}"):
        label = corpus.image_ids[waiting[start]]
        values = _as_kind(arrays["frames"], kind, f"clip {label}")
        write_file(files[waiting[start]], lambda file, values=values: np.save(file, values))  # type: ignore[misc]
    _write_json(folder / f"{split}_manifest.json", manifest)
    unfinished.unlink()


def _computed(
    read: Callable[[np.ndarray], Any], compute: Callable[[Any], Arrays], first: int, total: int, size: int, title: str
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
            yield start, compute(batch)
            bar.update(min(size, total - start))


def _as_kind(values: np.ndarray, kind: type, first: str) -> np.ndarray:
    """Numbers of the kind that is written. Raises InputError when they do not fit it."""
    with np.errstate(over="ignore"):
        converted: np.ndarray = values.astype(kind)
    if not np.isfinite(converted).all():
        raise InputError(f"features of {first} or the next ones are not finite numbers of {np.dtype(kind)}")
    return converted


class RowWriter:
    """Arrays of a known number of rows, written in order; what a killed process has written is kept.

    ``{split}_{name}.npy`` appear when all rows are there. Raises InputError when ``folder`` holds another unfinished
    extraction of the split.
    """

    def __init__(self, folder: Path, split: str, rows: int, manifest: dict[str, Any]) -> None:
        self.folder, self.split, self.rows = folder, split, rows
        self.journal = folder / f".{split}_unfinished.json"
        known = _claim(self.journal, manifest, folder)
        self.manifest = manifest
        self.done: int = known.get("done", 0)
        self.arrays = {name: np.lib.format.open_memmap(self._file(name), mode="r+") for name in known.get("shapes", {})}

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
            self.arrays[name][start : start + len(value)] = value
        for array in self.arrays.values():
            array.flush()
        self.done = start + len(value)
        _write_json(self.journal, {"manifest": self.manifest, "done": self.done, "shapes": self.shapes})

    def finish(self) -> None:
        """Put the arrays in their places and say so in the manifest."""
        for name in self.arrays:
            os.replace(self._file(name), self._file(name, finished=True))
        _write_json(self.folder / f"{self.split}_manifest.json", {**self.manifest, "arrays": self.shapes})
        self.journal.unlink()

    def _file(self, name: str, finished: bool = False) -> Path:
        """An array's place; of one that is finished already, though the process was killed then, that of the result."""
        result, unfinished = (self.folder / f"{p}{self.split}_{name}.npy" for p in ("", ".unfinished_"))
        return result if finished or (result.exists() and not unfinished.exists()) else unfinished


def _is_finished(folder: Path, split: str, manifest: dict[str, Any]) -> bool:
    """Whether the split's features are there. Raises InputError when something else made what is there."""
    file = folder / f"{split}_manifest.json"
    if not file.is_file():
        return False
    _same(json.loads(file.read_text()), manifest, file)
    print(f"{folder}: {split} is finished")
    return True


def _claim(journal: Path, manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What an unfinished extraction has done so far; begin one when there is none."""
    if not journal.is_file():
        _write_json(journal, {"manifest": manifest})
        return {}
    known: dict[str, Any] = json.loads(journal.read_text())
    _same(known.get("manifest", {}), manifest, journal)
    return known


def _same(found: dict[str, Any], manifest: dict[str, Any], file: Path) -> None:
    differ = [key for key, value in json.loads(json.dumps(manifest)).items() if found.get(key) != value]
    if differ := [key for key in differ if key not in ("torch", "root")]:
        raise InputError(f"{file}: made with another {', '.join(differ)}; remove it or choose another folder")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
