"""Config files: where they are found, and how their YAML is read."""

import re
from pathlib import Path
from typing import Any

import yaml

from vse.errors import InputError, close_match

_PACKAGE = Path(__file__).parent
# An installed package has its configs inside; a checkout has them beside the package.
_SHIPPED = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), None)
_STUDIES = "studies/"


def shipped_configs() -> dict[str, Path]:
    """Return the files of the shipped configs by name; a name is a path without ending, as in "vse_infty/msrvtt"."""
    files = _shipped_files()
    left_out = ("_", _STUDIES)  # _base: for others to build on
    return {name: file for name, file in files.items() if not name.startswith(left_out)}


def shipped_studies() -> dict[str, Path]:
    """Return the files of the shipped studies by name, such as "demo"."""
    return {name.removeprefix(_STUDIES): file for name, file in _shipped_files().items() if name.startswith(_STUDIES)}


def _shipped_files() -> dict[str, Path]:
    """All shipped YAML files by their path without ending, in the order of the names."""
    if _SHIPPED is None:
        return {}
    names = {file.relative_to(_SHIPPED).with_suffix("").as_posix(): file for file in _SHIPPED.rglob("*.yaml")}
    return {name: names[name] for name in sorted(names)}


def first_comment(file: Path) -> str:
    """Return the comment on a file's first line, which describes a shipped config, or ""."""
    with open(file, encoding="utf-8") as lines:
        line = next(lines, "")
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def find_config(name: str | Path) -> Path:
    """Find the config file that a user names.

    Args:
        name: A file, a run folder with a config.yaml, or the name of a shipped config.

    Returns:
        The file.

    Raises:
        InputError: There is no such file, folder or shipped config.

    >>> find_config("vse_infty/f30k_region_bigru").name
    'f30k_region_bigru.yaml'
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.exists() and not path.is_dir():
        return path
    shipped = shipped_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_dir():
        raise InputError(f"{path}: no config.yaml in this folder; expected a config file or a run folder")
    if "=" in str(name):
        raise InputError(f"{name}: is a setting; expected a config or a run folder before the settings")
    hint = "" if path.suffix else f" ({close_match(str(name), list(shipped))})"
    raise InputError(f"{path}: no such config file{hint}")


def names_config(name: str | Path) -> bool:
    """Whether a name means a config rather than a run folder or a checkpoint.

    >>> names_config("demo"), names_config("runs/demo")
    (True, False)
    """
    path = Path(name)
    if path.is_dir():
        return False
    return path.suffix in (".yaml", ".yml") or (not path.exists() and str(name) in shipped_configs())


def find_base(base: str, file: Path) -> Path:
    """Find the file that the key ``base:`` of a config file names.

    Args:
        base: The value of the key: a path relative to the file, or the name of a shipped config.
        file: The config file.

    Returns:
        The path; the file need not exist.
    """
    path = file.parent / base
    return path if path.exists() else shipped_configs().get(base, path)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Returns:
        The content of the file, usually a dict.

    Raises:
        InputError: The file cannot be read or is not valid YAML; the message names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a config file ({error})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: The YAML.
        source: The file or override that it comes from, for messages.

    Returns:
        Plain values. ``5e-4`` becomes a number, and a date stays a string.

    Raises:
        InputError: The text is not valid YAML, or a key occurs twice in a mapping.

    >>> parse_yaml("{lr: 5e-4}", "override 'optim={lr: 5e-4}'")
    {'lr': 0.0005}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line, problem = "", "cannot be read"
        if isinstance(error, yaml.MarkedYAMLError):
            problem = error.problem or problem
            number = error.problem_mark.line + 1 if error.problem_mark else 0
            if problem in ("could not find expected ':'", "mapping values are not allowed here"):
                number, problem = _missing_space(text, number) or (number, problem)
            line = f", line {number}" if number else ""
        raise InputError(f"{source}{line}: not valid YAML: {problem}") from None


def lacks_space(text: str) -> str | None:
    """Return the key of a setting whose colon has no space behind it, so that YAML reads all of it as one word.

    >>> lacks_space("epochs:3"), lacks_space("epochs: 3")
    ('epochs', None)
    """
    found = re.match(r"\s*(\w+):[^\s:/\\]", text)
    return found[1] if found else None


def _missing_space(text: str, number: int) -> tuple[int, str] | None:
    """The line, and the problem, of a setting without a space, if there is one in a line or the line above it."""
    lines = text.splitlines()
    for place in (number - 1, number):  # the reader notices a line late
        if 0 < place <= len(lines) and lacks_space(lines[place - 1]):
            return place, f"a space is missing after the colon in {lines[place - 1].strip()!r}"
    return None


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 5e-4 as a number and refuses duplicate keys."""


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
    content: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        value = loader.construct_object(value_node, deep=True)
        problem = None
        if str(key) in content:
            problem = f"key {key!r} is given twice"
        elif node.flow_style and value is None and ":" in str(key):
            problem = f"a space is missing after the colon in {key!r}"
        if problem is not None:
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        content[str(key)] = value
    return content


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
