"""One line for each contract that a part may break; a bug inside of a part keeps its traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, own_module, write_precomp
from torch import nn

import vse
from vse.build import build_corpus, build_criterion, build_model, read_config, read_corpus
from vse.config import Config
from vse.contracts import check_aggregated, check_features, check_fit, check_images, check_scores, similarities_of
from vse.data import ArrayFeatures
from vse.data.batches import Batch
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError
from vse.evaluation.score import evaluate
from vse.model import VSEModel
from vse.sets import Aggregated, FeatureSet
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

class Counts(nn.Module):
    num_embeddings = 3
    def forward(self, features, mask=None, context=None):
        return Aggregated(features[:, :2])

class Unpacks(nn.Module):
    def forward(self, features, mask=None, context=None):
        samples, elements = features.shape
        return Aggregated(features[:, :1])

class Refuses(nn.Module):
    def forward(self, features, mask=None, context=None):
        raise ValueError("six elements are one too many")

class WrongType(nn.Module):
    def forward(self, features, mask=None, context=None):
        return Aggregated(features + "text")

class OneArgument(nn.Module):
    def forward(self, x):
        return x

class NoEncoder(nn.Module):
    pass

def wrong_shape(x, y):
    return (x[:, 0] @ y[:, 0].T)[:, 0]

def no_tensor(x, y):
    return 1.0

def unpacks(x, y):
    samples, width = x.shape
    return samples

def detached(x, y):
    return torch.tensor(x.detach().sum().item())

def whole_number(x, y):
    return torch.tensor(3)

def a_list(folder, part):
    return [folder, part]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return own_module(tmp_path, monkeypatch, MINE)


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
            "override '.*ReturnsTensor': model.image.aggregator.name: .*ReturnsTensor.* must return an Aggregated",
        ),
        (["model.image.aggregator.name=mine:TakesTwo"], "model.image: .*TakesTwo"),
        (
            ["model.image.aggregator.name=mine:Flat"],
            r"the aggregator Flat must be .* \(2, K, H\), got .* \(2, 8\)",
        ),
        (
            ["model.text.aggregator.name=mine:Flat"],
            r"model.text.aggregator.name: the embeddings .* \(3, K, H\), got .*\(3, 8\)",
        ),
        (["model.image.aggregator.name=mine:Narrow"], r"must be \(2, K, 8\), got \(2, 1, 5\)"),
        (
            ["model.image.aggregator.name=mine:Counts"],
            r"aggregator Counts .* \(2, 3, H\), got .* \(2, 2, 8\)",
        ),
        (["model.image.aggregator.name=mine:Refuses"], "model.image: six elements are one too many"),
        (["loss.ranking={name: 'mine:detached'}"], "detached must return a tensor that has a gradient with respect to"),
        (["loss.ranking={name: 'mine:whole_number'}"], r"floats of shape \(\), got an int64 tensor of shape \(\)"),
        (
            ["model.image.encoder={name: 'mine:EncodesToTensor'}"],
            "model.image.encoder.name: .*EncodesToTensor.* must return a Fea",
        ),
        (["model.image.encoder={name: 'mine:NoEncoder'}"], "NoEncoder is not an encoder: it has no attribute dim"),
        (
            ["model.similarity={name: 'mine:wrong_shape'}"],
            r"wrong_shape must return .* \(2, 3\), got a float32 tensor of shape \(2,",
        ),
        (
            ["model.similarity={name: 'mine:no_tensor'}"],
            r"no_tensor must return .* floats of shape \(2, 3\), got a float",
        ),
        (["loss.ranking={name: 'mine:OneArgument'}"], "OneArgument cannot be called with 2 .* are .x."),
        (
            ["model.similarity={name: 'mine:OneArgument'}"],
            "OneArgument cannot be called with 2 .* are .x.",
        ),
        (
            ["loss.ranking={name: 'mine:no_tensor'}"],
            r"no_tensor must return .* floats of shape \(\), got a float",
        ),
        (
            ["loss.terms={'mine:no_tensor': {weight: 1}}"],
            r"mine:no_tensor: mine:no_tensor must return a tensor of floats of shap",
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
    message = "model.similarity: .*K = 2 and L = 3.*similarities of such sets: max, chamfer, smooth_chamfer"
    with pytest.raises(InputError, match=message):
        check(*SETS)


def test_features_of_another_width_are_named(tmp_path: Path) -> None:
    config = read_config(RECIPE, [*SMALL, f"data.root={write_precomp(tmp_path / 'data', width=7)}"])
    assert read_corpus(config, "dev").images.width == 7
    with pytest.raises(InputError, match="model.image: .* 12 wide, got 7"):
        batch = batch_of(config)._replace(images=torch.randn(2, 6, 7))
        check_fit(config, model_of(config), build_criterion(config), batch)


@pytest.mark.parametrize(
    ("name", "error"), [("Unpacks", "too many values to unpack"), ("WrongType", "unsupported operand|can only")]
)
def test_a_bug_inside_a_part_keeps_its_traceback(mine: str, name: str, error: str) -> None:
    """Whoever writes the part has to see the line that failed."""
    with pytest.raises((ValueError, TypeError), match=error) as caught:
        check(f"model.image.aggregator.name={mine}:{name}")
    assert not isinstance(caught.value, InputError)
    assert Path(caught.traceback[-1].path).stem == mine


def test_a_bug_inside_a_similarity_keeps_its_traceback(mine: str) -> None:
    for sets in ((), SETS):
        with pytest.raises(ValueError, match="too many values to unpack.{,20}$") as caught:
            check(f"model.similarity.name={mine}:unpacks", *sets)
        assert not isinstance(caught.value, InputError) and Path(caught.traceback[-1].path).stem == mine


class Says(nn.Module):
    """An encoder that says what it gives."""

    dim, context_dim = 8, 4


FEATURES, REAL, CONTEXT = torch.zeros(2, 6, 8), torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (FEATURES, r"the encoder Says must return a FeatureSet .* got a float32 tensor of shape \(2, 6, 8\)"),
        ([FEATURES, None], "the encoder Says must return a FeatureSet of features, mask and context, got a list"),
        ((FEATURES, None, None, None), "must return a FeatureSet .* got a tuple"),
        (FeatureSet(FEATURES[:, 0]), r"the features of the encoder Says must be .* \(2, N, 8\), got .* \(2, 8\)"),
        (FeatureSet(FEATURES[..., :5]), r"features .* of shape \(2, N, 8\), got a float32 tensor of shape \(2, 6, 5\)"),
        (FeatureSet(FEATURES[:1]), r"features .* \(2, N, 8\), got .* \(1, 6, 8\)"),
        (FeatureSet(FEATURES[:, :0]), r"features .* \(2, N, 8\), got .* \(2, 0, 8\)"),
        (FeatureSet(FEATURES.long()), "features .* tensor of floats .* got an int64 tensor"),
        (FeatureSet(FEATURES, REAL.float()), r"the mask of the encoder Says must be None or a bool .*, got a float32"),
        (FeatureSet(FEATURES, REAL[:, :3]), r"the mask .* bool tensor of shape \(2, 6\), .* got .* shape \(2, 3\)"),
        (
            FeatureSet(FEATURES, None, FEATURES),
            r"the context of the encoder Says must be .* \(2, 4\), got .* \(2, 6, 8",
        ),
    ],
)
def test_what_an_encoder_returns(result: Any, message: str) -> None:
    inputs = torch.zeros(2, 6, 12)
    check_features(Says(), inputs, FeatureSet(FEATURES, REAL, CONTEXT))
    check_features(Says(), inputs, (FEATURES.half(), None))
    with pytest.raises(ValueError, match=message) as error:
        check_features(Says(), inputs, result)
    assert "\n" not in str(error.value)


THREE = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (THREE, r"the aggregator Identity must return an Aggregated, got a float32 tensor of shape \(2, 3, 8\)"),
        ((THREE,), "must return an Aggregated, got a tuple; return Aggregated.embeddings."),
        (Aggregated(THREE[:, 0]), r"the embeddings of the aggregator Identity must be .* \(2, K, H\), got .* \(2, 8\)"),
        (Aggregated(THREE[:1]), r"the embeddings .* \(2, K, H\), got .* \(1, 3, 8\)"),
        (Aggregated(THREE, THREE), r"the attention .* \(2, K, 6\), got .* \(2, 3, 8\)"),
        (Aggregated(THREE, None, THREE[:, 0]), r"the residual .* \(2, K, H\), got .* \(2, 8\)"),
        (Aggregated(THREE, mask=REAL), r"the mask of the aggregator Identity must be .* \(2, 3\), .* got .* \(2, 6\)"),
        (Aggregated(THREE, context=THREE), r"the context .* \(2, H\), got .* \(2, 3, 8\)"),
    ],
)
def test_what_an_aggregator_returns(result: Any, message: str) -> None:
    check_aggregated(nn.Identity(), FEATURES, Aggregated(THREE, torch.zeros(2, 1, 6), THREE, REAL[:, :3], THREE[:, 0]))
    with pytest.raises(ValueError, match=message) as error:
        check_aggregated(nn.Identity(), FEATURES, result)
    assert "\n" not in str(error.value)


def test_the_similarities_that_fit() -> None:
    assert similarities_of(1, 1)[:2] == ["cosine", "max"]
    assert "cosine" not in similarities_of(4, 1) and "smooth_chamfer" in similarities_of(4, 1)


class Source:
    """A source of five images, whose members can be replaced."""

    kind, width, takes = "features", 4, None

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return self.read(np.array([index]))[0]

    def read(self, indices: Any, epoch: int | None = None) -> Any:
        return np.zeros((len(indices), 3, 4), np.float32)

    def transformed(self, transform: Any, seed: int, threads: int) -> Any:
        return self


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"read": lambda self, indices: 0}, r"Source.read is called with \(indices, epoch\), but .* are \(indices\)"),
        ({"read": lambda self, i, e: "hi"}, "Source.read must return one array for each of the 2 indices, got str"),
        ({"read": lambda self, i, e: np.zeros((1, 3, 4))}, "for each of the 2 indices, got 1 of them"),
        ({"read": lambda self, i, e: [[1.0], [2.0]]}, r"must return arrays \(regions, width\) of .*, got list"),
        ({"read": lambda self, i, e: np.zeros((2, 3, 4))}, r"of float32 or float16 for features, got float64 \(3, 4\)"),
        ({"read": lambda self, i, e: np.zeros((2, 4), np.float32)}, r"\(regions, width\) .* got float32 \(4,\)"),
        ({"width": 7}, "Source says that its width is 7, but reads features 4 wide"),
        (
            {"kind": "pictures", "width": None},
            r"\(3, height, width\) of uint8 or float32 for pictures, got .* \(3, 4\)",
        ),
    ],
)
def test_what_a_source_of_images_reads(members: dict[str, Any], message: str) -> None:
    check_images(Source())  # type: ignore[arg-type]
    check_images(ArrayFeatures(np.zeros((1, 3, 4), np.float32)))
    with pytest.raises(ValueError, match=message):
        check_images(type("Source", (Source,), members)())


FORMATS = """
import numpy as np
from vse.data import ArrayFeatures, Corpus

ARRAY = np.zeros((2, 3, 4), np.float32)

class Bare:
    kind, width, takes = "features", 4, None
    def __len__(self):
        return 2

class Wide(ArrayFeatures):
    def read(self, indices, epoch=None):
        return np.zeros((len(indices), 3, 5), np.float32)

IMAGES = {"good": ArrayFeatures(ARRAY), "array": ARRAY, "paths": ["a.jpg", "b.jpg"]}
IMAGES |= {"bare": Bare(), "wide": Wide(ARRAY)}

def read(root, split, images: str = "good"):
    if images == "nothing":
        return None
    if images == "refused":
        raise ValueError("captions.tsv has no header")
    if images == "number":
        return Corpus("mine", IMAGES["good"], ["a dog", 3], np.array([0, 1]), ["x", "y"], [1, 2])
    return Corpus("mine", IMAGES[images], ["a dog", "a cat"], np.array([0, 1]), ["x", "y"], [1, 2])
"""


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nothing", "must return a Corpus, got NoneType; from vse.data import Corpus"),
        ("array", r"returns images as ndarray; expected an ImageSource of vse.data, such as ArrayFeatures\(array\)"),
        ("paths", r"returns images as list; .* such as PictureFiles\(paths\) or ArrayFeatures\(array\)"),
        ("bare", "returns images as Bare; .* but Bare lacks __getitem__, read, transformed"),
        ("refused", "captions.tsv has no header"),
        ("number", "mine: caption 2 must be a str, got int 3"),
        ("wide", "Wide says that its width is 4, but reads features 5 wide"),
    ],
)
def test_what_a_format_returns(images: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"format_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FORMATS)
    monkeypatch.syspath_prepend(tmp_path)
    assert build_corpus(read_config(RECIPE, [f"data.format={name}:read"]), "dev").images.width == 4
    with pytest.raises(InputError, match=f"override 'data.format={name}:read': data.format: .*{message}"):
        build_corpus(read_config(RECIPE, [f"data.format={name}:read", f"data.options.images={images}"]), "dev")


def test_evaluation_checks_its_first_batch_and_no_other(
    make_run: Callable[..., Path], data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part may have changed since the training."""
    run = make_run()
    config = read_config(RECIPE, [f"data.root={data_folder}"])
    model, corpus = vse.load(run), build_corpus(config, "test")
    calls = []
    metrics = evaluate(model, corpus, 4, progress=False)
    hooks = [part._forward_hooks for tower in (model.image, model.text) for part in (tower.encoder, tower.aggregator)]
    assert not any(hooks)

    def count(part: nn.Module, inputs: Any, result: Any) -> None:
        calls.append(len(part._forward_hooks))

    model.image.encoder.register_forward_hook(count)
    assert evaluate(model, corpus, 4, progress=False) == metrics
    assert len(calls) == 3 and calls[1:] == [1, 1]  # in the first batch the check stands beside this hook
    monkeypatch.setattr(model.image.encoder, "dim", 5)
    with pytest.raises(InputError, match=r"test.*: the features of the encoder Regions must be .* \(4, N, 5\), got"):
        evaluate(model, corpus, 4, progress=False)
    with pytest.raises(
        ValueError, match=r"the similarity <lambda> must return .* floats of shape \(1, 2\), got a .*\(2"
    ):
        check_scores(lambda a, b: cosine(b, a), torch.zeros(3, 1, 8), torch.zeros(4, 1, 8))
