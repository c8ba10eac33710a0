"""The page docs/config.md: every setting with its type, default and meaning, from the schema and the constructors."""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vse.aggregators import AGGREGATORS
from vse.components import KNOWN_WITHOUT, NEVER_GIVEN
from vse.config import DEFAULTS, Component, Config, OptimConfig, TermConfig
from vse.data.clips import ClipTransform
from vse.data.formats import FORMATS
from vse.data.transforms import TRANSFORMS
from vse.encoders import ENCODERS
from vse.losses import LOSSES, REGULARISERS
from vse.optim import OPTIMISERS, SCHEDULES
from vse.similarity import SIMILARITIES

_HEAD = """# Settings

`vse docs-config` prints this page from the config's schema and the constructors' signatures. A test compares the two;
after a change, run `vse docs-config > docs/config.md`. [components.md](components.md) says what components are for.

A setting is given in a YAML file or on the command line, as in `train.epochs=5`, and `vse train CONFIG --print-config`
prints the values of a config. A component is a name and its arguments, as in
`aggregator: {name: pie_net, num_embeddings: 4}`, or the name alone, as in `aggregator: gpo`. `my_package.module:Class`
names a component of your own."""


class Table(NamedTuple):
    """A table of components.

    Attributes:
        title: The heading of its section on the page.
        keys: Where a config names these components.
        entries: The components by name.
        inputs: Number of inputs that a function is called with; they are not settings.
    """

    title: str
    keys: tuple[str, ...]
    entries: Mapping[str, Any]
    inputs: int = 0


TABLES = (
    Table("Encoders", ("model.image.encoder", "model.text.encoder"), ENCODERS),
    Table("Aggregators", ("model.image.aggregator", "model.text.aggregator"), AGGREGATORS),
    Table("Similarities", ("model.similarity",), SIMILARITIES, 2),
    Table("Ranking losses", ("loss.ranking",), LOSSES),
    Table("Terms", ("loss.terms",), REGULARISERS, 2),
    Table("Schedules", ("optim.schedule",), SCHEDULES),
    Table("Transforms", ("data.transform",), {**TRANSFORMS, "clip": ClipTransform}),
    Table("Data formats", ("data.format",), FORMATS, 2),
)

# The arguments of torch's optimisers that one changes. Their other arguments depend on torch's version.
_OPTIMISER_ARGUMENTS = {
    "adamw": {
        "betas": "Decay of the running means of the gradient and of its square.",
        "eps": "What is added to the root of the mean square.",
        "amsgrad": "Whether the largest mean square so far is used.",
    },
    "sgd": {
        "momentum": "The factor of the previous step.",
        "nesterov": "Whether the momentum is Nesterov's.",
    },
}
_OPTIMISER_ARGUMENTS["adam"] = _OPTIMISER_ARGUMENTS["adamw"]


class Setting(NamedTuple):
    """A row of the page."""

    name: str
    type: str
    default: str
    meaning: str


def config_page() -> str:
    """Write the page.

    Returns:
        The page in Markdown, without a newline at the end.

    Raises:
        ValueError: A setting has no description in its docstring; the message names it.

    >>> config_page().splitlines()[0]
    '# Settings'
    """
    parts = [_HEAD]
    for name, field in Config.model_fields.items():
        section = typing.cast(type[BaseModel], field.annotation)
        parts += [f"## `{name}`", _first_sentence(section), _table("setting", list(settings_of(section, f"{name}.")))]
    for table in TABLES:
        parts += [f"## {table.title}", f"For {' and '.join(f'`{key}`' for key in table.keys)}."]
        for name, entry in table.entries.items():
            arguments = list(arguments_of(entry, table.inputs, with_weight=table.title == "Terms"))
            shown = _table("argument", arguments) if arguments else "It has no arguments."
            parts += [f"### `{name}`", _first_sentence(entry), shown]
    parts += ["## Optimisers", "For `optim`. Any other argument of torch's classes can be given as well."]
    for name, optimiser in OPTIMISERS.items():
        parts += [f"### `{name}`", f"`torch.optim.{optimiser.__name__}`", _table("argument", _of_optimiser(name))]
    return "\n\n".join(parts)


def settings_of(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    """Yield the settings of a section of the config, and those of the sections inside it.

    Args:
        section: The section's class.
        prefix: What stands before the name of each setting, such as "run.".

    Yields:
        One setting after another.

    Raises:
        ValueError: A setting has no description.
    """
    for name, field in section.model_fields.items():
        if name == "name" and issubclass(section, Component):
            yield Setting(prefix.rstrip("."), "name", _default_at(prefix.rstrip(".")), "The optimiser.")
            continue
        key, inner = f"{prefix}{name}", _section_in(field.annotation)
        meaning = _description(section, name, f"{section.__name__}.{name}")
        if inner is not None and issubclass(inner, Component) and inner is not OptimConfig:
            optional = " or null" if _is_optional(field.annotation) else ""
            yield Setting(key, f"name{optional}", _default_at(key, field), meaning)
        elif inner is not None and inner is not TermConfig:
            if _is_optional(field.annotation):
                yield Setting(key, "mapping or null", _yaml(None), meaning)
            yield from settings_of(inner, f"{key}.")
        else:
            bounds = _bounds(field.metadata)
            yield Setting(key, _type_name(field.annotation, bounds), _default_of_field(field), meaning)


def arguments_of(entry: Any, inputs: int = 0, with_weight: bool = False) -> Iterator[Setting]:
    """Yield the arguments of a component that a config may give.

    Args:
        entry: The component's class or function.
        inputs: Number of inputs that a function is called with; they are not settings.
        with_weight: Whether it is a term of the loss, which has a weight beside its arguments.

    Yields:
        One argument after another.

    Raises:
        ValueError: An argument has no description.
    """
    if with_weight:
        yield from settings_of(TermConfig, "")
    parameters = list(inspect.signature(entry).parameters.values())
    hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
    for parameter in parameters if inspect.isclass(entry) else parameters[inputs:]:
        if parameter.name in NEVER_GIVEN or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = "required" if parameter.default is parameter.empty else _yaml(parameter.default)
        if parameter.name in KNOWN_WITHOUT:
            default = "filled in"
        meaning = _description(entry, parameter.name, f"{entry.__name__}({parameter.name})")
        yield Setting(parameter.name, _type_name(hints.get(parameter.name, Any)), default, meaning)


def _of_optimiser(name: str) -> list[Setting]:
    """The arguments of an optimiser that one changes."""
    parameters = inspect.signature(OPTIMISERS[name]).parameters
    kinds = {bool: "true or false", float: "number", int: "number", tuple: "list of numbers"}
    return [
        Setting(argument, kinds[type(parameters[argument].default)], _yaml(parameters[argument].default), meaning)
        for argument, meaning in _OPTIMISER_ARGUMENTS[name].items()
    ]


def _table(head: str, settings: list[Setting]) -> str:
    """A table in Markdown."""
    rows = [(f"`{setting.name}`", *setting[1:]) for setting in settings]
    lines = [(head, "type", "default", "meaning"), ("---", "---", "---", "---"), *rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def _first_sentence(thing: Any) -> str:
    """The first paragraph of a docstring."""
    return _plain((inspect.getdoc(thing) or "").split("\n\n")[0])


def _plain(text: str) -> str:
    """A docstring's text as Markdown, on one line."""
    text = re.sub(r":(?:class|func|meth|mod):`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("None", "null")


def _description(thing: Any, name: str, label: str) -> str:
    """What a docstring says of an argument or attribute; where it points to another class, what that one says."""
    for owner in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
        text = _entry(owner.__doc__ or "", name)
        if text:
            break
    else:
        raise ValueError(f"{label} has no description; write one under Args: or Attributes: in the docstring")
    points = re.match(r"As in :(?:class|func):`([\w.]+)`(?:: |\. |\.$)", text)
    if points is None:
        return _plain(text)
    shared, own = _description(_find(points[1], thing), name, label), _plain(text[points.end() :])
    return f"{shared} {own if own.startswith('null') else own[:1].upper() + own[1:]}".strip()


def _entry(docstring: str, name: str) -> str:
    """The text of an entry under Args: or Attributes:, or ""."""
    sections = re.findall(
        r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", inspect.cleandoc(docstring), re.DOTALL | re.MULTILINE
    )
    found = re.search(rf"^    {name}: (.*?)(?=^    \S|\Z)", "".join(sections), re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _find(path: str, beside: Any) -> Any:
    """A class or function that a docstring names: by its module, or one in the same module."""
    module, _, name = path.rpartition(".")
    return getattr(__import__(module or beside.__module__, fromlist=[name]), name)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be None or is one of several by name."""
    for inner in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            return inner
    return None


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _default_at(key: str, field: FieldInfo | None = None) -> str:
    """The component at a key of which every config starts."""
    found: Any = DEFAULTS
    for part in key.split("."):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    if found:
        return _yaml(found["name"])
    return "required" if field is None or field.is_required() else _yaml(None)


def _default_of_field(field: FieldInfo) -> str:
    return "required" if field.is_required() else _yaml(field.default)


def _yaml(value: Any) -> str:
    """A default as a config writes it."""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _bounds(metadata: typing.Iterable[Any]) -> list[str]:
    """What restricts a number, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = []
    for entry in metadata:
        inner = entry.metadata if isinstance(entry, FieldInfo) else [entry]
        found += [f"{words[name]} {getattr(part, name)}" for part in inner for name in words if hasattr(part, name)]
    return [bound for bound in found if "9223372036854775808" not in bound]  # the limit of a seed says nothing


def _type_name(annotation: Any, bounds: list[str] | None = None) -> str:
    """A type in words."""
    if typing.get_origin(annotation) is Annotated:
        inner, *metadata = typing.get_args(annotation)
        return _type_name(inner, _bounds(metadata))
    limits = f", {', '.join(bounds)}" if bounds else ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(map(_yaml, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments) + limits
    if origin is dict:
        return f"mapping of names to {_type_name(arguments[1])}"
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    names = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        Any: "any value",
    }
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "settings"
    return f"{names[annotation]}{limits}"
