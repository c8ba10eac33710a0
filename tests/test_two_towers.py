"""CLIP and SigLIP from a config: zero-shot, fine-tuned, resumed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, Outcome, read_jsonl, weights_of
from torch import Tensor

import vse
from vse.build import build_corpus, read_config
from vse.checkpoints.load import load_model

Cli = Callable[..., Outcome]
CONFIGS = sorted(file.stem for file in (ROOT / "configs" / "clip").glob("*.yaml"))


def settings(folder: Path, tmp_path: Path) -> list[str]:
    return [
        *("data.format=synthetic", f"data.root={tmp_path / 'world'}", "data.workers=0", "eval.batch_size=16"),
        "data.options={pictures: true, train_scenes: 16, eval_scenes: 6}",
        *(f"model.{side}.encoder.model={folder}" for side in ("image", "text")),
        *("model.embed_dim=16", "train.batch_size=8", "train.epochs=2", f"run.dir={tmp_path / 'run'}"),
        *("run.precision=fp32", "run.log_steps=1"),
    ]


def library_logits(folder: Path, pictures: list[Path], captions: list[str]) -> Tensor:
    """The scores of the library alone, from files and texts."""
    from PIL import Image
    from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

    model = AutoModel.from_pretrained(folder).eval()
    is_siglip = model.config.model_type == "siglip"
    processor = (SiglipImageProcessorPil if is_siglip else CLIPImageProcessorPil).from_pretrained(folder)
    filling: dict[str, Any] = {"padding": "max_length" if is_siglip else True, "max_length": 24, "truncation": True}
    tokens = AutoTokenizer.from_pretrained(folder)(captions, return_tensors="pt", **filling)
    tokens = {key: tokens[key] for key in (["input_ids"] if is_siglip else ["input_ids", "attention_mask"])}
    pixels = processor([Image.open(picture).convert("RGB") for picture in pictures], return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, **pixels).logits_per_image  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_zero_shot_scores_are_the_librarys(kind: str, request: pytest.FixtureRequest, cli: Cli, tmp_path: Path) -> None:
    """From files of pictures and captions to scores, through `vse eval CONFIG`; nothing is trained or written."""
    folder = request.getfixturevalue(f"tiny_{kind}")
    name = "clip/f30k" if kind == "clip" else "clip/f30k_siglip"
    overrides = settings(folder, tmp_path)
    scores = tmp_path / "scores.npz"
    outcome = cli("eval", name, *overrides, "--save-scores", scores, "--json", tmp_path / "zero.json")
    assert outcome.code == 0, outcome.err
    assert "RSUM" in outcome.out and json.loads((tmp_path / "zero.json").read_text())["rsum"] > 0
    assert not (tmp_path / "run").exists()

    model, config, _, _ = load_model(name, overrides)
    corpus = build_corpus(config, "test")
    pictures = [Path(corpus.images[i]) for i in range(len(corpus.images))]
    captions = [*corpus.captions[:-1], "two dogs"]
    found = model.similarity(model.encode_images(pictures), model.encode_texts(captions))
    encoder: Any = model.image.encoder
    expected = library_logits(folder, pictures, captions)
    assert expected.std() > 0.01
    torch.testing.assert_close(found * encoder.logit_scale + encoder.logit_bias, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found, (expected - encoder.logit_bias) / encoder.logit_scale, atol=1e-5, rtol=0)


def test_zero_shot_has_the_options_of_runs(tiny_clip: Path, cli: Cli, tmp_path: Path) -> None:
    """Another split, intervals, an ensemble with a second member, and a protocol that wants another corpus."""
    words = ["clip/f30k", *settings(tiny_clip, tmp_path)]
    assert cli("eval", *words, "--save-scores", tmp_path / "a.npz").code == 0
    outcome = cli("eval", *words, tmp_path / "a.npz", "--bootstrap", 20, "--markdown", "--ensemble")
    assert outcome.code == 0 and "ensemble" in outcome.out and "| clip/f30k |" in outcome.out, outcome.err
    assert cli("eval", *words, "--split", "dev").code == 0
    outcome = cli("eval", *words, "--protocol", "f30k")
    assert outcome.code == 2 and "1,000 images" in outcome.err, outcome.err


def test_a_part_that_is_not_pretrained_is_named(tiny_clip: Path, tiny_bert: Path, cli: Cli, tmp_path: Path) -> None:
    base = settings(tiny_clip, tmp_path)
    for change, part in (
        (["model.text.aggregator.name=gpo"], "model.text.aggregator: gpo"),
        (["model.similarity.name=match_probability"], "model.similarity: match_probability"),
        (["model.image.encoder.weights=null"], "model.image.encoder: clip"),
        (["model.text.encoder.name=bert"], "model.text.encoder: bert"),
    ):
        outcome = cli("eval", "clip/f30k", *base, *change)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert f"{part} has parameters that are not pretrained; train it first" in outcome.err
    outcome = cli("eval", "clip/f30k")
    assert outcome.code == 2 and "openai/clip-vit-base-patch32: not a folder, nor a model" in outcome.err


def test_load_of_a_config(tiny_clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    lines = [f"base: {ROOT / 'configs' / 'clip' / 'f30k.yaml'}", "model:", "  embed_dim: 16"]
    lines += [f"  {side}: {{encoder: {{model: {tiny_clip}}}}}" for side in ("image", "text")]
    file.write_text("\n".join(lines))
    assert vse.load(file).encode_texts("two dogs").shape == (1, 1, 16)


def test_trained_resumed_and_evaluated_without_the_folder(cli: Cli, tiny_clip: Path, tmp_path: Path) -> None:
    """The loss falls; a run in two parts is the same run; evaluation and resumption need no file of the model."""
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    train = ["clip/f30k_finetune", *settings(folder, tmp_path), "optim.lr=1e-3", "optim.schedule.name=constant"]
    outcome = cli("train", *train)
    assert outcome.code == 0, outcome.err
    losses = [line["train"]["total"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train" in line]
    half = len(losses) // 2
    assert sum(losses[half:]) < 0.97 * sum(losses[:half]), losses
    parts = [*train, f"run.dir={tmp_path / 'parts'}"]
    assert cli("train", *parts, "train.epochs=1").code == 0
    shutil.rmtree(folder)
    outcome = cli("train", *parts)
    assert outcome.code == 0 and "going on with epoch 2" in outcome.out, outcome.err
    whole, resumed = weights_of(tmp_path / "run"), weights_of(tmp_path / "parts")
    assert whole.keys() == resumed.keys() and all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert cli("eval", tmp_path / "run").code == 0
    transform = read_config(tmp_path / "run").data.transform
    assert transform is not None and transform.arguments["size"] == [32, 32]
    picture = next((tmp_path / "world" / "images").glob("test*.png"))
    assert vse.load(tmp_path / "run").encode_images([picture]).shape == (1, 1, 16)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_configs_train(config: str, cli: Cli, tiny_clip: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    folder = tiny_siglip if "siglip" in config else tiny_clip
    outcome = cli("train", f"clip/{config}", *settings(folder, tmp_path), "train.epochs=1")
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    assert cli("eval", tmp_path / "run").code == 0


def test_frozen_prefixes_lora_and_recomputation(cli: Cli, tiny_clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = ["clip/f30k_finetune", *settings(tiny_clip, tmp_path), "train.epochs=1"]
    more = ["model.text.encoder.lora=2", "model.image.encoder.recompute=true", "optim.lr=1e-2"]
    prefix = "image.encoder.net.vision_model.encoder.layers.0"
    outcome = cli("train", *base, *more, f"train.freeze=[{prefix}]")
    assert outcome.code == 0, outcome.err
    start = load_model("clip/f30k", [*base[1:], *more]).model.state_dict()
    end = weights_of(tmp_path / "run")
    assert start.keys() == end.keys()
    for name, value in end.items():
        is_trained = "lora_" in name if name.startswith("text") else not name.startswith(prefix)
        if "lora_A" not in name and "k_proj.bias" not in name:  # A is random; a bias of keys has no gradient
            assert torch.equal(value, start[name]) != is_trained, name
    assert cli("eval", tmp_path / "run").code == 0
    outcome = cli("train", *base, f"run.dir={tmp_path / 'b'}", "train.freeze=[image.encodr]")
    assert outcome.code == 2 and "train.freeze: 'image.encodr' begins no parameter's name" in outcome.err


def test_the_temperature_is_the_models(tiny_clip: Path, tiny_siglip: Path, cli: Cli, tmp_path: Path) -> None:
    from vse.training.trainer import Training

    for name, folder in (("clip/f30k", tiny_clip), ("clip/f30k_siglip", tiny_siglip)):
        config = read_config(name, [*settings(folder, tmp_path), "data.transform={size: [32, 32], resize: 32}"])
        training = Training(config)
        ranking: Any = training.criterion.ranking
        encoder: Any = training.model.image.encoder
        assert ranking.log_temperature.exp().item() == pytest.approx(1 / encoder.logit_scale)
        assert name == "clip/f30k" or ranking.bias.item() == pytest.approx(encoder.logit_bias)
    outcome = cli("train", ROOT / "configs" / "demo.yaml", f"data.root={tmp_path / 'w'}", "loss.ranking.name=info_nce",
                  "data.options={train_scenes: 24, eval_scenes: 6}",
                  "loss.ranking.temperature=pretrained", f"run.dir={tmp_path / 'd'}")  # fmt: skip
    assert outcome.code == 2 and "loss.ranking.temperature: regions has no logit scale of its own" in outcome.err
