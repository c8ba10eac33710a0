"""Find the components that a config names, check their arguments against their signatures, and build them."""

import contextlib
import importlib
import inspect
import json
import re
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import nn

from vse.config import Config, expectation
from vse.errors import InputError, close_match

# Arguments that are computed from the data and the run. A config must not give them.
NEVER_GIVEN = {"in_dim", "out_dim", "vocab_size", "architecture", "side", "epochs", "params", "a_mask", "b_mask"}
# Arguments that the build fills in unless a config gives them.
KNOWN_WITHOUT = {"dim", "lr"}


class NamedComponent(NamedTuple):
    """A component as a config names it.

    Attributes:
        config: The config.
        key: Where its arguments stand, such as "model.image.aggregator".
        name_key: Where its name stands, such as "model.image.aggregator.name".
        name: A name from a table, or ``my_package.module:Class``.
        arguments: The arguments that the config gives.
    """

    config: Config
    key: str
    name_key: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def may_be_imported(self) -> bool:
        """Whether the user chose the name. A name from a checkpoint may be a stranger's choice."""
        return self.config.trusted or self.config.given(self.name_key)


def component_at(config: Config, key: str) -> NamedComponent:
    """Return the component at a key of a config.

    Args:
        config: The config.
        key: The key of a mapping with a ``name`` and the component's arguments, such as "model.similarity".

    Returns:
        The component as the config names it.

    >>> component_at(config, "model.similarity").name
    'cosine'
    """
    found = config.value(key)
    return NamedComponent(config, key, f"{key}.name", found.name, found.arguments)


def find_component(component: NamedComponent, table: Mapping[str, Any]) -> Callable[..., Any]:
    """Find the class or function that a name stands for, without calling it.

    Args:
        component: The component as a config names it.
        table: The known names.

    Returns:
        The table's entry, or what ``module:Class`` names.

    Raises:
        InputError: There is no such component, or a checkpoint names a module of Python's standard library.
    """
    config, key, name = component.config, component.name_key, component.name
    if name in table:
        return typing.cast(Callable[..., Any], table[name])
    if ":" not in name:
        raise config.error(key, f"unknown name {name!r} ({close_match(name, list(table))})")
    module, _, attribute = name.partition(":")
    packages = module.split(".")
    if not all(part.isidentifier() for part in [*packages, attribute]):
        raise config.error(key, f"expected a known name or my_package.module:Class, got {name!r}")
    foreign = packages[0] in sys.stdlib_module_names or "__main__" in packages
    if foreign and not component.may_be_imported:  # to import a module runs what it holds
        raise config.error(
            key, f"the checkpoint names {name}, which is not part of a model; pass {key}={name} to allow it"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
        inspect.signature(found)
    except ModuleNotFoundError as error:
        raise config.error(key, f"{name}: {error}; is its folder on PYTHONPATH?") from None
    except AttributeError:
        raise config.error(key, f"{name}: module {module} has no {attribute}") from None
    except (TypeError, ValueError):
        raise config.error(key, f"{name} is not a class or function with named arguments") from None
    return typing.cast(Callable[..., Any], found)


def find_callable(component: NamedComponent, table: Mapping[str, Any]) -> Callable[..., Any]:
    """Find the class or function that a name stands for, in order to call it.

    A checkpoint may come from a stranger, so it must not be able to call any function. From outside the package it may
    name only subclasses of ``nn.Module``.

    Args:
        component: The component as a config names it.
        table: The known names.

    Returns:
        What :func:`find_component` finds.

    Raises:
        InputError: As :func:`find_component`, or a checkpoint names a function.
    """
    found = find_component(component, table)
    is_module = inspect.isclass(found) and issubclass(found, nn.Module)
    if component.name not in table and not component.may_be_imported and not is_module:
        key, name = component.name_key, component.name
        raise component.config.error(
            key, f"the checkpoint names {name}, which is not an nn.Module; pass {key}={name} to allow it"
        )
    return found


def check_arguments(
    component: NamedComponent,
    function: Callable[..., Any],
    called_with: int = 0,
    beside: Collection[str] = ("name",),
) -> dict[str, Any]:
    """Check a component's arguments against the names and types of a signature.

    Args:
        component: The component as a config names it.
        function: The class or function that the name stands for.
        called_with: The number of inputs that a function is called with later. Its first parameters take them, whatever
            their names are, and are not arguments of the component. It does not apply to a class.
        beside: Other keys of the same mapping, which are suggested when an argument is misspelt.

    Returns:
        The given arguments, and the signature's defaults for the others as far as they are plain values.

    Raises:
        InputError: An argument is unknown, has the wrong type, or is missing.
    """
    config, key, name = component.config, component.key, component.name
    parameters = _settings(component, function, called_with)
    hints = _type_hints(function)
    for argument, value in component.arguments.items():
        place = f"{key}.{argument}"
        if argument in parameters and argument in NEVER_GIVEN:
            raise config.error(place, f"is filled in and cannot be set, got {value!r}")
        if argument not in parameters:
            known = [*(parameter for parameter in parameters if parameter not in NEVER_GIVEN), *beside]
            raise config.error(place, f"unknown argument of {name} ({close_match(argument, known)})")
        if problem := _type_problem(value, hints.get(argument, Any)):
            raise config.error(place, problem)
    checked = dict(component.arguments)
    for argument, parameter in parameters.items():
        if argument in checked or argument in NEVER_GIVEN:
            continue
        if parameter.default is not parameter.empty:
            if isinstance(parameter.default, str | int | float | bool | None):
                checked[argument] = parameter.default
        elif argument not in KNOWN_WITHOUT:
            raise InputError(f"{config.source(key)}: {key}.{argument}: missing, and {name} needs it")
    return checked


def _settings(
    component: NamedComponent, function: Callable[..., Any], called_with: int
) -> dict[str, inspect.Parameter]:
    """The parameters of a function that a config may set, by name."""
    parameters = list(inspect.signature(function).parameters.values())
    if not inspect.isclass(function):
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(positional) < called_with and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            names = ", ".join(p.name for p in positional)
            problem = f"{component.name} takes ({names}), but it is called with {called_with} positional arguments"
            raise component.config.error(component.name_key, problem)
        inputs = positional[:called_with]
        parameters = [p for p in parameters if p not in inputs]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters, as far as they can be resolved."""
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)  # type: ignore[misc]
    except NameError:  # a type that is imported only for type checkers: the constructor will check the value
        return {}


def _type_problem(value: Any, hint: Any) -> str:
    """What is wrong with a value of a parameter of some type, or ""."""
    types = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        TypeAdapter(hint, config=types).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return expectation([part["msg"] for part in error.errors()], value)
    except PydanticSchemaGenerationError:  # a type that YAML cannot express: the constructor will check the value
        pass
    return ""


def build_component(
    config: Config,
    table: Mapping[str, Any],
    key: str,
    offered: Mapping[str, Any] | None = None,
    forced: Mapping[str, Any] | None = None,
) -> Any:
    """Build the component that a config names.

    Args:
        config: The config, resolved.
        table: The known names.
        key: Where the component stands in the config.
        offered: Arguments that the component gets if it has parameters for them and the config does not give them.
        forced: Arguments that the component gets if it has parameters for them, whatever the config gives.

    Returns:
        An instance of a class, or a function with its arguments bound.

    Raises:
        InputError: There is no such component, or its constructor raises a ValueError.
    """
    component = component_at(config, key)
    function = find_callable(component, table)
    offered, forced = dict(offered or {}), dict(forced or {})
    if not config.trusted:  # a checkpoint holds its weights, so nothing that it names is read or downloaded
        offered, forced = {"architecture": {}, **offered}, {"weights": None, **forced}
    arguments = {**_accepted(function, offered), **component.arguments, **_accepted(function, forced)}
    return construct(config, key, function, arguments)


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some arguments that a function has a parameter for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def construct(config: Config, key: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Make an instance of a class, or bind a function's arguments.

    Args:
        config: The config.
        key: Where the component stands in it.
        function: The class or function.
        arguments: Its arguments.

    Returns:
        The instance, or the function with its arguments bound.

    Raises:
        InputError: The constructor raises a ValueError.
    """
    if not inspect.isclass(function):
        return partial(function, **arguments)
    with errors_at(config, key, arguments):
        return function(**arguments)


@contextlib.contextmanager
def errors_at(config: Config, key: str, arguments: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn a component's ValueError into an InputError that names its key and the file or override to correct.

    When the error begins with an argument's name (as those of :mod:`vse.errors` do) or with its value (as those about a
    file do), it is the file or override that gave this argument. Otherwise it is the one that named the component, or
    the config's file when the key stands for several components.

    Args:
        config: The config.
        key: Where the component stands in it.
        arguments: The component's arguments.

    Raises:
        InputError: The block raised a ValueError. A bug in a user's own component keeps its traceback.

    >>> with errors_at(config, "model.similarity"):
    ...     similarity(a, b)
    """
    try:
        yield
    except ValueError as error:
        if is_own_bug(error):
            raise
        raise InputError(f"{_to_look_at(config, key, arguments or {}, str(error))}: {key}: {error}") from None


def is_own_bug(error: ValueError) -> bool:
    """Tell whether a ValueError is a bug in a module outside of this package.

    Nobody wrote the message of an operation that failed there, such as unpacking. A module that raises an error itself
    means it to be read.

    >>> is_own_bug(ValueError("k is too large"))
    False
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
        return False
    line = frames[-1].line or "raise"  # a module without its source
    return not line.startswith("raise")


def _to_look_at(config: Config, key: str, arguments: Mapping[str, Any], error: str) -> str:
    """The file or override to correct after a component's error."""
    first_word = re.split(r"\W", error, maxsplit=1)[0]
    for name, value in arguments.items():
        if (name == first_word or error.startswith(f"{value}: ")) and config.given(f"{key}.{name}"):
            return config.source(f"{key}.{name}")
    named_at = key if key == "data.format" else f"{key}.name"
    return config.source(named_at) if config.given(named_at) else config.file
