"""Models trained on clips and on their features, end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, Outcome, without_word_vectors, write_dataset

import vse
from vse.build import build_corpus, read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.batches import BatchSampler, TrainingData, make_loader
from vse.data.clips import ClipTransform
from vse.data.vocabulary import Vocabulary

Cli = Callable[..., Outcome]


CONFIGS = {"tgif": "pvse/tgif", "mrw": "pvse/mrw", "msrvtt": "vse_infty/msrvtt", "vatex": "vse_infty/vatex"}


TINY = ["model.embed_dim=8", "train.batch_size=8", "data.workers=0", "data.vocabulary.min_count=1"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_video_config_trains_on_features(kind: str, cli: Cli, tmp_path: Path) -> None:
    """In the published format; the tables have the median rank and its share of the candidates."""
    root = write_dataset(kind, tmp_path / kind)
    config = ROOT / "configs" / f"{CONFIGS[kind]}.yaml"
    settings = [*TINY, f"data.root={root}", f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    settings += without_word_vectors(config)
    if kind in ("tgif", "mrw"):
        settings += ["data.options.frames=features", "data.transform.fps=null", "model.image.encoder.weights=null"]
    outcome = cli("train", config, *settings)
    assert outcome.code == 0 and "warning" not in outcome.err, outcome.err
    table = cli("eval", tmp_path / "run")
    assert table.code == 0 and "Video to text" in table.out and "nMR" in table.out
    metrics = json.loads((tmp_path / "run" / "test.json").read_text())
    captions = 6 if kind in ("tgif", "mrw") else 12  # one of each clip, or two
    assert metrics["i2t"]["nmr"] == pytest.approx(metrics["i2t"]["medr"] / captions, abs=1e-6)
    assert metrics["t2i"]["nmr"] == pytest.approx(metrics["t2i"]["medr"] / 6, abs=1e-6)
    model = vse.load(tmp_path / "run")
    clips = [torch.randn(n, 6) for n in (3, 5, 2)]
    together = model.encode_images(clips)
    alone = torch.cat([model.encode_images([clip]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_frames_of_features_are_sampled(tmp_path: Path) -> None:
    """Eight of them, other ones in other epochs, the same in workers; also from an archive."""
    root = write_dataset("tgif", tmp_path / "t")
    for file in (root / "features").glob("*.npy"):
        np.save(file, np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32))
    np.savez(root / "packed.npz", **{f.stem: np.load(f) for f in (root / "features").glob("*.npy")})
    config = ROOT / "configs" / "pvse" / "tgif.yaml"
    read = {}
    for place in ("features", "packed"):
        settings = [f"data.root={root}", f"data.options.frames={place}", "data.transform.fps=null"]
        corpus = build_corpus(read_config(config, settings), "train")
        epochs = [np.asarray(corpus.images.read(np.arange(12), epoch)) for epoch in (None, 0, 0, 1)]
        assert all(batch.shape == (12, 8, 6) for batch in epochs)
        assert np.array_equal(epochs[1], epochs[2]) and not np.array_equal(epochs[1], epochs[3])
        assert not np.array_equal(epochs[0], epochs[1])
        read[place] = epochs
        data = TrainingData(corpus, Vocabulary.build(corpus.captions), 0.0, seed=1)
        batches = []
        for workers in (0, 2):
            sampler = BatchSampler(corpus.image_of_caption, len(corpus.images), 8, "pair", 1)
            batches.append([batch.images for batch in make_loader(data, sampler, workers, False)])
        assert len(batches[0]) == 3 and all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(*read.values(), strict=True))


@pytest.fixture
def gif_run(tmp_path: Path) -> list[str]:
    """The demo of moving shapes, made small."""
    world = "data.options={train_scenes: 12, eval_scenes: 5}"
    settings = [f"data.root={tmp_path / 'world'}", world, f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    return [str(ROOT / "configs" / "demo_video.yaml"), *TINY, *settings, "data.transform.size=32"]


def test_trained_end_to_end_on_gifs(gif_run: list[str], cli: Cli, tmp_path: Path) -> None:
    """Train, go on, evaluate; workers change nothing; GIF files become embeddings."""
    for settings in (["train.epochs=2"], ["train.epochs=1", "data.workers=1"], ["train.epochs=2"]):
        place = tmp_path / ("run" if settings == ["train.epochs=2"] and not (tmp_path / "run").exists() else "parts")
        outcome = cli("train", *gif_run, *settings, "optim.schedule.name=constant", f"run.dir={place}")
        assert outcome.code == 0, outcome.err
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("run", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    assert "Text to video" in cli("eval", tmp_path / "run").out
    model = vse.load(tmp_path / "run")
    gifs = sorted((tmp_path / "world" / "gifs").glob("test*.gif"))
    embeddings = model.encode_images(gifs, batch_size=2)
    assert embeddings.shape == (5, 1, 8)
    transform = ClipTransform(frames=3, size=32, resize=48)
    tensors = [transform.read(gif) for gif in gifs]
    torch.testing.assert_close(model.encode_images(tensors), embeddings, atol=1e-5, rtol=0)
    ragged = model.encode_images([tensors[0][:2], tensors[1]])
    torch.testing.assert_close(ragged[1], embeddings[1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"clips must be \(frames, 3, height, width\) of one size, got \(3, 32, 32\)"):
        model.encode_images([tensors[0][0]])


def test_mistakes_are_one_line(gif_run: list[str], cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *gif_run, "--dry-run").code == 0
    square = cli("train", *gif_run, "data.transform={name: square, size: 32}")
    assert "data.transform.name: square is for pictures, but" in square.error and "has frames" in square.error
    missing = cli("train", *[s for s in gif_run if "transform" not in s], "data.transform=null")
    assert missing.code == 2
    grid = cli("train", *gif_run, "model.image.encoder={name: grid, backbone: resnet18}")
    assert "grid reads pictures, but" in grid.error and "has frames" in grid.error
    regions = cli("train", *gif_run, "model.image.encoder={name: regions}")
    assert "regions reads features, but" in regions.error
    gif = sorted((tmp_path / "world" / "gifs").glob("train*.gif"))[3]
    gif.write_bytes(gif.read_bytes()[:40])
    assert f"{gif.name}: not a" in cli("train", *gif_run).error
    gif.unlink()
    assert f"has no {gif.name}" in cli("train", *gif_run).error
    demo = ["configs/demo.yaml", *gif_run[1:5]]
    clip = cli("train", ROOT / demo[0], *demo[1:], "data.transform={name: clip}", "model.image.encoder={name: video}")
    assert clip.code == 2
