import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From top to bottom; a module may import only from layers below its own, and from its own package.
LAYERS = [
    ["scripts"],
    ["vse"],
    ["vse.trainer"],
    ["vse.comparison"],
    ["vse.evaluation", "vse.extraction", "vse.tables"],
    ["vse.loading"],
    ["vse.build"],
    ["vse.components"],
    ["vse.config"],
    ["vse.runtime"],
    ["vse.checkpoint", "vse.optim"],
    ["vse.official"],
    ["vse.model"],
    ["vse.data"],
    ["vse.encoders"],
    ["vse.aggregators"],
    ["vse.health", "vse.detector"],
    ["vse.similarity", "vse.losses"],
    ["vse.protocols", "vse.crisscrossed"],
    ["vse.metrics"],
    ["vse.sets"],
    ["vse.weights"],
    ["vse.errors", "vse.published"],
]


def layer(module: str) -> int:
    """Layer of the longest listed name that begins the module's."""
    fits = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    return max(fits)[1]


def imported(path: Path) -> list[str]:
    """Modules of the package that a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            found += [f"{node.module}.{alias.name}" if node.module == "vse" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "vse"]


def test_imports_go_downwards() -> None:
    files = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "vse").rglob("*.py")]
    assert len(files) > 20
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in imported(path):
            same_package = layer(name) == layer(module) and path.parent.name == name.split(".")[1]
            assert layer(name) > layer(module) or same_package, f"{module} imports {name}"


def test_importing_the_package_is_light() -> None:
    """It must not pull in what only training, configs or data need."""
    code = "import sys, vse; print(' '.join(m for m in sys.modules if '.' not in m))"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {"transformers", "torchvision", "tensorboard", "nltk", "pydantic", "yaml", "PIL"}
    assert not heavy & set(modules.split())
