import ast
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

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
    left = rooms()
    assert len(left) > 10
    while left:
        free = [name for name, below in left.items() if not below & left.keys()]
        assert free, f"these import each other in a circle: {left}"
        for name in free:
            del left[name]


def test_the_mathematics_stands_alone() -> None:
    """Aggregators, similarities, losses and metrics need nothing of the rest of the package."""
    mathematics = {"sets", "aggregators", "similarity", "losses", "metrics", "model", "set_health"}
    for name in mathematics - {"model"}:
        assert rooms()[name] <= mathematics | {"errors"}, name


def modules_after(code: str) -> set[str]:
    """Names of the modules that are loaded after some code in a fresh interpreter."""
    code = f"import sys; {code}; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_is_light() -> None:
    """It must not pull in what only training, configs or data need."""
    heavy = {"transformers", "torchvision", "tensorboard", "nltk", "pydantic", "yaml", "PIL"}
    assert not heavy & modules_after("import vse")
