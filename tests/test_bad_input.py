"""Damaged data files get one line on stderr and exit code 2; mistakes in Python get a ValueError of one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Outcome, karpathy_file

from vse.training.run import Training

Cli = Callable[..., Outcome]


def precomp_file(folder: Path, name: str) -> Path:
    return folder / "precomp" / name


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)), allow_pickle=True)


def set_line(path: Path, number: int, text: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = text
    path.write_bytes(b"\n".join(lines))


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array[3, 1, 2] = value
    return array


FILE_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no features": (
        lambda f: precomp_file(f, "train_ims.npy").unlink(),
        "train_ims.npy: no such file; expected train_ims.npy, train_caps.txt and train_ids.txt in",
    ),
    "no captions": (lambda f: precomp_file(f, "dev_caps.txt").unlink(), "dev_caps.txt: no such file; expected"),
    "no ids": (lambda f: precomp_file(f, "train_ids.txt").unlink(), "train_ids.txt: no such file; expected"),
    "counts": (
        lambda f: rewrite(precomp_file(f, "train_ims.npy"), lambda a: a[:-1]),
        "train_ims.npy holds 23 rows but",
    ),
    "2-D": (
        lambda f: rewrite(precomp_file(f, "train_ims.npy"), lambda a: a[0]),
        "train_ims.npy: expected a float32 or float16 array (rows, regions, width), found float32 of shape (6, 12)",
    ),
    "integers": (
        lambda f: rewrite(precomp_file(f, "train_ims.npy"), lambda a: a.astype(np.int64)),
        "train_ims.npy: expected a float32 or float16 array (rows, regions, width), found int64",
    ),
    "pickled objects": (
        lambda f: rewrite(precomp_file(f, "train_ims.npy"), lambda a: a.astype(object)),
        "train_ims.npy: not a complete .npy file of numbers",
    ),
    "truncated": (
        lambda f: os.truncate(precomp_file(f, "train_ims.npy"), 900),
        "train_ims.npy: not a complete .npy file of numbers",
    ),
    "cut in its header": (
        lambda f: os.truncate(precomp_file(f, "train_ims.npy"), 20),
        "train_ims.npy: not a complete .npy file of numbers",
    ),
    "no .npy file": (
        lambda f: precomp_file(f, "train_ims.npy").write_bytes(b"hello, this is text" * 50),
        "train_ims.npy: not a complete .npy file of numbers",
    ),
    "empty file": (
        lambda f: precomp_file(f, "train_ims.npy").write_bytes(b""),
        "train_ims.npy: not a complete .npy file of numbers",
    ),
    "NaN": (
        lambda f: rewrite(precomp_file(f, "train_ims.npy"), lambda a: with_value(a, np.nan)),
        "train_ims.npy: NaN or Inf in the features of image 1003 (row 3)",
    ),
    "Inf in dev": (
        lambda f: rewrite(precomp_file(f, "dev_ims.npy"), lambda a: np.where(np.isfinite(a), np.inf, a)),
        "dev_ims.npy: NaN or Inf in the features of image 1000 (row 0)",
    ),
    "empty caption": (
        lambda f: set_line(precomp_file(f, "train_caps.txt"), 7, b"  "),
        "train_caps.txt: line 7 is empty; expected one caption on every line",
    ),
    "not UTF-8": (
        lambda f: set_line(precomp_file(f, "train_caps.txt"), 9, "café".encode("latin-1")),
        "train_caps.txt: line 9 is not UTF-8",
    ),
    "widths": (
        lambda f: rewrite(precomp_file(f, "dev_ims.npy"), lambda a: a[..., :-2]),
        "train has features 12 wide, but",
    ),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_bad_file(cli: Cli, tiny: list[str], corpus_folder: Path, case: str) -> None:
    damage, message = FILE_CASES[case]
    damage(corpus_folder)
    outcome = cli("train", *tiny)
    assert outcome.code == 2 and message in outcome.error


def test_nan_noticed_by_a_worker(cli: Cli, tiny: list[str], corpus_folder: Path) -> None:
    damage, message = FILE_CASES["NaN"]
    damage(corpus_folder)
    assert message in cli("train", *tiny, "data.workers=2").error


@pytest.mark.parametrize("workers", [0, 2])
def test_features_that_change_under_a_run(
    cli: Cli, tiny: list[str], corpus_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    step = Training.train_step

    def change(training: Training, batch: Any) -> Any:
        if training.total_steps == 3:
            np.save(corpus_folder / "new.npy", np.load(precomp_file(corpus_folder, "train_ims.npy")) * 2)
            os.replace(corpus_folder / "new.npy", precomp_file(corpus_folder, "train_ims.npy"))
        return step(training, batch)

    monkeypatch.setattr(Training, "train_step", change)
    outcome = cli("train", *tiny, "train.epochs=20", f"data.workers={workers}")
    assert outcome.code == 2 and "train_ims.npy: has changed while it was in use; start again" in outcome.error


def test_bad_test_split(cli: Cli, tiny: list[str], corpus_folder: Path, tmp_path: Path) -> None:
    cli("train", *tiny, "train.epochs=1")
    rewrite(precomp_file(corpus_folder, "test_ims.npy"), lambda a: a[..., :-2])
    outcome = cli("eval", tmp_path / "run")
    assert outcome.code == 2 and "its features are 10 wide, but the model reads 12" in outcome.error
    rewrite(precomp_file(corpus_folder, "test_ims.npy"), lambda a: np.full((50, 6, 12), np.nan, np.float32))
    assert "test_ims.npy: NaN or Inf in the features of image 1000" in cli("eval", tmp_path / "run").error
    assert not (tmp_path / "run" / "test.json").exists()


def test_pictures_for_a_region_encoder(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    root = karpathy_file(tmp_path / "pictures")
    outcome = cli("train", *tiny, "data.format=karpathy", f"data.root={root}")
    assert outcome.code == 2 and "regions reads features, but" in outcome.error and "has pictures" in outcome.error


def test_messages_of_the_library(tmp_path: Path, cli: Cli, tiny: list[str]) -> None:
    import vse

    cli("train", *tiny, "train.epochs=1")
    model = vse.load(tmp_path / "run")
    for call, message in (
        (lambda: model.encode_texts(b"bytes"), "texts must be a string or a list of strings, got bytes"),  # type: ignore[arg-type]
        (lambda: model.encode_texts(["a", " "]), "caption 1 is empty"),
        (lambda: model.encode_texts([]), "nothing to encode: the list is empty"),
        (lambda: model.encode_texts(["a"], batch_size=0), "batch_size must be at least 1, got 0"),
        (
            lambda: model.encode_images(["a.jpg"]),
            "image 0: expected a .regions, width. tensor or array of features, got str",
        ),
        (lambda: model.encode_images([torch.zeros(12)]), r"image 0: .* got torch.float32 \(12,\)"),
        (lambda: model.encode_images([torch.zeros(2, 12).long()]), r"image 0: .* got torch.int64 \(2, 12\)"),
        (lambda: model.encode_images([torch.zeros(2, 12), torch.zeros(2, 9)]), "image 1 is 9 wide, but image 0 is 12"),
        (lambda: vse.load(tmp_path / "run", padding="none"), "padding must be 'masked' or 'released', got 'none'"),
        (lambda: model.encode_images([torch.zeros(3, 9)]), "features must be 12 wide, got 9"),
        (lambda: model.similarity(torch.zeros(2, 2, 8), torch.zeros(2, 1, 8)), "cosine compares single embeddings"),
        (lambda: model.similarity(torch.zeros(2, 8), torch.zeros(2, 1, 8)), r"expected \(A, K, H\) and \(C, L, H\)"),
        (lambda: vse.load(tmp_path), "no best.pt or last.pt"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    image = torch.randn(3, 12)
    expected = model.encode_images([image])
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        torch.testing.assert_close(model.encode_images([image.to(dtype)]), expected, atol=0.05, rtol=0)
    model.vocabulary = None
    with pytest.raises(ValueError, match="this model has no vocabulary"):
        model.encode_texts(["a"])
