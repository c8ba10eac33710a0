import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import vse
from vse.cli import COMMANDS

PACKAGE = ROOT / "vse"


def room(module: str) -> str:
    """The folder of the package, or the file beside the folders, that a module is in."""
    return module.split(".")[1] if "." in module else "vse"


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports when it runs: not those for the type checker alone."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                inner.__dict__["skipped"] = True
    for node in ast.walk(tree):
        if node.__dict__.get("skipped"):
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" if node.module == "vse" else node.module for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.split(".")[0] == "vse"}


@functools.cache
def rooms() -> dict[str, set[str]]:
    """For each room, the other rooms that its files import."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if room(module) != "vse":
            below = {room(name) for name in imported(path)} - {room(module)}
            found.setdefault(room(module), set()).update(below)
    return found


def test_imports_go_downwards() -> None:
    """Rooms can be put in an order in which each imports only from those below it."""
    left = dict(rooms())
    assert len(left) > 10
    while left:
        free = [name for name, below in left.items() if not below & left.keys()]
        assert free, f"these import each other in a circle: {left}"
        for name in free:
            del left[name]


def test_the_mathematics_stands_alone() -> None:
    """Aggregators, similarities, losses and metrics need nothing of the rest but how processes add up their numbers."""
    mathematics = {
        "sets",
        "sequences",
        "aggregators",
        "similarity",
        "losses",
        "metrics",
        "model",
        "ragged",
        "set_health",
    }
    for name in mathematics - {"model"}:
        assert rooms()[name] <= mathematics | {"errors", "distributed"}, name


def modules_after(code: str) -> set[str]:
    """Names of the modules that are loaded after some code in a fresh interpreter."""
    code = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["vse", "vse.config", "vse.cli"])
def test_importing_is_light(module: str) -> None:
    """The package, configs and the command line come without torch, and so in a fraction of the time that it takes."""
    heavy = {"torch", "numpy", "transformers", "torchvision", "tensorboard", "nltk", "PIL"}
    assert not heavy & modules_after(f"import {module}")


def test_help_is_quick() -> None:
    """No command imports torch before it knows what to do."""
    help_of = "import vse.cli\ntry: vse.cli.main(['{}', '--help'])\nexcept SystemExit: pass"
    for name in COMMANDS:
        assert "torch" not in modules_after(help_of.format(name)), name
    assert "torch" not in modules_after("import vse.cli; vse.cli.main(['configs'])")


def test_the_package_alone_needs_no_config() -> None:
    assert not {"pydantic", "yaml"} & modules_after("import vse")
    slow = {"transformers", "torchvision", "PIL", "torch._dynamo"}
    assert not {"pydantic", "yaml", *slow} & modules_after("import vse; vse.VSEModel; vse.aggregators; vse.encoders")


def test_models_of_features_need_no_torchvision() -> None:
    """It imports torch's compiler, and together they take longer than torch itself."""
    slow = {"transformers", "torchvision", "torch._dynamo"}
    assert not slow & modules_after("import vse.evaluation.score, vse.search.embed, vse.training.run, vse.data")


def test_public_names() -> None:
    """Each name is its module's, and type checkers are told the same modules."""
    told = {}
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vse."):
            told.update({alias.name: node.module for alias in node.names})
    told.pop("load_model")
    assert sorted([*told, "load"]) == sorted(vse.__all__)
    for name, module in told.items():
        assert getattr(vse, name) is getattr(importlib.import_module(module), name)
    assert set(vse.__all__) <= set(dir(vse))
    assert vse.losses is importlib.import_module("vse.losses")
    with pytest.raises(AttributeError, match="module 'vse' has no attribute 'nothing'"):
        vse.nothing  # noqa: B018
