"""YAML files and ``key=value`` overrides become one frozen, validated :class:`Config`.

The classes below are the sections and their keys. A component, which is a ``name`` and its arguments, is not checked
here but in :mod:`vse.build`, which knows the tables. The component's constructor is its only schema.
"""

import inspect
import json
import os
import re
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from vse.config_files import find_base, find_config, parse_yaml, read_yaml
from vse.errors import InputError, close_match

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00\n]*$")]
FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]

_STEPS = re.compile(r"([1-9]\d*) steps?")


def _every(value: Any) -> int | str:
    """Check the setting eval.every."""
    if (type(value) is int and value >= 1) or (isinstance(value, str) and _STEPS.fullmatch(value)):
        return value
    raise PydanticCustomError("every", "expected a number of epochs, such as 1, or of steps, such as 500 steps")


def _limit(value: Any) -> int | float | None:
    """Check the setting train.limit."""
    if value is None or (type(value) is int and value >= 1) or (type(value) is float and 0 < value < 1):
        return value
    raise PydanticCustomError("limit", "expected a number of images, or a share of them above 0 and below 1")


# Marks a setting that may change when a run is resumed, because it does not change what is trained. Such settings say
# where files are, which device is used, how long the run is, and how often it saves and logs.
MAY_CHANGE = "may change when a run is resumed"


class Section(BaseModel):
    """A part of the config with fixed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Arguments(BaseModel):
    """A section with fixed keys and, in addition, the arguments of a component."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not fixed."""
        return dict(self.model_extra or {})


class Component(Arguments):
    """A name from one of the tables (or ``module:Class``) and that component's own arguments."""

    name: str


class RunConfig(Section):
    """Where and how to run."""

    dir: Annotated[FilePath, MAY_CHANGE]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    device: Annotated[str, MAY_CHANGE] = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # tf32: float32 with fast products on a GPU
    deterministic: Annotated[bool, MAY_CHANGE] = False  # whether a GPU must repeat its results to the bit; slower
    compile: Annotated[bool, MAY_CHANGE] = False  # whether torch.compile makes the towers faster, after some minutes
    resume: Annotated[Literal["auto", "never"], MAY_CHANGE] = "auto"
    save_minutes: Annotated[PositiveFloat, MAY_CHANGE] = 10.0  # how often last.pt is written, besides after each epoch
    log_steps: Annotated[PositiveInt, MAY_CHANGE] = 50
    tracker: Annotated[Literal["tensorboard", "wandb", "mlflow", "none"], MAY_CHANGE] = "tensorboard"


class VocabularyConfig(Section):
    """The vocabulary: built from the training captions or read from a file, with random or published word vectors."""

    min_count: PositiveInt = 4
    file: Annotated[FilePath | None, MAY_CHANGE] = None
    vectors: Annotated[FilePath | None, MAY_CHANGE] = None
    extend: bool = False  # whether to add the training captions' words to the vocabulary of train.start_from


class DataConfig(Section):
    """The corpus, and how batches are made of it."""

    format: Text
    root: Annotated[FilePath, MAY_CHANGE]
    options: dict[str, Any] = {}  # arguments of the format's function
    sampling: Literal["pair", "image"] = "pair"
    views: Annotated[int, Field(ge=1, le=16)] = 1  # how often a batch has each image and each caption, dropped anew
    transform: Component | None = None  # for pictures and clips
    workers: Annotated[int, Field(ge=0, le=256), MAY_CHANGE] = 2
    resident: Annotated[Literal["auto", "gpu", "memory", "disk"], MAY_CHANGE] = "auto"  # where features are kept
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
    factors: dict[str, NonNegativeFloat | None] = {}  # None removes a factor that a base config gave
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # of an encoder's rate from layer to earlier layer
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the average of the weights that is evaluated
    schedule: Component


class QueueConfig(Section):
    """Past embeddings that every batch is also compared with."""

    size: PositiveInt  # number of images, and of captions, that are kept
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None  # of a slower copy of the towers that fills the queue
    start_epoch: Annotated[int, Field(ge=0)] = 1  # the first epoch, counted from 0, in which the loss sees the queue


class MiningConfig(Section):
    """Batches that bring captions together which the model confuses."""

    every: PositiveInt = 1  # number of epochs between two searches of the training corpus
    negatives: PositiveInt = 4  # how many of an image's hardest captions join its batch
    start_epoch: Annotated[int, Field(ge=0)] = 1  # the first epoch, counted from 0, that begins with a search


class TrainConfig(Section):
    """Epochs, batches, and the checkpoint that training starts from."""

    epochs: Annotated[PositiveInt, MAY_CHANGE]
    patience: Annotated[PositiveInt | None, MAY_CHANGE] = None  # evaluations without a better one that end the run
    limit: Annotated[int | float | None, PlainValidator(_limit)] = None  # images, or a share of them, to train on
    batch_size: Annotated[int, Field(ge=2)] = 128
    micro_batch: Annotated[PositiveInt | None, MAY_CHANGE] = None  # how many samples are encoded at a time
    accumulate: PositiveInt = 1  # how many batches give the gradient of a step, for losses that allow it
    clip_norm: PositiveFloat | None = 2.0
    freeze: list[Text] = []  # prefixes of parameter names that are not trained
    queue: QueueConfig | None = None
    mining: MiningConfig | None = None
    start_from: FilePath | None = None  # a run folder or checkpoint whose weights and vocabulary a new run begins with
    start_fresh: list[Text] = []  # prefixes of parameter names that keep their own initialisation


Best = Literal[
    "rsum",
    "i2t.r1",
    "i2t.r5",
    "i2t.r10",
    "i2t.medr",
    "i2t.meanr",
    "t2i.r1",
    "t2i.r5",
    "t2i.r10",
    "t2i.medr",
    "t2i.meanr",
]


class EvalConfig(Section):
    """Evaluation."""

    batch_size: Annotated[PositiveInt, MAY_CHANGE] = 256
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # of encoding; the papers' numbers are in fp32
    every: Annotated[int | str, PlainValidator(_every)] = 1  # epochs between two evaluations, or "500 steps"
    best: Best = "rsum"  # the dev metric that chooses best.pt

    def interval(self, steps_per_epoch: int) -> int:
        """Return the number of steps between two evaluations.

        >>> EvalConfig(every="500 steps").interval(1000)
        500
        """
        if isinstance(self.every, str):
            return int(self.every.split()[0])
        return self.every * steps_per_epoch


class Config(Section):
    """All settings of an experiment, and the file or override that each came from."""

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
        """Whether the user wrote the config. A checkpoint's config may come from a stranger."""
        return self._trusted

    @property
    def file(self) -> str:
        """The file that the config was read from."""
        return self._origin.get("", "config")

    def given(self, key: str) -> bool:
        """Whether a file or an override gave ``key`` or a key below it. Otherwise it has its default."""
        return any(known == key or known.startswith(f"{key}.") for known in self._origin)

    def source(self, key: str) -> str:
        """Return the file or override that gave ``key``, or the nearest section around it."""
        return _source(self._origin, key)

    def error(self, key: str, problem: str) -> InputError:
        """Make the error for a wrong setting; it names the key and the file or override that gave it.

        Args:
            key: The dotted key.
            problem: What is wrong with it.

        Returns:
            The error, to be raised.

        >>> raise config.error("data.vocabulary.vectors", "bert has no table of words to fill")
        """
        return InputError(f"{self.source(key)}: {key}: {problem}")

    def value(self, key: str) -> Any:
        """Return the value at a dotted key.

        >>> config.value("train.epochs")
        25
        """
        found: Any = self
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return found

    def replaced(self, content: dict[str, Any]) -> "Config":
        """Return a config with other content whose settings keep their origin."""
        config = Config.model_validate(content)
        config._origin, config._trusted = self._origin, self._trusted
        return config


_OPTIONAL = {"data.transform", "train.queue", "train.mining"}  # mappings that may be null

# What every config starts from, so that a file may give arguments of these components without their names.
_DEFAULTS = {
    "model": {"similarity": {"name": "cosine"}},
    "loss": {"ranking": {"name": "triplet"}},
    "optim": {"name": "adamw", "schedule": {"name": "constant"}},
}


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a config file and its ``base:`` files, apply ``key=value`` overrides, and validate the result.

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
        trusted: False for the content of a checkpoint, which may come from a stranger.

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
        # The settings that every optimiser has are kept; the old optimiser's own arguments are dropped.
        merged = {k: v for k, v in merged.items() if key == "optim" and k in OptimConfig.model_fields}
    if key == "data" and new.get("format", merged.get("format")) != merged.get("format"):
        merged.pop("options", None)  # they belong to the other format
    for part, value in new.items():
        merged[part] = merge(merged.get(part), value, origin, source, f"{key}.{part}" if key else str(part))
    return merged


# Arguments that may change when a run is resumed: those that name published weights, since the run has weights of its
# own, and what changes memory and time alone.
_READ_AT_THE_START = {
    *("model.image.encoder.weights", "model.image.encoder.backbone", "model.image.encoder.model"),
    *("model.text.encoder.weights", "model.text.encoder.model", "data.transform.model"),
}
_SAME_RESULTS = {"model.image.encoder.recompute", "model.text.encoder.recompute"}
_FILLED_IN = {"data.transform.size", "data.transform.resize", "data.transform.resample"}  # None: as in the run


def config_changes(saved: dict[str, Any], config: Config) -> list[str]:
    """List the settings that must not change when a run is resumed, but differ.

    Args:
        saved: The run's config, resolved, as a plain dict.
        config: The config of the command, resolved.

    Returns:
        One phrase per key, such as "optim.lr (0.0005 in the run, 0.001 now)".
    """
    old, new = flatten(saved), flatten(config.model_dump())
    differ = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    differ = [key for key in differ if key not in _FILLED_IN or new.get(key) is not None]
    differ = [key for key in differ if not _may_change(key, {type(old.get(key)), type(new.get(key))})]
    return [f"{key} ({old.get(key)} in the run, {new.get(key)} now)" for key in differ]


def _may_change(key: str, kinds: set[type]) -> bool:
    """Whether a setting may change when a run is resumed; ``kinds`` are its types before and after."""
    if key.startswith("data.options."):  # an option that is a text names a file or folder
        return kinds <= {str, type(None)}
    if key in _READ_AT_THE_START | _SAME_RESULTS:
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
    """The content of a config file merged over that of its base; ``children`` are the files that led here."""
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
    """The file or override that gave a key, or else a key below it, or else the nearest section around it."""
    while key and key not in origin:
        inside = [source for known, source in origin.items() if known.startswith(f"{key}.")]
        if inside:
            return inside[0]
        key = key.rpartition(".")[0]
    return origin.get(key, "config")


def _explain(error: ValidationError, origin: dict[str, str]) -> str:
    """One line for the most helpful of the errors: an unknown key often explains a missing one."""
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

    Args:
        messages: What the validator said.
        value: The value.

    Returns:
        One phrase, with a hint where YAML has read a word as True or False.

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
    """Turn nested dicts into one dict with dotted keys.

    Args:
        tree: The nested dicts.
        prefix: Put before every key.

    Returns:
        The values by dotted key.

    >>> flatten({"a": {"b": 1}})
    {'a.b': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
