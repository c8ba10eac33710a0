"""The components that a config names: found in a table or a module, checked against their signature, constructed."""

import contextlib
import importlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import nn

from vse.config import Config
from vse.errors import InputError, close_match

# Arguments that the data and the run decide, never set by hand; and those that are filled in unless they are given.
FIXED = {"in_dim", "out_dim", "vocab_size", "architecture", "epochs", "params"}
FILLED = {"dim", "lr"}


def at(tree: Any, key: str) -> Any:
    """What stands at a dotted key of a config or a dict."""
    for part in key.split("."):
        tree = tree[part] if isinstance(tree, dict) else getattr(tree, part)
    return tree


def find(config: Config, table: dict[str, Any], key: str, name: str) -> Callable[..., Any]:
    """Entry of a table, or the object that ``module:Class`` names; ``key`` is where the name was given."""
    if name in table:
        return typing.cast(Callable[..., Any], table[name])
    place = f"{config.source(key)}: {key}"
    if ":" not in name:
        raise InputError(f"{place}: unknown name {name!r} ({close_match(name, list(table))})")
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise InputError(f"{place}: expected a known name or my_package.module:Class, got {name!r}")
    parts = module.split(".")
    if not config._trusted and key not in config._origin:  # before it is imported, which runs what it holds
        if parts[0] in sys.stdlib_module_names or "__main__" in parts:
            raise InputError(f"{place}: the checkpoint names {name}, no part of a model; give {key}={name} to allow it")
    try:
        found = getattr(importlib.import_module(module), attribute)
        inspect.signature(found)
    except ModuleNotFoundError as error:
        raise InputError(f"{place}: {name}: {error}; is its folder on PYTHONPATH?") from None
    except AttributeError:
        raise InputError(f"{place}: {name}: module {module} has no {attribute}") from None
    except (TypeError, ValueError):
        raise InputError(f"{place}: {name}: is no class or function with named arguments") from None
    return typing.cast(Callable[..., Any], found)


def find_callable(config: Config, table: dict[str, Any], key: str, name: str) -> Callable[..., Any]:
    """What :func:`find` finds, to be called: a checkpoint, perhaps a stranger's, must not choose just any function."""
    found = find(config, table, key, name)
    trusted = config._trusted or key in config._origin or name in table
    if not trusted and not (inspect.isclass(found) and issubclass(found, nn.Module)):
        place = f"{config.source(key)}: {key}"
        raise InputError(f"{place}: the checkpoint names {name}, which is no nn.Module; give {key}={name} to allow it")
    return found


def check(
    config: Config,
    key: str,
    name: str,
    function: Callable[..., Any],
    given: dict[str, Any],
    called_with: Collection[str] = (),
    beside: Collection[str] = ("name",),
) -> dict[str, Any]:
    """Arguments checked against a signature's names and types, with its plain defaults.

    ``called_with``: the parameters that are no settings, but what a function is called with. ``beside``: the keys that
    stand beside the arguments, for the close match.
    """
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in called_with and parameter.kind is not parameter.VAR_POSITIONAL
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)  # type: ignore[misc]
    except NameError:  # hints that are imported for the type checker alone: the constructor will judge
        hints = {}
    types = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    checked = {}
    for argument, value in given.items():
        place = f"{config.source(f'{key}.{argument}')}: {key}.{argument}"
        if argument in parameters and argument in FIXED:
            raise InputError(f"{place}: is filled in and cannot be set, got {value!r}")
        if argument not in parameters:
            known = [*(parameter for parameter in parameters if parameter not in FIXED), *beside]
            raise InputError(f"{place}: unknown argument of {name} ({close_match(argument, known)})")
        try:
            TypeAdapter(hints.get(argument, Any), config=types).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            messages = dict.fromkeys(part["msg"][0].lower() + part["msg"][1:] for part in error.errors())
            raise InputError(f"{place}: {' or '.join(messages)}, got {value!r}") from None
        except PydanticSchemaGenerationError:  # a type that YAML cannot express: the constructor will judge
            pass
        checked[argument] = value
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty:
            if argument not in checked and argument not in FIXED | FILLED:
                raise InputError(f"{config.source(key)}: {key}.{argument}: missing, and {name} needs it")
        elif argument not in FIXED and isinstance(parameter.default, str | int | float | bool | None):
            checked.setdefault(argument, parameter.default)
    return checked


def make(
    config: Config,
    table: dict[str, Any],
    key: str,
    filled: dict[str, Any] | None = None,
    instead: dict[str, Any] | None = None,
) -> Any:
    """The component that a config names at ``key``.

    Where it takes them, with what is ``filled`` in, and with values ``instead`` of the config's.
    """
    component = at(config, key)
    function = find_callable(config, table, f"{key}.name", component.name)
    wanted = inspect.signature(function).parameters
    if not config._trusted:  # a checkpoint's weights are in it: whatever it names, nothing is read or fetched for it
        filled, instead = {"architecture": {}, **(filled or {})}, {"weights": None, **(instead or {})}
    taken = {name: value for name, value in (filled or {}).items() if name in wanted}
    replaced = {name: value for name, value in (instead or {}).items() if name in wanted}
    return construct(config, key, function, {**taken, **component.arguments, **replaced})


def construct(config: Config, key: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """An instance of a class, or a function with its arguments bound; a constructor's ValueError is the user's."""
    if not inspect.isclass(function):
        return partial(function, **arguments)
    with naming(config, key, arguments):
        return function(**arguments)


@contextlib.contextmanager
def naming(config: Config, key: str, arguments: Collection[str] = ()) -> Iterator[None]:
    """Turn a part's ValueError into an InputError with its key and the file or override that gave it.

    Of the arguments whose value or name the error has in it, one given on the command line is the likeliest; where
    there is none, no override is blamed for what another may have done.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        values = dict(arguments) if isinstance(arguments, Mapping) else {}
        named = [name for name, value in values.items() if isinstance(value, str) and "/" in value and value in text]
        named += [name for name in arguments if re.search(rf"\b{name}\b", text)]
        given = [f"{key}.{name}" for name in named if f"{key}.{name}" in config._origin]
        if not values or f"{key}.{named[0] if named else ''}" not in given:
            given.sort(key=lambda name: not config._origin[name].startswith("override"))
        source = config.source(given[0]) if given else config._origin.get(key, config._origin.get("", "config"))
        raise InputError(f"{source}: {key}: {text}") from None
