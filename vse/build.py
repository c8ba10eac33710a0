"""From a config to objects; the only module that knows every table."""

import importlib
import inspect
import json
import typing
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import nn

from vse.aggregators import AGGREGATORS
from vse.checkpoint import find_checkpoint, load_checkpoint
from vse.config import Config, load_config, make_config
from vse.data.corpora import CORPORA, SPLITS, Corpus
from vse.data.vocabulary import Vocabulary
from vse.encoders import ENCODERS
from vse.errors import InputError, close_match
from vse.losses import LOSSES, REGULARISERS, Criterion
from vse.model import Tower, VSEModel
from vse.optim import OPTIMISERS, SCHEDULES, Schedule, parameter_groups
from vse.similarity import SIMILARITIES

# Arguments that the data or a neighbour decide; what a component is called with positionally is no argument of it.
_FILLED_IN = {"in_dim", "vocab_size"}
_CALLED_WITH = {"similarity": ("a", "b"), "term": ("image", "text"), "format": ("root", "split")}


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config and check every component in it against its constructor; the defaults are filled in.

    Raises InputError with one line.
    """
    return resolve(load_config(path, overrides))


def config_of_checkpoint(state: dict[str, Any], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Config that a checkpoint carries, with overrides."""
    return resolve(make_config(state["config"], overrides, {"": str(path)}))


def resolve(config: Config) -> Config:
    """Check every component and fill its arguments' defaults in."""
    content = config.model_dump()
    for side in ("image", "text"):
        for kind, table in (("encoder", ENCODERS), ("aggregator", AGGREGATORS)):
            content["model"][side][kind] = _resolve(config, table, f"model.{side}.{kind}")
    content["model"]["similarity"] = _resolve(config, SIMILARITIES, "model.similarity", "similarity")
    content["loss"]["ranking"] = _resolve(config, LOSSES, "loss.ranking")
    content["optim"]["schedule"] = _resolve(config, SCHEDULES, "optim.schedule")
    for name, term in config.loss.terms.items():
        function = _find(REGULARISERS, name, f"loss.terms.{name}", config)
        given = dict(term.model_extra or {})
        arguments = _check(function, given, f"loss.terms.{name}", config, _CALLED_WITH["term"])
        content["loss"]["terms"][name] = {"weight": term.weight, **arguments}
    function = _find(CORPORA, config.data.format, "data.format", config)
    content["data"]["options"] = _check(
        function, config.data.options, "data.options", config, _CALLED_WITH["format"], of=config.data.format
    )
    optimiser = _find(OPTIMISERS, config.optim.name, "optim.name", config)
    _check(optimiser, config.optim.arguments, "optim", config, ("params",), of=config.optim.name)
    # Torch's own defaults are left to torch; its optimisers' arguments are not ours to freeze.
    resolved = Config.model_validate(content)
    resolved._origin = config._origin
    return resolved


def build_corpus(config: Config, split: str) -> Corpus:
    """One split of the config's data. Raises InputError, naming the file, when something is missing or wrong."""
    if split not in SPLITS:
        raise InputError(f"split {split!r}: {close_match(split, list(SPLITS))}")
    return _find(CORPORA, config.data.format, "data.format", config)(config.data.root, split, **config.data.options)


def build_vocabulary(config: Config, training: Corpus) -> Vocabulary:
    """Vocabulary from the config's file, or of the training captions."""
    if config.data.vocabulary.file is not None:
        return Vocabulary.read(config.data.vocabulary.file)
    return Vocabulary.build(training.captions, config.data.vocabulary.min_count)


def image_width(corpus: Corpus, config: Config) -> int:
    """Width of a corpus's features. Raises InputError when its images are not what the image encoder reads."""
    encoder = _find(ENCODERS, config.model.image.encoder.name, "model.image.encoder.name", config)
    if not hasattr(corpus.images, "width"):
        raise InputError(
            f"model.image.encoder.name: {config.model.image.encoder.name} reads {getattr(encoder, 'reads', 'features')}"
            f", but {corpus.name} has pictures"
        )
    return int(corpus.images.width)


def build_model(config: Config, in_dim: int, vocabulary: Vocabulary) -> VSEModel:
    """Model of a config, for images ``in_dim`` wide, with fresh weights."""
    image = _build_tower(config, "image", "features", {"in_dim": in_dim})
    text = _build_tower(config, "text", "tokens", {"vocab_size": len(vocabulary)})
    similarity = config.model.similarity
    function = _find(SIMILARITIES, similarity.name, "model.similarity", config)
    return VSEModel(
        image, text, _make(function, similarity.arguments, "model.similarity", config), vocabulary=vocabulary
    )


def build_criterion(config: Config) -> Criterion:
    """Ranking loss and weighted terms of a config."""
    ranking = config.loss.ranking
    loss = _make(_find(LOSSES, ranking.name, "loss.ranking", config), ranking.arguments, "loss.ranking", config)
    terms = {}
    for name, term in config.loss.terms.items():
        key = f"loss.terms.{name}"
        terms[name] = (term.weight, _make(_find(REGULARISERS, name, key, config), term.model_extra or {}, key, config))
    return Criterion(loss, terms)


def build_optimiser(config: Config, model: VSEModel, criterion: Criterion) -> torch.optim.Optimizer:
    """Optimiser over the model's and the criterion's parameters, grouped by learning-rate factor."""
    named = [*model.named_parameters(), *((f"loss.{name}", p) for name, p in criterion.named_parameters())]
    named = [(name, p) for name, p in named if p.requires_grad]
    try:
        groups = parameter_groups(named, config.optim.lr, config.optim.factors)
    except ValueError as error:
        raise InputError(f"{config.source('optim.factors')}: optim.factors: {error}") from None
    settings = {"lr": config.optim.lr, "weight_decay": config.optim.weight_decay, **config.optim.arguments}
    optimiser = _find(OPTIMISERS, config.optim.name, "optim.name", config)
    return typing.cast(torch.optim.Optimizer, _construct(partial(optimiser, groups), settings, "optim", config))


def build_schedule(config: Config) -> Schedule:
    """Learning-rate schedule of a config."""
    schedule = config.optim.schedule
    constructor = _find(SCHEDULES, schedule.name, "optim.schedule", config)
    filled = {"epochs": config.train.epochs} if "epochs" in inspect.signature(constructor).parameters else {}
    arguments = {**schedule.arguments, **filled}
    return typing.cast(Schedule, _construct(constructor, arguments, "optim.schedule", config))


def load_model(
    path: str | Path, overrides: Sequence[str] = (), vocabulary: Vocabulary | None = None
) -> tuple[VSEModel, Config, Path]:
    """Model of a run folder or checkpoint, in evaluation mode on the CPU, with its config and the file it came from."""
    file = find_checkpoint(path)
    state = load_checkpoint(file)
    config = config_of_checkpoint(state, file, overrides)
    words = Vocabulary(state["vocabulary"]) if vocabulary is None else vocabulary
    model = build_model(config, state["in_dim"], words)
    load_weights(model, state["model"], file)
    return model.eval(), config, file


def load_weights(model: nn.Module, weights: dict[str, Any], file: Path) -> None:
    """Load a state dict strictly. Raises InputError that names the first keys that do not fit."""
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is not in this model" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{file}: its weights do not fit this config: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(weights)


def _build_tower(config: Config, side: str, gives: str, widths: dict[str, int]) -> Tower:
    """One tower, its widths filled in from the data and ``model.embed_dim``."""
    key = f"model.{side}"
    tower = getattr(config.model, side)
    embed_dim = config.model.embed_dim
    constructor = _find(ENCODERS, tower.encoder.name, f"{key}.encoder", config)
    if getattr(constructor, "reads", gives) != gives:
        raise InputError(
            f"{config.source(f'{key}.encoder.name')}: {key}.encoder.name: {tower.encoder.name} reads "
            f"{getattr(constructor, 'reads', '?')}, but the {side} tower is given {gives}"
        )
    encoder = _make(constructor, tower.encoder.arguments, f"{key}.encoder", config, {**widths, "dim": embed_dim})
    constructor = _find(AGGREGATORS, tower.aggregator.name, f"{key}.aggregator", config)
    dims = {"in_dim": encoder.dim, "out_dim": embed_dim, "dim": encoder.dim}
    aggregator = _make(constructor, tower.aggregator.arguments, f"{key}.aggregator", config, dims)
    width = getattr(aggregator, "out_dim", encoder.dim)
    if width != embed_dim:
        raise InputError(
            f"{config.source(f'{key}.encoder.dim')}: {key}.encoder.dim: {tower.aggregator.name} keeps the encoder's "
            f"width {width}, but model.embed_dim is {embed_dim}"
        )
    return Tower(encoder, aggregator)


def _find(table: dict[str, Any], name: str, key: str, config: Config) -> Callable[..., Any]:
    """Entry of a table, or the object that ``module:Class`` names."""
    if name in table:
        return typing.cast(Callable[..., Any], table[name])
    source = config.source(key if key.endswith((".name", ".format")) or key.startswith("loss.terms") else f"{key}.name")
    if ":" not in name:
        raise InputError(f"{source}: {key}: unknown name {name!r} ({close_match(name, list(table))})")
    module, _, attribute = name.partition(":")
    try:
        return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))
    except ModuleNotFoundError as error:
        raise InputError(f"{source}: {key}: {name}: {error}; is its folder on PYTHONPATH?") from None
    except AttributeError:
        raise InputError(f"{source}: {key}: {name}: module {module} has no {attribute}") from None


def _resolve(config: Config, table: dict[str, Any], key: str, kind: str = "") -> dict[str, Any]:
    """A component's checked arguments with its own defaults."""
    component: Any = config
    for part in key.split("."):
        component = getattr(component, part)
    function = _find(table, component.name, key, config)
    called_with = _CALLED_WITH.get(kind, ())
    return {
        "name": component.name,
        **_check(function, component.arguments, key, config, called_with, of=component.name),
    }


def _check(
    function: Callable[..., Any],
    given: dict[str, Any],
    key: str,
    config: Config,
    called_with: Collection[str],
    of: str = "",
) -> dict[str, Any]:
    """Arguments checked against a signature's names and types; defaults that are plain values are added."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in called_with and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)  # type: ignore[misc]
    label = f" of {of}" if of else ""
    checked = {}
    for name, value in given.items():
        source = config.source(f"{key}.{name}")
        if name in _FILLED_IN:
            raise InputError(f"{source}: {key}.{name}: comes from the data and cannot be set")
        if name not in parameters:
            known = [p for p in parameters if p not in _FILLED_IN]
            raise InputError(f"{source}: {key}.{name}: unknown argument{label} ({close_match(name, known)})")
        try:
            adapter = TypeAdapter(hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True))
            checked[name] = adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise InputError(f"{source}: {key}.{name}: {problem[0].lower()}{problem[1:]}, got {value!r}") from None
        except PydanticSchemaGenerationError:  # a type that YAML cannot express: the constructor will judge
            checked[name] = value
    filled_in = {"dim", "out_dim", "epochs", "params", "lr", *_FILLED_IN}
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty:
            if isinstance(parameter.default, str | int | float | bool | None):
                checked.setdefault(name, parameter.default)
        elif name not in checked and name not in filled_in:
            raise InputError(f"{config.source(key)}: {key}.{name}: missing, and {of or key} needs it")
    return checked


def _make(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    key: str,
    config: Config,
    widths: dict[str, int] | None = None,
) -> Any:
    """An instance of a component's class, or its function with the arguments bound; ``widths`` where it takes them."""
    wanted = inspect.signature(function).parameters
    arguments = {**{name: value for name, value in (widths or {}).items() if name in wanted}, **arguments}
    if not inspect.isclass(function):
        return partial(function, **arguments) if arguments else function
    return _construct(function, arguments, key, config)


def _construct(function: Callable[..., Any], arguments: dict[str, Any], key: str, config: Config) -> Any:
    """Call a constructor; its ValueError is the user's mistake."""
    try:
        return function(**arguments)
    except ValueError as error:
        source = next((config.source(f"{key}.{name}") for name in arguments if name in str(error)), config.source(key))
        raise InputError(f"{source}: {key}: {error}") from None
