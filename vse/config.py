"""YAML files and ``key=value`` overrides become one frozen, validated :class:`Config`.

The classes below are the sections and their keys, and docs/config.md is made of their docstrings. A component, which is
a ``name`` and its arguments, is not checked here but in :mod:`vse.build`, which knows the tables. The component's
constructor is its only schema.
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

from vse.config_files import find_base, find_config, lacks_space, parse_yaml, read_yaml
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


# Marks a setting that may change when a run is resumed: where files are, which device is used, how long the run is (a
# schedule such as cosine then ends later), and how often it saves and logs.
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
    """Where and how to run.

    Attributes:
        dir: The folder of the run.
        seed: The seed of all random numbers.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        precision: The precision of training. "tf32" is float32 with fast products on a GPU; "bf16" and "fp16" are
            mixed precision.
        deterministic: Whether a GPU must repeat its results to the bit, which is slower.
        compile: Whether torch.compile makes the towers faster, after some minutes. With "cuda_graphs" a GPU also
            records its kernels for each shape of a batch and replays them.
        resume: "auto" goes on where the run in the folder stopped; "never" refuses a folder that holds a run.
        save_minutes: How often last.pt is written, in minutes, besides after each epoch.
        log_steps: Number of steps between two entries of the log.
        tracker: Where curves are shown: "tensorboard", "wandb", "mlflow" or "none".
    """

    dir: Annotated[FilePath, MAY_CHANGE]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    device: Annotated[str, MAY_CHANGE] = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    deterministic: Annotated[bool, MAY_CHANGE] = False
    compile: Annotated[Literal[True, False, "cuda_graphs"], MAY_CHANGE] = False
    resume: Annotated[Literal["auto", "never"], MAY_CHANGE] = "auto"
    save_minutes: Annotated[PositiveFloat, MAY_CHANGE] = 10.0
    log_steps: Annotated[PositiveInt, MAY_CHANGE] = 50
    tracker: Annotated[Literal["tensorboard", "wandb", "mlflow", "none"], MAY_CHANGE] = "tensorboard"


class VocabularyConfig(Section):
    """The vocabulary: built from the training captions or read from a file, with random or published word vectors.

    Attributes:
        min_count: How often a word must occur in the training captions to enter the vocabulary.
        file: A published vocabulary (JSON or pickled) that is read instead.
        vectors: A text file of word vectors, such as GloVe's, from which the words start.
        extend: Whether to add the training captions' words to the vocabulary of ``train.start_from``.
    """

    min_count: PositiveInt = 4
    file: Annotated[FilePath | None, MAY_CHANGE] = None
    vectors: Annotated[FilePath | None, MAY_CHANGE] = None
    extend: bool = False


class DataConfig(Section):
    """The corpus, and how batches are made of it.

    Attributes:
        format: The data format: a name from the table below, or ``module:function``.
        root: The folder of the data.
        options: The arguments of the format; see the data formats below.
        sampling: "pair" shuffles the captions, each with its image; "image" shuffles the images and takes all captions
            of each.
        views: How often a batch has each image and each caption, with other elements dropped each time.
        transform: What prepares pictures and clips; features need none.
        workers: Number of processes, or of threads for features in files, that prepare batches.
        resident: Where features are kept during training; docs/data.md describes the choices.
        vocabulary: The vocabulary.
    """

    format: Text
    root: Annotated[FilePath, MAY_CHANGE]
    options: dict[str, Any] = {}
    sampling: Literal["pair", "image"] = "pair"
    views: Annotated[int, Field(ge=1, le=16)] = 1
    transform: Component | None = None
    workers: Annotated[int, Field(ge=0, le=256), MAY_CHANGE] = 2
    resident: Annotated[Literal["auto", "gpu", "memory", "disk"], MAY_CHANGE] = "auto"
    vocabulary: VocabularyConfig = VocabularyConfig()


class TowerConfig(Section):
    """One side of the model.

    Attributes:
        encoder: What turns an input into a set of vectors.
        aggregator: What turns the set into embeddings.
    """

    encoder: Component
    aggregator: Component


class ModelConfig(Section):
    """Two towers and a similarity.

    Attributes:
        embed_dim: Width of the embeddings.
        image: The image tower.
        text: The text tower.
        similarity: What compares two sets of embeddings.
    """

    embed_dim: Annotated[int, Field(ge=2)]
    image: TowerConfig
    text: TowerConfig
    similarity: Component


class TermConfig(Arguments):
    """A weighted regulariser and its arguments; its key is its name.

    Attributes:
        weight: The factor of the term in the loss; 0 leaves it out.
    """

    weight: NonNegativeFloat


class LossConfig(Section):
    """A ranking loss and regularising terms.

    Attributes:
        ranking: The loss of the score matrix.
        terms: Regularising terms by name, each with a ``weight`` and its arguments, as in ``{mmd: {weight: 0.01}}``.
        ramp_epoch: The epoch, counted from 0, in which the whole loss rises linearly from 0 to its full size.
    """

    ranking: Component
    terms: dict[str, TermConfig] = {}
    ramp_epoch: Annotated[int, Field(ge=0)] | None = None


class OptimConfig(Component):
    """An optimiser, its schedule, and learning-rate factors by parameter-name prefix.

    Attributes:
        lr: The learning rate.
        weight_decay: The weight decay.
        factors: Factors of the learning rate by prefix of parameter names; null removes one that a base config gave.
        layer_decay: Factor of an encoder's learning rate from each layer to the one before it.
        ema: Decay of the moving average of the weights, which is evaluated and saved in best.pt; null for none.
        schedule: How the learning rate changes over time.
    """

    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.01
    factors: dict[str, NonNegativeFloat | None] = {}  # None removes a factor that a base config gave
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: Component


class QueueConfig(Section):
    """Past embeddings that every batch is also compared with.

    Attributes:
        size: Number of images, and of captions, that are kept.
        momentum: Momentum of a slower copy of the towers that fills the queue; null fills it with the towers' own
            embeddings.
        start_epoch: The first epoch, counted from 0, in which the loss sees the queue.
    """

    size: PositiveInt
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    start_epoch: Annotated[int, Field(ge=0)] = 1


class MiningConfig(Section):
    """Batches that bring together captions that the model confuses.

    Attributes:
        every: Number of epochs between two searches of the training corpus.
        negatives: How many of an image's hardest captions join its batch.
        start_epoch: The first epoch, counted from 0, that begins with a search.
    """

    every: PositiveInt = 1
    negatives: PositiveInt = 4
    start_epoch: Annotated[int, Field(ge=0)] = 1


class TrainConfig(Section):
    """Epochs, batches, and the checkpoint that training starts from.

    Attributes:
        epochs: Number of epochs.
        batch_size: Number of captions in a batch; with ``data.sampling: image``, number of images.
        micro_batch: How many samples are encoded at a time, which saves memory; null encodes the whole batch at once.
        clip_norm: Largest norm of the gradient; a longer one is cut to it. null cuts nothing.
        freeze: Prefixes of parameter names that are not trained.
        queue: Past embeddings that every batch is also compared with; null for none.
        mining: Batches that bring together captions that the model confuses; null for none.
        start_from: A run folder or checkpoint whose weights and vocabulary a new run begins with.
        accumulate: Number of batches whose gradients are averaged in one step; only for losses that allow it.
        patience: Number of evaluations without a better score after which training ends; null trains for all epochs.
        limit: How many images, or which share of them, are trained on; null for all.
        start_fresh: Prefixes of parameter names that keep their own initialisation when there is a ``start_from``.
    """

    epochs: Annotated[PositiveInt, MAY_CHANGE]
    patience: Annotated[PositiveInt | None, MAY_CHANGE] = None
    limit: Annotated[int | float | None, PlainValidator(_limit)] = None
    batch_size: Annotated[int, Field(ge=2)] = 128
    micro_batch: Annotated[PositiveInt | None, MAY_CHANGE] = None
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = 2.0
    freeze: list[Text] = []  # prefixes of parameter names that are not trained
    queue: QueueConfig | None = None
    mining: MiningConfig | None = None
    start_from: FilePath | None = None
    start_fresh: list[Text] = []


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
    """Evaluation.

    Attributes:
        batch_size: Number of images, and of captions, that are encoded at a time.
        precision: The precision of encoding; the papers' numbers are in fp32.
        every: How often the dev split is evaluated: a number of epochs, or of steps as in ``500 steps``.
        best: The dev metric that chooses best.pt, such as ``rsum`` or ``t2i.r1``.
    """

    batch_size: Annotated[PositiveInt, MAY_CHANGE] = 256
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    every: Annotated[int | str, PlainValidator(_every)] = 1
    best: Best = "rsum"

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
DEFAULTS = {
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

    A text in the place of a component, as in ``aggregator: gpo``, is short for its name.

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
    place = f"{source or _source(origin, key)}: {key}"
    if isinstance(new, str):
        is_component = _is_component(key)
        keys = ["name"] if is_component else list(base) if isinstance(base, dict) else []
        if lacks_space(new) in keys:
            raise InputError(f"{place}: a space is missing after the colon in {new!r}")
        new = {"name": new} if is_component else new
    if isinstance(base, dict) and not isinstance(new, dict) and not (new is None and key in _OPTIONAL):
        raise InputError(f"{place}: expected a mapping of settings, got {new!r}")
    if source and not (isinstance(new, dict) and (isinstance(base, dict) or source.startswith("override"))):
        origin[key] = source  # an override of one key gives no other key of its section
    if not isinstance(new, dict):
        return new
    merged = dict(base) if isinstance(base, dict) else {}
    if "name" in new and "name" in merged and new["name"] != merged["name"]:
        # The settings that every optimiser has are kept; the old optimiser's own arguments are dropped.
        merged = {k: v for k, v in merged.items() if key == "optim" and k in OptimConfig.model_fields}
    if key == "data" and "format" in new and "format" in merged and new["format"] != merged["format"]:
        merged.pop("options", None)  # they belong to the other format
    for part, value in new.items():
        merged[part] = merge(merged.get(part), value, origin, source, f"{key}.{part}" if key else str(part))
    return merged


def _is_component(key: str) -> bool:
    """Whether a key is the place of a component, such as "model.image.encoder" or "optim"."""
    section: Any = Config
    for part in key.split("."):
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            return False
        section = _section_of(fields[part].annotation)
    return inspect.isclass(section) and issubclass(section, Component)


def _section_of(annotation: Any) -> Any:
    """The section that a field holds, also where it may be None; another type as it is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)[0]
    return annotation


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
    if (
        key.startswith("data.options.") and key != "data.options.splits"
    ):  # an option that is a text names a file or folder
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
    below: dict[str, Any] = DEFAULTS
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
    problems = ["expected a mapping of settings" if text == "input should be an object" else text for text in problems]
    hint = ""
    if isinstance(value, bool) and any("'" in problem or "string" in problem for problem in problems):
        hint = " (YAML reads yes and on as True, no and off as False; put such a word in quotes)"
    return f"{' or '.join(problems)}, got {value!r}{hint}"


def _known_keys(loc: list[str]) -> list[str]:
    """Keys of the section at ``loc``."""
    section: Any = Config
    for part in loc:
        section = _section_of(section.model_fields[part].annotation)
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
