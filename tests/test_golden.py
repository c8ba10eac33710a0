"""Numbers computed with the official codes, to their tolerances (tests/golden/README.md)."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vse.aggregators import GPO
from vse.build import build_model, read_config
from vse.data.vocabulary import SPECIALS, Vocabulary
from vse.losses import Mining, TripletLoss
from vse.metrics import query_ranks, retrieval_metrics
from vse.model import VSEModel
from vse.official import vse_infty_weights
from vse.sets import lengths_to_mask

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("VSE_GOLDEN_DIR", ROOT / "tests" / "golden"))


def load_recipe() -> Any:
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


def load(path: Path) -> dict[str, Any]:
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) if data[k].ndim else data[k].item() for k in data.files}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected, dtype=found.dtype), atol=1e-5, rtol=1e-4)


def fill(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    return {name: torch.from_numpy(recipe.fill(prefix + name, tuple(shape))) for name, shape in shapes.items()}


def check_gpo(golden: dict[str, Any]) -> None:
    gpo = GPO()
    gpo.load_state_dict(fill(json.loads((GOLDEN / "components" / "states.json").read_text())["gpo"]))
    features = golden["features"]
    mask = lengths_to_mask(golden["lengths"], features.shape[1])
    for setting in (torch.enable_grad(), torch.no_grad()):  # computed afresh, and from the cached table
        with setting:
            close(gpo(features, mask).embeddings[:, 0], golden["pooled"])
            close(gpo.rank_weights(features, mask), golden["weights"])


def check_triplet(golden: dict[str, Any]) -> None:
    minings: list[tuple[Mining, str]] = [("all", "all"), ("hardest", "hard")]
    for mining, name in minings:
        images, texts = (golden[key].clone().requires_grad_() for key in ("images", "texts"))
        loss = TripletLoss(golden["margin"], mining=mining)(images @ texts.T, torch.eye(len(images), dtype=torch.bool))
        close(loss, golden[f"loss_{name}"])
        for found, side in zip(torch.autograd.grad(loss, (images, texts)), ("image", "text"), strict=True):
            close(found, golden[f"grad_{side}_{name}"])


def check_metrics(golden: dict[str, Any]) -> None:
    names = ("r1", "r5", "r10", "medr", "meanr")
    scores = golden["images"] @ golden["captions"].T
    positives = torch.arange(len(scores))[:, None] == torch.arange(scores.shape[1]) // 5
    assert torch.equal(query_ranks(scores, positives), golden["i2t_ranks"].long())
    assert torch.equal(query_ranks(scores.T, positives.T), golden["t2i_ranks"].long())
    metrics = retrieval_metrics(scores, positives)
    for side in ("i2t", "t2i"):
        assert [metrics[side][n] for n in names] == pytest.approx(golden[side].tolist(), abs=1e-9)
    assert metrics["rsum"] == pytest.approx(float(golden["i2t"][:3].sum() + golden["t2i"][:3].sum()), abs=1e-9)
    for fold, expected in enumerate(golden["folds"]):
        images, captions = slice(fold * 100, fold * 100 + 100), slice(fold * 500, fold * 500 + 500)
        found = retrieval_metrics(scores[images, captions], positives[images, captions])
        assert [found[s][n] for s in ("i2t", "t2i") for n in names] == pytest.approx(expected.tolist(), abs=1e-9)


def check_vse_infty_bigru(golden: dict[str, Any]) -> None:
    about = json.loads((GOLDEN / "models" / "vse_infty_bigru.json").read_text())
    model = vse_infty_model(about)
    images = torch.from_numpy(recipe.draw(about["image_seed"], tuple(about["image_shape"])))
    tokens = torch.from_numpy(recipe.draw_tokens(about["text_seed"], about["text_lengths"], about["vocab_size"]))
    image_mask = lengths_to_mask(torch.tensor(about["region_lengths"]), images.shape[1])
    text_mask = lengths_to_mask(torch.tensor(about["text_lengths"]))
    for setting in (torch.enable_grad(), torch.inference_mode()):
        with setting:
            image, text = model.image(images, image_mask), model.text(tokens, text_mask)
        for found, expected in ((image, golden["image_embeddings"]), (text, golden["text_embeddings"])):
            torch.testing.assert_close(found.embeddings[:, 0].detach(), expected, atol=1e-4, rtol=0)


def vse_infty_model(about: dict[str, Any]) -> VSEModel:
    config = read_config(ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml")
    words = [*SPECIALS, *(f"w{i}" for i in range(about["vocab_size"] - len(SPECIALS)))]
    model = build_model(config, about["image_shape"][-1], Vocabulary(words))
    states = [fill(s, p) for s, p in zip(about["state"], about["fill_prefix"], strict=True)]
    model.load_state_dict(vse_infty_weights(*({f"module.{k}": v for k, v in s.items()} for s in states)))
    return model.eval()


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "components/gpo": check_gpo,
    "components/triplet_vse_infty": check_triplet,
    "components/metrics": check_metrics,
    "models/vse_infty_bigru": check_vse_infty_bigru,
}


@pytest.mark.parametrize("name", CHECKS, ids=[Path(name).stem for name in CHECKS])
def test_golden(name: str) -> None:
    CHECKS[name](load(GOLDEN / f"{name}.npz"))


def test_unknown_official_parameter() -> None:
    with pytest.raises(ValueError, match="mlp.layers.7.weight: not a parameter"):
        vse_infty_weights({"module.mlp.layers.7.weight": torch.zeros(1)}, {})
