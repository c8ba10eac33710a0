"""From a config to objects: what the parts are given, and one line for what does not fit together."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import ROOT, write_precomp
from torch import nn

from vse.build import (
    build_criterion,
    build_model,
    build_optimiser,
    build_schedule,
    check_fit,
    read_config,
    read_corpus,
    resolve,
)
from vse.config import Config
from vse.data.batches import Batch
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError
from vse.model import VSEModel
from vse.similarity import cosine

RECIPE = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
SMALL = ("model.embed_dim=8", "model.text.encoder.word_dim=6")
SETS = (
    "model.image.aggregator={name: pie_net, num_embeddings: 2}",
    "model.text.aggregator={name: pie_net, num_embeddings: 3}",
)

# Components from outside that break their contracts.
MINE = """
import torch
from torch import nn
from vse.sets import Aggregated, FeatureSet

class ReturnsTensor(nn.Module):
    def forward(self, features, mask=None, context=None):
        return features.mean(1, keepdim=True)

class TakesTwo(nn.Module):
    def forward(self, features, mask=None):
        return Aggregated(features.mean(1, keepdim=True))

class Flat(nn.Module):
    def forward(self, features, mask=None, context=None):
        return Aggregated(features.mean(1))

class Narrow(nn.Module):
    def forward(self, features, mask=None, context=None):
        return Aggregated(features.mean(1, keepdim=True)[..., :5])

class EncodesToTensor(nn.Module):
    dim, context_dim = 8, None
    def __init__(self, in_dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, 8)
    def forward(self, inputs, mask=None):
        return self.linear(inputs)

class OneArgument(nn.Module):
    def forward(self, x):
        return x

class NoEncoder(nn.Module):
    pass

def wrong_shape(x, y):
    return (x[:, 0] @ y[:, 0].T)[:, 0]

def no_tensor(x, y):
    return 1.0

def a_list(folder, part):
    return [folder, part]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def model_of(config: Config) -> VSEModel:
    return build_model(config, 12, Vocabulary.build(["a dog runs", "two birds"], 1))


def batch_of(config: Config) -> Batch:
    tokens = torch.tensor([[1, 4, 5, 2], [1, 4, 2, 0], [1, 5, 5, 2]])
    positives = torch.tensor([0, 1, 1])[None] == torch.arange(2)[:, None]
    return Batch(torch.randn(2, 6, 12), None, tokens, tokens != 0, positives)


def check(*overrides: str) -> None:
    """Build a model and run a batch through it."""
    config = read_config(RECIPE, [*SMALL, *overrides])
    check_fit(config, model_of(config), build_criterion(config), batch_of(config))


def test_a_recipe_fits() -> None:
    check()
    check(*SETS, "model.similarity.name=smooth_chamfer", "loss.terms={diversity: {weight: 1}, mmd: {weight: 0.1}}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.image.aggregator.name=mine:ReturnsTensor"],
            "model.image: .*ReturnsTensor.* must return an Aggregated",
        ),
        (["model.image.aggregator.name=mine:TakesTwo"], "model.image: .*TakesTwo"),
        (["model.image.aggregator.name=mine:Flat"], r"model.image: its embeddings must be \(2, K, 8\), got \(2, 8\)"),
        (["model.text.aggregator.name=mine:Flat"], r"model.text: its embeddings must be \(3, K, 8\), got \(3, 8\)"),
        (["model.image.aggregator.name=mine:Narrow"], r"must be \(2, K, 8\), got \(2, 1, 5\)"),
        (["model.image.encoder={name: 'mine:EncodesToTensor'}"], "model.image: .*EncodesToTensor.* must return a Fea"),
        (["model.image.encoder={name: 'mine:NoEncoder'}"], "NoEncoder is not an encoder: it has no attribute dim"),
        (
            ["model.similarity={name: 'mine:wrong_shape'}"],
            r"wrong_shape must return a tensor of shape \(2, 3\), got \(2,",
        ),
        (["model.similarity={name: 'mine:no_tensor'}"], r"no_tensor must return a tensor of shape \(2, 3\), got float"),
        (["loss.ranking={name: 'mine:OneArgument'}"], "OneArgument cannot be called with 2 positional arguments"),
        (["model.similarity={name: 'mine:OneArgument'}"], "OneArgument cannot be called with 2 positional arguments"),
        (["loss.ranking={name: 'mine:no_tensor'}"], r"no_tensor must return a tensor of shape \(\), got float"),
        (
            ["loss.terms={'mine:no_tensor': {weight: 1}}"],
            r"mine:no_tensor: mine:no_tensor must return a tensor of shap",
        ),
    ],
)
def test_a_broken_contract_is_one_line(mine: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("mine:", f"{mine}:")) as error:
        check(*(override.replace("mine:", f"{mine}:") for override in overrides))
    assert "\n" not in str(error.value)


def test_a_format_that_returns_no_corpus(mine: str) -> None:
    config = read_config(RECIPE, [f"data.format={mine}:a_list"])
    with pytest.raises(InputError, match=f"data.format: {mine}:a_list must return a Corpus, got list"):
        read_corpus(config, "train")


def test_cosine_of_sets_names_the_similarities_that_compare_them() -> None:
    message = "model.similarity: .*K = 2 and L = 3.*similarities of sets: max, chamfer, smooth_chamfer"
    with pytest.raises(InputError, match=message):
        check(*SETS)


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


def test_features_of_another_width_are_named(tmp_path: Path) -> None:
    config = read_config(RECIPE, [*SMALL, f"data.root={write_precomp(tmp_path / 'data', width=7)}"])
    assert read_corpus(config, "dev").images.width == 7
    with pytest.raises(InputError, match="model.image: .* 12 wide, got 7"):
        batch = batch_of(config)._replace(images=torch.randn(2, 6, 7))
        check_fit(config, model_of(config), build_criterion(config), batch)
