"""Components by name: from the tables and from outside, their arguments, and whom an error names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, own_module, write_precomp
from torch import Tensor, nn

from vse.build import build_criterion, build_model, read_config, read_corpus
from vse.components import (
    NamedComponent,
    build_component,
    check_arguments,
    component_at,
    errors_at,
    find_callable,
    find_component,
)
from vse.config import Config, make_config
from vse.contracts import check_fit
from vse.data.batches import Batch
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError

RECIPE = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"

# A user's module, whose parameters are named as its author likes.
MINE = """
import torch
from torch import nn
from vse.data.formats import precomp

def dot(x, y, power: float = 1.0):
    return (x[:, 0] @ y[:, 0].T) ** power

def gap(s, p, margin: float = 0.5):
    return (margin + s).clamp(min=0)[~p].mean()

def spread(u, v, weighty: int = 2):
    return u.embeddings.mean() + v.embeddings.mean()

def my_format(folder, part, limit: int = 3):
    return precomp(folder, part)

def one_argument(x):
    return x

def any_number(*sets, power: float = 1.0):
    return sets[0][:, 0] @ sets[1][:, 0].T
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return own_module(tmp_path, monkeypatch, MINE)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Overrides of a model that is built in no time."""
    return [f"data.root={write_precomp(tmp_path / 'data')}", "model.embed_dim=8", "model.text.encoder.word_dim=6"]


def config_with(*overrides: str) -> Config:
    return read_config(RECIPE, overrides)


def test_a_component_of_a_table_and_one_from_outside() -> None:
    config = config_with("model.similarity.name=torch.nn:Identity")
    assert find_component(component_at(config_with(), "model.similarity"), {"cosine": len}) is len
    assert find_component(component_at(config, "model.similarity"), {}) is nn.Identity


def test_parameters_of_functions_are_found_by_position(mine: str, small: list[str], tmp_path: Path) -> None:
    """A similarity (x, y), a loss (s, p), a term (u, v) and a format (folder, part) work from YAML."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: {RECIPE}\n"
        f"data: {{format: '{mine}:my_format', options: {{limit: 4}}}}\n"
        f"model: {{similarity: {{name: '{mine}:dot', power: 3.0}}}}\n"
        f"loss: {{ranking: {{name: '{mine}:gap'}}, terms: {{'{mine}:spread': {{weight: 0.5}}}}}}\n"
    )
    config = read_config(file, small)
    assert config.model.similarity.arguments == {"power": 3.0}
    assert config.loss.ranking.arguments == {"margin": 0.5}
    assert config.loss.terms[f"{mine}:spread"].arguments == {"weighty": 2}
    assert config.data.options == {"limit": 4}
    corpus = read_corpus(config, "dev")
    model = build_model(config, 12, Vocabulary.build(corpus.captions, 1))
    batch = Batch(
        images=torch.randn(3, 6, 12),
        image_mask=None,
        tokens=torch.ones(4, 5, dtype=torch.long),
        token_mask=torch.ones(4, 5, dtype=torch.bool),
        positives=torch.tensor([0, 1, 2, 2])[None] == torch.arange(3)[:, None],
    )
    criterion = build_criterion(config)
    check_fit(config, model, criterion, batch)
    image, text = model.image(batch.images), model.text(batch.tokens)
    scores = model.similarity(image.embeddings, text.embeddings)
    torch.testing.assert_close(scores, (image.embeddings[:, 0] @ text.embeddings[:, 0].T) ** 3)
    losses = criterion(scores, batch.positives, image, text)
    expected = (0.5 + scores).clamp(min=0)[~batch.positives].mean()
    torch.testing.assert_close(losses["ranking"], expected)
    torch.testing.assert_close(losses["total"], expected + 0.5 * (image.embeddings.mean() + text.embeddings.mean()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.similarity.x=1", r"model.similarity.x: unknown argument of mine:dot \(known: name, power\)"),
        ("model.similarity.power=high", "model.similarity.power: input should be a valid number, got 'high'"),
        ("model.similarity.name=mine:one_argument", r"takes \(x\), but it is called with 2 positional arguments"),
        ("model.similarity={name:cosine}", "not valid YAML: a space is missing after the colon in 'name:cosine'"),
    ],
)
def test_mistakes_with_parts_from_outside(mine: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("mine:", f"{mine}:")):
        config_with(f"model.similarity.name={mine}:dot", override.replace("mine:", f"{mine}:"))


def test_a_function_of_any_number_of_arguments(mine: str) -> None:
    config = config_with(f"model.similarity.name={mine}:any_number")
    assert config.model.similarity.arguments == {"power": 1.0}


def test_arguments_that_the_build_knows() -> None:
    """Those offered are taken where there is a parameter, unless the config gives them; those forced always."""

    class Part(nn.Module):
        def __init__(self, in_dim: int, dim: int, weights: str | None = "published", k: int = 1) -> None:
            super().__init__()
            self.arguments = (in_dim, dim, weights, k)

    config = read_config(RECIPE, ["model.image.aggregator={name: kmax, k: 5}"])
    offered = {"in_dim": 3, "dim": 4, "unknown": 5}
    key = "model.image.aggregator"
    assert build_component(config, {"kmax": Part}, key, offered).arguments == (3, 4, "published", 5)
    assert build_component(config, {"kmax": Part}, key, offered, {"weights": None}).arguments == (3, 4, None, 5)
    given = NamedComponent(config, key, f"{key}.name", "part", {"dim": 9})
    assert check_arguments(given, Part) == {"dim": 9, "weights": "published", "k": 1}
    with pytest.raises(InputError, match="aggregator.in_dim: is filled in and cannot be set, got 3"):
        check_arguments(given._replace(arguments={"in_dim": 3}), Part)


def fail(error: str) -> Callable[..., Any]:
    class Broken(nn.Module):
        def __init__(self, drop: float = 0.0, weights: str | None = None) -> None:
            super().__init__()
            raise ValueError(error)

    return Broken


@pytest.mark.parametrize(
    ("error", "named"),
    [
        ("drop must be in [0, 1), got 2.0", "override 'model.image.encoder.drop=2.0'"),
        ("w.pt: no such file", "override 'model.image.encoder.weights=w.pt'"),
        ("no drop of w.pt is right", "override 'model.image.encoder.name=mine'"),  # no guesses from the prose
    ],
)
def test_whom_an_error_names(error: str, named: str) -> None:
    """The argument that it starts with, by name or value; otherwise the component's name."""
    content = read_config(RECIPE).model_dump()
    content["model"]["image"]["encoder"] = {"name": "regions"}
    overrides = ["name=mine", "drop=2.0", "weights=w.pt"]
    config = make_config(content, [f"model.image.encoder.{item}" for item in overrides], {"": "file.yaml"})
    with pytest.raises(InputError) as caught:
        build_component(config, {"mine": fail(error)}, "model.image.encoder")
    assert str(caught.value) == f"{named}: model.image.encoder: {error}"


def test_an_error_of_several_components_names_the_file() -> None:
    config = read_config(RECIPE, ["model.image.encoder.drop=0.1"])
    with (
        pytest.raises(InputError, match=r"^\S*f30k_region_bigru.yaml: model.image: no fit$"),
        errors_at(config, "model.image"),
    ):
        raise ValueError("no fit")


def test_what_a_checkpoint_may_name(mine: str) -> None:
    """No function from outside the package, no module of Python's; a name that the user gives may be any."""
    content = read_config(RECIPE).model_dump()
    content["model"]["similarity"] = {"name": f"{mine}:dot"}
    stranger = make_config(content, (), {"": "best.pt"}, trusted=False)
    with pytest.raises(InputError, match=f"best.pt: .*the checkpoint names {mine}:dot, which is not an nn.Module"):
        find_callable(component_at(stranger, "model.similarity"), {})
    allowed = make_config(content, [f"model.similarity.name={mine}:dot"], {"": "best.pt"}, trusted=False)
    assert find_callable(component_at(allowed, "model.similarity"), {}).__name__ == "dot"
    content["model"]["similarity"] = {"name": "os:system"}
    stranger = make_config(content, (), {"": "best.pt"}, trusted=False)
    with pytest.raises(InputError, match="the checkpoint names os:system, which is not part of a model; pass "):
        find_component(component_at(stranger, "model.similarity"), {})
    content["model"]["similarity"] = {"name": "torch.nn:Identity"}
    module = make_config(content, (), {"": "best.pt"}, trusted=False)
    assert find_callable(component_at(module, "model.similarity"), {}) is nn.Identity


def test_a_checkpoint_reads_no_weights() -> None:
    class Encoder(nn.Module):
        def __init__(self, weights: str | None, architecture: dict[str, Any] | None = None) -> None:
            super().__init__()
            self.arguments = (weights, architecture)

    content = read_config(RECIPE).model_dump()
    content["model"]["image"]["encoder"] = {"name": "mine", "weights": "http://somewhere"}
    config = make_config(content, (), {"": "best.pt"}, trusted=False)
    assert build_component(config, {"mine": Encoder}, "model.image.encoder").arguments == (None, {})


def test_type_hints_that_cannot_be_resolved() -> None:
    """Types imported for the type checker alone, or that YAML cannot express, are left to the constructor."""

    def odd(a: Tensor, b: Tensor, c: "Nowhere" = None, d: Callable[[int], int] | None = None) -> Tensor:  # type: ignore[name-defined]  # noqa: F821
        return a

    config = read_config(RECIPE)
    component = NamedComponent(config, "model.similarity", "model.similarity.name", "odd", {"c": 3})
    assert check_arguments(component, odd, 2) == {"c": 3, "d": None}
