"""What a corpus and a source of images are."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vse.data.corpus import Features
from vse.data.formats import precomp
from vse.errors import InputError


def write(folder: Path, features: np.ndarray, captions: int, ids: Iterable[Any], split: str = "dev") -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{split}_ims.npy", features)
    (folder / f"{split}_caps.txt").write_text("".join(f"caption {i}\n" for i in range(captions)))
    (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))


def images(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 2, width)).astype(np.float32)


def test_features_are_not_scanned(tmp_path: Path) -> None:
    """NaN is noticed in the rows that are read, and in no others."""
    features = images(5)
    features[3, 1, 2] = np.nan
    write(tmp_path, features, 5, ["a", "b", "c", "d", "e"])
    corpus = precomp(str(tmp_path), "dev")
    assert np.asarray(corpus.images.read(np.array([0, 4]))).shape == (2, 2, 3)
    with pytest.raises(InputError, match=r"dev_ims.npy: NaN or Inf in the features of image d \(row 3\)"):
        corpus.images.read(np.array([0, 3]))


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    """A sparse file of 33 GB, as large as COCO's, opens at once; a pickled corpus carries no features."""
    file = tmp_path / "train_ims.npy"
    with open(file, "wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (113_287, 36, 2048)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + 113_287 * 36 * 2048 * 4)
    features = Features(file)
    assert features.read(np.array([113_286])).sum() == 0
    assert len(pickle.dumps(features)) < 2_000_000
    assert np.array_equal(pickle.loads(pickle.dumps(features))[5], features[5])
