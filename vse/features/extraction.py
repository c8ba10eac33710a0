"""Extract features of a corpus's pictures and clips into the files that training reads."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vse.batchwise import as_written, check_same_origin, computed, weights_digest
from vse.build import build_image_encoder, build_transform, read_corpus
from vse.config import Config
from vse.data.clips import iterate_frames
from vse.data.corpus import Corpus
from vse.data.reading import read_json
from vse.data.transforms import open_picture, to_tensor
from vse.distributed import broadcast, is_main
from vse.errors import InputError, first_line
from vse.features.detector import Detector
from vse.files import claim_folder, remove_unfinished, write_file, write_json
from vse.runtime import autocast, pick_device, seed_everything

Arrays = dict[str, np.ndarray]
_COMPARED = ("items", "corpus_sha256", "extractor", "transform", "weights_sha256", "precision", "dtype")
_SHARED = ("extractor", "transform", "weights_sha256", "precision", "dtype")  # by all splits of a folder
_DECIDE_CELLS = {  # the arguments of encoders that decide how many cells there are and what is in them; their defaults
    "backbone": None,
    "model": None,
    "pixels": None,
    "image_size": None,
    "cls": False,
}

Steps = tuple[Callable[[np.ndarray], Any], Callable[[Any, int], Arrays]]  # from rows to inputs, from inputs to arrays


@dataclass(frozen=True)
class _Job:
    """One split's extraction."""

    config: Config
    corpus: Corpus
    folder: Path
    split: str
    model: nn.Module  # the detector, or an encoder with a backbone
    detector: Detector | None
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
    """Write the features of a config's corpus into a folder, split by split.

    Pictures become ``precomp`` files, rows in the corpus's order. They hold the cells of the config's ``grid``
    backbone, after the config's evaluation transform, or the boxes of a detector. Clips become ``features/{id}.npy``:
    the frames at the transform's ``fps``, by default all of them, each average-pooled by the config's ``video``
    backbone. ``{split}_manifest.json`` records how the files were made. Work that is finished is not repeated, even
    if the process was killed. Several processes compute a share each and the main one writes; another number of
    processes may continue.

    Args:
        config: The config, with its corpus, image encoder and transform.
        folder: The folder to write into.
        splits: The splits to extract.
        detector: Finds and describes regions, in place of the image encoder.
        half: Whether to write float16 instead of float32.

    Raises:
        InputError: The folder holds something else, or something is wrong with the corpus.
    """
    device = pick_device(config.run.device)
    model: nn.Module | None = detector
    corpora = {split: read_corpus(config, split) for split in splits}
    with claim_folder(folder, str(folder), "extracting") if is_main() else nullcontext():
        for split, corpus in corpora.items():
            kind = corpus.images.kind
            _check_corpus(corpus, detector)
            if model is None:
                seed_everything(config.run.seed)  # random weights, when there are no others
                model = build_image_encoder(config, kind)
            model.eval().to(device)
            transform = None if detector else build_transform(config, kind)
            about = _about_encoder(config, model) if detector is None else _about_detector(detector)
            manifest = _manifest(config, corpus, split, half, about)
            job = _Job(config, corpus, folder, split, model, detector, transform, half, manifest)
            if broadcast(_is_finished(job) if is_main() else None):
                print(f"{folder}: {split} is finished")
                continue
            with torch.no_grad(), autocast(device, config.run.precision):
                (_extract_clips if kind == "frames" else _extract_pictures)(job, device)


def _check_corpus(corpus: Corpus, detector: Detector | None) -> None:
    """Raise InputError for a corpus that cannot be extracted."""
    if corpus.images.kind == "features":
        raise InputError(f"{corpus.name}: has features already; expected pictures or clips")
    if detector is not None and corpus.images.kind == "frames":
        raise InputError(f"{corpus.name}: has clips, and the detector is for pictures")
    without = set(range(len(corpus.images))) - set(corpus.image_of_caption.tolist())
    if without:
        raise InputError(f"{corpus.name}: image {corpus.image_ids[min(without)]} has no caption")


def _manifest(config: Config, corpus: Corpus, split: str, half: bool, about: dict[str, Any]) -> dict[str, Any]:
    """How the features were made, in plain values."""
    rows = [*map(str, corpus.image_ids), *corpus.captions, *map(str, corpus.image_of_caption)]
    return {
        "torch": torch.__version__,
        "data": {**config.data.model_dump(include={"format", "root", "options"}), "split": split},
        "items": len(corpus.images),
        "corpus_sha256": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        **about,
        "precision": config.run.precision,
        "dtype": "float16" if half else "float32",
    }


def _about_detector(detector: Detector) -> dict[str, Any]:
    """The part of a manifest about a detector."""
    return {
        "weights": detector.weights,
        "extractor": detector.settings,
        "transform": None,
        "weights_sha256": weights_digest(detector.state_dict()),
    }


def _about_encoder(config: Config, encoder: nn.Module) -> dict[str, Any]:
    """The part of a manifest about an encoder with a backbone and the transform before it.

    Of the arguments that decide the cells, those with their defaults are left out, as in :func:`_about_transform`.
    """
    arguments = config.model.image.encoder.arguments
    extractor = {name: arguments[name] for name, usual in _DECIDE_CELLS.items() if arguments.get(name, usual) != usual}
    backbone = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith("backbone.")}
    return {
        "weights": arguments.get("weights"),
        "extractor": extractor,
        "transform": _about_transform(config),
        "weights_sha256": weights_digest(backbone),
    }


def _about_transform(config: Config) -> dict[str, Any] | None:
    """The settings of a transform that have an effect in evaluation.

    Settings that are newer than the first manifests appear only if they differ from their defaults, so that old
    manifests still compare as equal.
    """
    if config.data.transform is None:
        return None
    settings = config.data.transform.model_dump()
    about = {name: value for name, value in settings.items() if name in ("name", "size", "resize")}
    later = {"fps": None, "antialias": True}
    return about | {name: settings[name] for name, usual in later.items() if settings.get(name, usual) != usual}


def _is_finished(job: _Job) -> bool:
    """Whether the split's features are there, or were begun; if not, it is begun.

    Raises InputError when something else made what is in the folder.
    """
    for path in job.folder.glob("*_manifest.json"):
        check_same_origin(path, job.manifest, _COMPARED if path == job.result else _SHARED)
    clips = job.corpus.images.kind == "frames"
    targets = [job.folder / f"{job.split}_{name}" for name in ("ims.npy", "caps.txt", "ids.txt")]
    if clips:
        targets = [job.folder / "features" / f"{label}.npy" for label in job.corpus.image_ids]
    if job.result.is_file():
        if missing := [path for path in targets if not path.is_file()]:
            raise InputError(
                f"{missing[0]}: is missing, though {job.result.name} says that the split is finished; remove that file"
            )
        return True
    if job.journal.is_file():
        check_same_origin(job.journal, job.manifest, _COMPARED)
        return False
    if not clips and (job.folder / "precomp").is_dir():
        raise InputError(
            f"{job.folder / 'precomp'}: training would read this folder and not the files extracted beside it; "
            f"choose another folder"
        )
    if there := [path for path in targets if path.exists()]:
        raise InputError(
            f"{there[0]}: exists already, and no manifest says what made it; remove it or choose another folder"
        )
    write_json(job.journal, job.manifest)
    return False


def _extract_pictures(job: _Job, device: torch.device) -> None:
    """Precomp files of one split."""
    read, compute = _backbone_steps(job, device) if job.detector is None else _detector_steps(job, job.detector, device)
    total, size, title = len(job.corpus.images), job.config.eval.batch_size, f"extracting {job.split}"
    rows = RowWriter(job.folder, job.split, total, job.manifest) if is_main() else None
    done = broadcast(rows.done if rows else None)
    for start, arrays in computed(read, compute, [range(done, total)], total, size, title):
        if rows:
            arrays["ims"] = as_written(arrays["ims"], job.half, f"the features of image {job.corpus.image_ids[start]}")
            rows.write(start, arrays)
    if rows:
        _write_captions(job)
        rows.finish()


def _write_captions(job: _Job) -> None:
    """The captions in the order of their images, and the image of each."""
    corpus = job.corpus
    order = np.argsort(corpus.image_of_caption, kind="stable")
    captions = [" ".join(corpus.captions[i].split()) for i in order]
    labels = [str(corpus.image_ids[corpus.image_of_caption[i]]) for i in order]
    for name, lines in (("caps", captions), ("ids", labels)):
        text = "".join(f"{line}\n" for line in lines).encode()
        write_file(job.folder / f"{job.split}_{name}.txt", lambda file, text=text: file.write(text))  # type: ignore[misc]


def _detector_steps(job: _Job, detector: Detector, device: torch.device) -> Steps:
    """Read pictures as they are, and detect regions in them."""
    images, threads = job.corpus.images, max(1, job.config.data.workers)

    def read(rows: np.ndarray) -> Any:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda row: to_tensor(open_picture(images[row])), rows))

    def compute(pictures: Any, first: int) -> Arrays:
        names = [str(images[first + n]) for n in range(len(pictures))]
        return detector([picture.to(device) for picture in pictures], names)

    return read, compute


def _backbone_steps(job: _Job, device: torch.device) -> Steps:
    """Read transformed pictures, and compute the cells of their feature maps."""
    images = job.corpus.images.transformed(job.transform, job.config.run.seed, job.config.data.workers)
    encoder: Any = job.model

    def read(rows: np.ndarray) -> Any:
        return torch.from_numpy(images.read(rows))

    def compute(pictures: Any, first: int) -> Arrays:
        cells: Tensor = encoder.backbone(encoder.normalise(pictures.to(device)))
        return {"ims": cells.float().cpu().numpy()}

    return read, compute


def _extract_clips(job: _Job, device: torch.device) -> None:
    """One file of frame features per clip."""
    encoder: Any = job.model
    size, labels = job.config.eval.batch_size, job.corpus.image_ids
    files = [job.folder / "features" / f"{label}.npy" for label in labels]
    waiting = broadcast(_waiting_clips(files) if is_main() else None)

    def read(rows: np.ndarray) -> Any:
        path = job.corpus.images[waiting[rows[0]]]
        return torch.stack([job.transform.evaluate(frame) for frame in iterate_frames(path, job.transform.fps)])

    def compute(frames: Any, first: int) -> Arrays:
        parts = [encoder.normalise(part.to(device)) for part in frames.split(size)]
        pooled = [encoder.backbone(part).mean(1).float().cpu() for part in parts]
        return {"frames": torch.cat(pooled).numpy()}

    for start, arrays in computed(read, compute, [range(len(waiting))], len(waiting), 1, f"extracting {job.split}"):
        row = waiting[start]
        values = as_written(arrays["frames"], job.half, f"the features of clip {labels[row]}")
        write_file(files[row], lambda file, values=values: np.save(file, values))  # type: ignore[misc]
    if is_main():
        write_json(job.result, job.manifest)
        job.journal.unlink()


def _waiting_clips(files: list[Path]) -> list[int]:
    """Which clips have no file yet; what a process that was killed while writing has left is removed."""
    place = files[0].parent
    place.mkdir(exist_ok=True)
    remove_unfinished(place)
    return [row for row, file in enumerate(files) if not file.exists()]


class RowWriter:
    """Arrays of a known number of rows, written in order; what a killed process has written is kept.

    ``{split}_{name}.npy`` appear when all rows are there, and then the manifest.

    Args:
        folder: The folder to write into.
        split: The split.
        rows: Number of rows.
        manifest: What made the arrays, in plain values.

    Raises:
        InputError: The journal of what is unfinished is damaged, or the disk has no room for all rows; on Linux that is
            known before the first row is written.
    """

    def __init__(self, folder: Path, split: str, rows: int, manifest: dict[str, Any]) -> None:
        self.folder, self.split, self.rows, self.manifest = folder, split, rows, manifest
        self.journal = folder / f".{split}_unfinished.json"
        known = read_json(self.journal) if self.journal.is_file() else {}
        self.done: int = known.get("done", 0)
        try:
            self.arrays = {name: self._open(name, kind) for name, kind in known.get("shapes", {}).items()}
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.journal}: an array that it lists is damaged ({first_line(error)}); remove it"
            ) from None

    @property
    def shapes(self) -> dict[str, list[Any]]:
        """Shape and type of each array."""
        return {name: [*array.shape, str(array.dtype)] for name, array in self.arrays.items()}

    def write(self, start: int, values: Arrays) -> None:
        """Write some rows.

        Args:
            start: The number of the first one.
            values: The arrays' rows, by name; those of the first call decide the arrays' shapes.

        Raises:
            InputError: The disk has no room.
        """
        for name, value in values.items():
            if name not in self.arrays:
                shape = (self.rows, *value.shape[1:])
                file = self.folder / f".unfinished_{self.split}_{name}.npy"
                self.arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=value.dtype, shape=shape)
                try:
                    _claim_space(file)
                except OSError as error:
                    file.unlink()
                    raise InputError(f"{file}: cannot be written ({error.strerror})") from None
            self.arrays[name][start : start + len(value)] = value
            self.done = start + len(value)
        for array in self.arrays.values():
            array.flush()
        write_json(self.journal, {**self.manifest, "done": self.done, "shapes": self.shapes})

    def finish(self) -> None:
        """Put the arrays in their places and say so in the manifest."""
        for name in self.arrays:
            os.replace(self._file(name), self._file(name, finished=True))
        write_json(self.folder / f"{self.split}_manifest.json", {**self.manifest, "arrays": self.shapes})
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


def _claim_space(file: Path) -> None:
    """Raise OSError if the disk is full; later, writing to a memory map would crash. Not every system supports this."""
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
