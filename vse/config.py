"""YAML files and ``key=value`` overrides become one frozen, validated :class:`Config`.

Sections and their keys are the classes below. A component (``name`` and its arguments) is checked where the tables
are known, in :mod:`vse.build`: its constructor is its only schema.
"""

import json
import os
import re
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from vse.errors import InputError, close_match

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00\n]*$")]
FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the config with fixed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Arguments(BaseModel):
    """Fixed keys, and beside them the arguments of whatever component is meant."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def arguments(self) -> dict[str, Any]:
        """What stands beside the fixed keys."""
        return dict(self.model_extra or {})


class Component(Arguments):
    """A name from one of the tables (or ``module:Class``) and that component's own arguments."""

    name: str


class RunConfig(Section):
    """Where and how to run."""

    dir: FilePath
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resume: Literal["auto", "never"] = "auto"
    save_minutes: PositiveFloat = 10.0  # a checkpoint at least this often, besides the one after every epoch
    log_steps: PositiveInt = 50


class VocabularyConfig(Section):
    """Built from the training captions, or read from a file; its word vectors random, or from a file."""

    min_count: PositiveInt = 4
    file: FilePath | None = None
    vectors: FilePath | None = None
    extend: bool = False  # add the training captions' words to the vocabulary of the checkpoint that a run starts from


class DataConfig(Section):
    """Which corpus, and how it is fed."""

    format: Text
    root: FilePath
    options: dict[str, Any] = {}  # arguments of the format's function
    sampling: Literal["pair", "image"] = "pair"
    transform: Component | None = None  # of pictures
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    vocabulary: VocabularyConfig = VocabularyConfig()


class TowerConfig(Section):
    """One side of the model."""

    encoder: Component
    aggregator: Component


class ModelConfig(Section):
    """Two towers and a similarity."""

    embed_dim: Annotated[int, Field(ge=2)]
    image: TowerConfig
    text: TowerConfig
    similarity: Component


class TermConfig(Arguments):
    """A weighted regulariser and its arguments; its key is its name."""

    weight: NonNegativeFloat


class LossConfig(Section):
    """A ranking loss and regularising terms."""

    ranking: Component
    terms: dict[str, TermConfig] = {}
    ramp_epoch: Annotated[int, Field(ge=0)] | None = None


class OptimConfig(Component):
    """An optimiser, its schedule, and learning-rate factors by parameter-name prefix."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.01
    factors: dict[str, NonNegativeFloat | None] = {}  # None takes one out that a base gave
    schedule: Component


class TrainConfig(Section):
    """The length and width of training."""

    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)] = 128
    clip_norm: PositiveFloat | None = 2.0


class EvalConfig(Section):
    """Evaluation."""

    batch_size: PositiveInt = 256


class Config(Section):
    """A whole experiment. ``source(key)`` tells the file or override that a key came from."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    _origin: dict[str, str] = PrivateAttr(default_factory=dict)
    _trusted: bool = PrivateAttr(default=True)  # False: from a checkpoint, which may be anybody's

    def source(self, key: str) -> str:
        """Return the file or override that gave ``key``, or the nearest section around it."""
        return _source(self._origin, key)


_OPTIONAL = {"data.transform"}  # mappings that may be null

# The components of a config that names none; below all files, so that their arguments can be given alone.
_DEFAULTS = {
    "model": {"similarity": {"name": "cosine"}},
    "loss": {"ranking": {"name": "triplet"}},
    "optim": {"name": "adamw", "schedule": {"name": "constant"}},
}


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file with its ``base:`` files, apply ``key=value`` overrides, validate.

    Raises InputError with one line that names the file or override, the full key, what was given and what was
    expected.
    """
    path = Path(path)
    origin: dict[str, str] = {"": str(path)}
    content = _read(path, origin, ())
    return make_config(content, overrides, origin)


def make_config(content: dict[str, Any], overrides: typing.Sequence[str], origin: dict[str, str]) -> Config:
    """Config of a plain dict plus overrides; ``origin`` tells where each key came from, "" is the default."""
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"override {override!r}: expected key=value, such as train.epochs=5")
        value = _parse(text, f"override {override!r}")
        for part in reversed(key.split(".")):
            value = {part: value}
        given = merge(given, value, origin, f"override {override!r}")
        origin[key] = f"override {override!r}"
    content = merge(content, given, origin, None)
    try:
        config = Config.model_validate_json(json.dumps(content, default=str), strict=True)
    except (RecursionError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise InputError(f"{origin['']}: a part of it contains itself") from None
        raise InputError(_explain(error, origin)) from None
    config._origin = origin
    return config


def merge(base: Any, new: Any, origin: dict[str, str], source: str | None, key: str = "") -> Any:
    """``new`` over ``base``, mapping by mapping; a component under another name starts afresh.

    ``origin`` is told that the new keys came from ``source``; without one, it knows already.
    """
    if isinstance(base, dict) and not isinstance(new, dict) and not (new is None and key in _OPTIONAL):
        raise InputError(f"{source or _source(origin, key)}: {key}: expected a mapping of settings, got {new!r}")
    if source and not (isinstance(new, dict) and (isinstance(base, dict) or source.startswith("override"))):
        origin[key] = source  # an override of one key gives no other key of its section
    if not isinstance(new, dict):
        return new
    merged = dict(base) if isinstance(base, dict) else {}
    if "name" in new and "name" in merged and new["name"] != merged["name"]:
        # What every optimiser has is not this optimiser's own.
        merged = {k: v for k, v in merged.items() if key == "optim" and k in OptimConfig.model_fields}
    if key == "data" and new.get("format", merged.get("format")) != merged.get("format"):
        merged.pop("options", None)  # another format's
    for part, value in new.items():
        merged[part] = merge(merged.get(part), value, origin, source, f"{key}.{part}" if key else str(part))
    return merged


# What may change when a run goes on: its length, paths, workers and logging.
_MAY_CHANGE = {
    "train.epochs",
    *("data.root", "data.vocabulary.file", "data.vocabulary.vectors"),
    *("data.options.annotations", "data.options.pictures", "data.options.frames", "run.dir"),
    *("model.image.encoder.weights", "model.image.encoder.backbone", "model.text.encoder.model"),  # read at the start
    *("data.workers", "eval.batch_size"),
    *("run.log_steps", "run.save_minutes", "run.resume"),
}


def config_changes(saved: dict[str, Any], config: Config) -> list[str]:
    """What differs between a saved config and this one, of what may not differ when a run goes on."""
    old, new = flatten(saved), flatten(config.model_dump())
    differ = [key for key in sorted({*old, *new} - _MAY_CHANGE) if old.get(key) != new.get(key)]
    return [f"{key} ({old.get(key)} there, {new.get(key)} here)" for key in differ]


class _Loader(yaml.SafeLoader):
    """YAML that reads 5e-4 as a number and refuses a key given twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)$"),
    list("-+0123456789."),
)


# A date in a config is a name, not a point in time.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    pairs = [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
    return {str(key): value for key, value in pairs}


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise InputError(f"{source}{where}: not valid YAML: {problem}") from None


def _read(path: Path, origin: dict[str, str], children: tuple[Path, ...]) -> dict[str, Any]:
    """Content of a config file over that of its base."""
    asked_by = f"{children[-1]}: base: " if children else ""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{asked_by}{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{asked_by}{path}: cannot be read as a config file ({error})") from None
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a mapping of sections (run, data, model, ...), got {type(content).__name__}"
        )
    base = content.pop("base", None)
    below: dict[str, Any] = _DEFAULTS
    if base is not None:
        if not isinstance(base, str):
            raise InputError(f"{path}: base: expected the path of a config file, got {base!r}")
        parent = path.parent / base
        if parent.resolve() in {p.resolve() for p in (*children, path)}:
            raise InputError(f"{path}: base: {base} leads back to this file")
        below = _read(parent, origin, (*children, path))
    result = merge(below, content, origin, str(path))
    assert isinstance(result, dict)
    return result


def _source(origin: dict[str, str], key: str) -> str:
    while key and key not in origin:
        inside = [source for known, source in origin.items() if known.startswith(f"{key}.")]
        if inside:
            return inside[0]
        key = key.rpartition(".")[0]
    return origin.get(key, "config")


def _explain(error: ValidationError, origin: dict[str, str]) -> str:
    """One line for the most telling of the errors: an unknown key explains a missing one."""
    order = {"extra_forbidden": 0, "missing": 2}
    first = min(error.errors(), key=lambda e: order.get(e["type"], 1))
    loc = [str(part) for part in first["loc"]]
    key = ".".join(loc)
    deeper = [source for known, source in origin.items() if known.startswith(f"{key}.")]
    source = next((s for s in deeper if s.startswith("override")), _source(origin, key))
    if first["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key ({close_match(loc[-1], _known_keys(loc[:-1]))})"
    if first["type"] == "missing":
        close = get_close_matches(loc[-1], list(first["input"]), n=1) if isinstance(first["input"], dict) else []
        if close:
            meant = ".".join([*loc[:-1], close[0]])
            return f"{_source(origin, meant)}: {meant}: unknown key (did you mean {loc[-1]!r}?)"
        return f"{origin['']}: {key}: missing"
    return f"{source}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"


def _known_keys(loc: list[str]) -> list[str]:
    """Keys of the section at ``loc``."""
    section: Any = Config
    for part in loc:
        section = section.model_fields[part].annotation
        if typing.get_origin(section) in (typing.Union, types.UnionType):
            section = typing.get_args(section)[0]
    return list(section.model_fields)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
