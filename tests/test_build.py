"""From a config to objects: what the parts are given, and one line for what does not fit together."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, write_pictures
from torch import nn

from vse.build import (
    build_corpus,
    build_criterion,
    build_model,
    build_optimiser,
    build_schedule,
    complete,
    freeze,
    read_config,
    read_corpus,
    resolve,
)
from vse.config import Config
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError
from vse.model import VSEModel
from vse.similarity import cosine

RECIPE = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
SMALL = ("model.embed_dim=8", "model.text.encoder.word_dim=6")


def model_of(config: Config) -> VSEModel:
    return build_model(config, 12, Vocabulary.build(["a dog runs", "two birds"], 1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.image.encoder.name=bigru", "bigru reads words, but the image tower is given features"),
        ("model.image.encoder.name=vse.aggregators:MeanPool", "MeanPool is not an encoder: it has no attribute dim"),
        ("model.image.encoder.dim=4", "override 'model.image.encoder.dim=4': model.image.encoder.dim: gpo keeps the w"),
        (
            "model.text.aggregator={name: set_prediction, position: sine_2d, grid: [2, 3]}",
            "aggregator.grid: is for the cells",
        ),
    ],
)
def test_towers_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_of(read_config(RECIPE, [*SMALL, override]))


def test_resolving_twice_changes_nothing() -> None:
    config = read_config(RECIPE, ["train.epochs=3"])
    again = resolve(config)
    assert again.model_dump() == config.model_dump()
    assert again.source("train.epochs") == "override 'train.epochs=3'"


def test_optimiser_and_schedule() -> None:
    config = read_config(RECIPE, [*SMALL, "optim.factors={text.encoder: 0.1}", "optim.schedule={name: cosine}"])
    model, criterion = model_of(config), build_criterion(config)
    optimiser = build_optimiser(config, model, criterion)
    rates = sorted({group["lr"] for group in optimiser.param_groups})
    assert rates == pytest.approx([5e-5, 5e-4])
    assert build_schedule(config)(config.train.epochs) == pytest.approx(0.0)
    frozen = read_config(RECIPE, [*SMALL, "optim.factors={text.encoder: 0.1}", "train.freeze=[text.encoder]"])
    freeze(frozen, model)
    assert [group["lr"] for group in build_optimiser(frozen, model, criterion).param_groups] == [5e-4]
    wrong = read_config(RECIPE, [*SMALL, "optim.factors={text.gru: 0.1}"])
    with pytest.raises(InputError, match="^override .*: optim.factors: 'text.gru' begins no parameter's name"):
        build_optimiser(wrong, model, criterion)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers_are_fused(name: str) -> None:
    """And give what torch's plain loop gives; whoever asks for another implementation gets it."""
    model = VSEModel(nn.Linear(5, 4), nn.Linear(4, 3), cosine)  # type: ignore[arg-type]
    start = copy.deepcopy(model.state_dict())
    found = []
    for more, fused in (([], True), (["optim.fused=false"], False), (["optim.foreach=true"], None)):
        config = read_config(ROOT / "configs" / "demo.yaml", [f"optim.name={name}", "optim.factors={}", *more])
        model.load_state_dict(start)
        optimiser = build_optimiser(config, model, build_criterion(config))
        assert optimiser.defaults["fused"] is fused
        for step in range(3):
            for parameter in model.parameters():
                generator = torch.Generator().manual_seed(step)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimiser.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-7)


def test_an_optimiser_of_ones_own_need_not_be_fused() -> None:
    config = read_config(ROOT / "configs" / "demo.yaml", ["optim.name=torch.optim:Rprop", "optim.factors={}"])
    model = VSEModel(nn.Linear(5, 4), nn.Linear(4, 3), cosine)  # type: ignore[arg-type]
    assert "fused" not in build_optimiser(config, model, build_criterion(config)).defaults


def test_a_term_of_weight_0_is_left_out(tmp_path: Path) -> None:
    terms = "loss.terms={mmd: {weight: 0}, diversity: {weight: 0.5}}"
    assert list(build_criterion(read_config(RECIPE, [terms])).terms) == ["diversity"]


def test_an_unknown_split() -> None:
    with pytest.raises(InputError, match="split 'tset': did you mean 'test'"):
        read_corpus(read_config(RECIPE), "tset")


def test_what_is_given_of_a_pretrained_transform_is_kept(tiny_clip: Path) -> None:
    models = [f"model.{side}.encoder.model={tiny_clip}" for side in ("image", "text")]
    given = ["data.transform.resize=48", "data.transform.resample=nearest"]
    transform = complete(read_config("clip/f30k", [*models, *given])).data.transform
    assert transform is not None
    assert [transform.arguments[key] for key in ("size", "resize", "resample")] == [[32, 32], 48, "nearest"]


def test_random_crops_follow_the_runs_seed(tmp_path: Path) -> None:
    settings = [
        f"data.root={write_pictures(tmp_path)}",
        "data.format=karpathy",
        "data.transform={name: square, size: 16}",
    ]
    settings.append("model.image.encoder={name: grid, backbone: resnet18, weights: null}")
    first, again, other = (
        build_corpus(read_config(RECIPE, [*settings, f"run.seed={seed}"]), "train").images.read(np.arange(3), epoch=0)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
