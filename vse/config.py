"""YAML files and ``key=value`` overrides become one frozen, validated :class:`Config`.

Sections and their keys are the classes below. A component (``name`` and its arguments) is checked where the tables
are known, in :mod:`vse.build`: its constructor is its only schema.
"""

import inspect
import json
import os
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from vse.config_files import find_base, find_config, parse_yaml, read_yaml
from vse.errors import InputError, close_match

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00\n]*$")]
FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]

# Marks a setting that may change when a run is resumed, because it does not change what is trained: where files are,
# where the run computes, how long it goes on, how often it saves and logs.
MAY_CHANGE = "may change when a run is resumed"


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

    dir: Annotated[FilePath, MAY_CHANGE]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    device: Annotated[str, MAY_CHANGE] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resume: Annotated[Literal["auto", "never"], MAY_CHANGE] = "auto"
    save_minutes: Annotated[PositiveFloat, MAY_CHANGE] = 10.0  # a checkpoint at least this often, beside each epoch's
    log_steps: Annotated[PositiveInt, MAY_CHANGE] = 50


class VocabularyConfig(Section):
    """Built from the training captions, or read from a file; its word vectors random, or from a file."""

    min_count: PositiveInt = 4
    file: Annotated[FilePath | None, MAY_CHANGE] = None
    vectors: Annotated[FilePath | None, MAY_CHANGE] = None
    extend: bool = False  # add the training captions' words to the vocabulary of the checkpoint that a run starts from


class DataConfig(Section):
    """Which corpus, and how it is fed."""

    format: Text
    root: Annotated[FilePath, MAY_CHANGE]
    options: dict[str, Any] = {}  # arguments of the format's function
    sampling: Literal["pair", "image"] = "pair"
    transform: Component | None = None  # of pictures
    workers: Annotated[int, Field(ge=0, le=256), MAY_CHANGE] = 2
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

    epochs: Annotated[PositiveInt, MAY_CHANGE]
    batch_size: Annotated[int, Field(ge=2)] = 128
    micro_batch: Annotated[PositiveInt | None, MAY_CHANGE] = None  # how many samples are encoded at a time
    clip_norm: PositiveFloat | None = 2.0
    start_from: FilePath | None = None  # a run folder or checkpoint whose weights and vocabulary a new run begins with
    start_fresh: list[Text] = []  # beginnings of parameter names that keep their own initialisation instead


class EvalConfig(Section):
    """Evaluation."""

    batch_size: Annotated[PositiveInt, MAY_CHANGE] = 256
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of encoding; the papers' numbers are fp32's


class Config(Section):
    """A whole experiment, which knows where each of its settings came from."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    _origin: dict[str, str] = PrivateAttr(default_factory=dict)  # key -> file or override; "" -> the config's file
    _trusted: bool = PrivateAttr(default=True)

    @property
    def trusted(self) -> bool:
        """Whether the user wrote the config; one out of a checkpoint may be anybody's."""
        return self._trusted

    @property
    def file(self) -> str:
        """The file that the config was read from."""
        return self._origin.get("", "config")

    def given(self, key: str) -> bool:
        """Whether a file or an override gave ``key``, or a key inside of it; otherwise it has its default."""
        return any(known == key or known.startswith(f"{key}.") for known in self._origin)

    def source(self, key: str) -> str:
        """Return the file or override that gave ``key``, or the nearest section around it."""
        return _source(self._origin, key)

    def error(self, key: str, problem: str) -> InputError:
        """Return an error of one line that names ``key`` and the file or override that gave it.

        >>> raise config.error("data.vocabulary.vectors", "bert has no table of words to fill")
        """
        return InputError(f"{self.source(key)}: {key}: {problem}")

    def value(self, key: str) -> Any:
        """What stands at a dotted key.

        >>> config.value("train.epochs")
        25
        """
        found: Any = self
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return found

    def replaced(self, content: dict[str, Any]) -> "Config":
        """A config with other content, of the same origin."""
        config = Config.model_validate(content)
        config._origin, config._trusted = self._origin, self._trusted
        return config


_OPTIONAL = {"data.transform"}  # mappings that may be null

# The components of a config that names none; below all files, so that their arguments can be given alone.
_DEFAULTS = {
    "model": {"similarity": {"name": "cosine"}},
    "loss": {"ranking": {"name": "triplet"}},
    "optim": {"name": "adamw", "schedule": {"name": "constant"}},
}


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file with its ``base:`` files, apply ``key=value`` overrides, validate.

    Args:
        path: A config file, a run folder, or the name of a shipped config (see :func:`vse.config_files.find_config`).
        overrides: Settings that differ from the file's, such as "train.epochs=5".

    Returns:
        The config, its components not yet checked (see :func:`vse.build.read_config`).

    Raises:
        InputError: with one line that names the file or override, the full key, what was given and what was expected.

    >>> load_config("demo", ["train.epochs=1"]).train.epochs
    1
    """
    path = find_config(path)
    origin: dict[str, str] = {"": str(path)}
    content = _read(path, origin, ())
    return make_config(content, overrides, origin)


def make_config(
    content: dict[str, Any], overrides: typing.Sequence[str], origin: dict[str, str], trusted: bool = True
) -> Config:
    """Validate a plain dict with overrides.

    Args:
        content: The sections.
        overrides: Settings that differ, such as "train.epochs=5".
        origin: The file that each key came from; "" stands for all others.
        trusted: False for the content of a checkpoint, which may be anybody's.

    Returns:
        The config, its components not yet checked.

    Raises:
        InputError: as :func:`load_config`.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        source = f"override {override!r}"
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"{source}: expected key=value, such as train.epochs=5")
        value = parse_yaml(text, source)
        for part in reversed(key.split(".")):
            value = {part: value}
        merge(content, value, {}, source)  # raises when this override alone would replace a section
        given = merge(given, value, origin, source)
        origin[key] = source
    content = merge(content, given, origin, None)
    try:
        config = Config.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise InputError(_explain(error, origin)) from None
    except (RecursionError, ValueError):
        raise InputError(f"{origin['']}: a part of it contains itself") from None
    config._origin, config._trusted = origin, trusted
    return config


def merge(base: Any, new: Any, origin: dict[str, str], source: str | None, key: str = "") -> Any:
    """Put new settings over those of a base, mapping by mapping; a component under another name starts afresh.

    Args:
        base: The settings below.
        new: The settings above, which win.
        origin: Where each key came from; the new keys are added.
        source: The file or override that gave the new settings, or None when ``origin`` knows already.
        key: Where in the config the two stand.

    Returns:
        The merged settings; ``base`` is left as it is.

    Raises:
        InputError: when a mapping would be replaced by something else.
    """
    if isinstance(base, dict) and not isinstance(new, dict) and not (new is None and key in _OPTIONAL):
        hint = f"; name a component with {key}.name={new}" if "name" in base and isinstance(new, str) else ""
        place = f"{source or _source(origin, key)}: {key}"
        raise InputError(f"{place}: expected a mapping of settings, got {new!r}{hint}")
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


# Arguments that say which published weights a model starts from: a resumed run has its own.
_READ_AT_THE_START = {"model.image.encoder.weights", "model.image.encoder.backbone", "model.text.encoder.model"}


def config_changes(saved: dict[str, Any], config: Config) -> list[str]:
    """What differs between a run's config and the one that it is to be resumed with, of what may not differ.

    Args:
        saved: The run's config, resolved, as a plain dict.
        config: The config of the command, resolved.

    Returns:
        One phrase per key, such as "optim.lr (0.0005 there, 0.001 here)".
    """
    old, new = flatten(saved), flatten(config.model_dump())
    differ = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    differ = [key for key in differ if not _may_change(key, {type(old.get(key)), type(new.get(key))})]
    return [f"{key} ({old.get(key)} there, {new.get(key)} here)" for key in differ]


def _may_change(key: str, kinds: set[type]) -> bool:
    """Whether a setting may change when a run is resumed; ``kinds``: what it is before and after."""
    if key.startswith("data.options."):  # a format's text options name the files and folders that it reads
        return kinds <= {str, type(None)}
    if key in _READ_AT_THE_START:
        return True
    section: type[BaseModel] = Config
    *sections, name = key.split(".")
    for part in sections:
        field = section.model_fields.get(part)
        if field is None or not inspect.isclass(field.annotation) or not issubclass(field.annotation, BaseModel):
            return False
        section = field.annotation
    return name in section.model_fields and MAY_CHANGE in section.model_fields[name].metadata


def _read(path: Path, origin: dict[str, str], children: tuple[Path, ...]) -> dict[str, Any]:
    """Content of a config file over that of its base; ``children`` are the files that led to it."""
    try:
        content = read_yaml(path)
    except InputError as error:
        asked_by = f"{children[-1]}: base: " if children else ""
        raise InputError(f"{asked_by}{error}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a mapping of sections (run, data, model, ...), got {type(content).__name__}"
        )
    base = content.pop("base", None)
    below: dict[str, Any] = _DEFAULTS
    if base is not None:
        if not isinstance(base, str):
            raise InputError(f"{path}: base: expected the path of a config file, got {base!r}")
        parent = find_base(base, path)
        if parent.resolve() in {p.resolve() for p in (*children, path)}:
            raise InputError(f"{path}: base: {base} leads back to this file")
        below = _read(parent, origin, (*children, path))
    result = merge(below, content, origin, str(path))
    assert isinstance(result, dict)
    return result


def _source(origin: dict[str, str], key: str) -> str:
    """The file or override that gave a key; one that gave a part of it; that of the nearest section around it."""
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
    inside = [source for known, source in origin.items() if known.startswith(f"{key}.")]
    source = next((s for s in inside if s.startswith("override")), _source(origin, key))
    if first["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key ({close_match(loc[-1], _known_keys(loc[:-1]))})"
    if first["type"] == "missing":
        close = get_close_matches(loc[-1], list(first["input"]), n=1) if isinstance(first["input"], dict) else []
        if close:
            meant = ".".join([*loc[:-1], close[0]])
            return f"{_source(origin, meant)}: {meant}: unknown key (did you mean {loc[-1]!r}?)"
        return f"{origin['']}: {key}: missing"
    return f"{source}: {key}: {expectation([first['msg']], first['input'])}"


def expectation(messages: typing.Iterable[str], value: Any) -> str:
    """Say what a validator expected of a value, and what it got.

    >>> expectation(["Input should be 'auto' or 'never'"], "maybe")
    "input should be 'auto' or 'never', got 'maybe'"
    """
    problems = list(dict.fromkeys(message[0].lower() + message[1:] for message in messages))
    hint = ""
    if isinstance(value, bool) and any("'" in problem or "string" in problem for problem in problems):
        hint = " (YAML reads yes and on as True, no and off as False; put such a word in quotes)"
    return f"{' or '.join(problems)}, got {value!r}{hint}"


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
