"""Checkpoints of the first format, written by the version that had it, load and resume as they did there."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, read_jsonl

import vse
from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.formats import precomp
from vse.training.trainer import train

DATA = ROOT / "tests" / "checkpoints" / "data" / "version_1"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """The run folder as the old version left it; its config names folders that are there."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("best.pt", "last.pt"):
        (folder / name).write_bytes(lzma.decompress((DATA / f"{name}.xz").read_bytes()))
    return folder


def expected() -> dict[str, torch.Tensor]:
    with np.load(DATA / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_it_gives_the_same_embeddings(old_run: Path) -> None:
    model, dev, recorded = vse.load(old_run), precomp(str(DATA / "corpus"), "dev"), expected()
    images = model.encode_images([torch.from_numpy(dev.images[i]) for i in range(2)])
    torch.testing.assert_close(images, recorded["images"])
    torch.testing.assert_close(model.encode_texts(dev.captions[:3]), recorded["texts"])


def augment_as_then(
    ids: np.ndarray,
    words: np.ndarray,
    lengths: np.ndarray,
    captions: np.ndarray,
    probability: float,
    seed: tuple[int, ...],
    mask: int,
    plain: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The changes of words as the old version drew them, one caption after another."""
    changed = []
    ends = np.cumsum(lengths)
    for index, start, end in zip(captions, ends - lengths, ends, strict=True):
        rng = np.random.default_rng((*seed, int(index)))
        draw = np.append(rng.random(words[start:end].max() + 1) / probability, 1.0)[words[start:end]]
        out = np.where(draw < 0.5, mask, ids[start:end])
        is_random = (draw >= 0.5) & (draw < 0.6)
        if is_random.any():
            out[is_random] = rng.choice(plain, int(is_random.sum()))
        kept = (draw < 0.6) | (draw >= 1)
        if not kept.any():
            kept[rng.integers(end - start)] = True
        changed.append(out[kept])
    return np.concatenate(changed), np.array([len(caption) for caption in changed])


def test_it_goes_on_to_the_same_end(old_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vse.data.batches.augment", augment_as_then)
    state, recorded = load_checkpoint(old_run / "last.pt"), expected()
    assert (state["epoch"], state["step"]) == (1, 3)
    settings = state["config"]
    settings["run"]["dir"], settings["data"]["root"] = str(old_run), str(DATA / "corpus")
    (old_run / "config.yaml").write_text(yaml.safe_dump(settings))
    train(read_config(old_run / "config.yaml"))
    end = load_checkpoint(old_run / "last.pt")
    for part in ("model", "criterion"):
        for name, value in end[part].items():
            # A bias before BatchNorm has no gradient but rounding, which Adam makes as large as any other gradient. The
            # running mean follows that bias.
            loose = name.endswith(("hidden.bias", "norm.running_mean"))
            torch.testing.assert_close(
                value,
                recorded[f"{part}.{name}"],
                msg=f"{part}.{name}",
                atol=1e-2 if loose else 1e-5,
                rtol=0.0 if loose else 1.3e-6,
            )
    assert end["history"] == pytest.approx(recorded["rsums"].tolist())
    dev = [record["dev"]["rsum"] for record in read_jsonl(old_run / "metrics.jsonl") if "dev" in record]
    assert dev == pytest.approx(recorded["rsums"].tolist()[1:])
