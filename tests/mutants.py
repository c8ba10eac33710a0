"""Mutation testing: change one thing in a module, run the tests that reach it, and see whether they notice.

The changes are mutmut's. Each one is tried in a fork of a process that has already imported torch, which takes about a
second instead of five. Nothing here touches the files being edited: the tests run in a copy, and a mutant is only ever
in memory. Results are kept in ``.mutants/`` after each mutant, so that a run can be stopped and goes on where it was.
CONTRIBUTING.md says how to read the table; MUTANTS.md lists the survivors that stay, with the reason.
"""

import argparse
import contextlib
import difflib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / ".mutants"
COPY = STORE / "tree"

AGGREGATOR = "tests/aggregators/test_contract.py"
SIMILARITY = ["tests/test_similarity.py", "tests/similarity/test_masks.py"]
LOSS = "tests/losses/test_every_loss.py"
ENCODER = ["tests/encoders/test_base.py", "tests/test_config_page.py"]  # the page has the defaults
OFFICIAL = ["tests/checkpoints/test_official_details.py", "tests/checkpoints/test_official.py"]

# What pytest is given for each module: the files whose tests reach it, the quickest first.
TESTS: dict[str, list[str]] = {
    "vse/sets.py": [
        "tests/test_sets.py",
        "tests/test_properties.py",
        AGGREGATOR,
        "-k",
        "test_sets or properties or mean or max or gpo or fspool",
    ],
    "vse/metrics.py": ["tests/test_metrics.py"],
    "vse/optim.py": ["tests/test_optim.py"],
    "vse/aggregators/adaptive.py": ["tests/aggregators/test_adaptive.py", AGGREGATOR, "-k", "adaptive"],
    "vse/aggregators/fspool.py": ["tests/aggregators/test_fspool.py", AGGREGATOR, "-k", "fspool"],
    "vse/aggregators/gcn.py": ["tests/aggregators/test_gcn.py", AGGREGATOR, "-k", "gcn"],
    "vse/aggregators/gem.py": ["tests/aggregators/test_gem.py", AGGREGATOR, "-k", "gem"],
    "vse/aggregators/gpo.py": ["tests/aggregators/test_gpo.py", AGGREGATOR, "-k", "gpo"],
    "vse/aggregators/pie_net.py": ["tests/aggregators/test_pie_net.py", AGGREGATOR, "-k", "pie_net"],
    "vse/aggregators/pooling.py": [
        "tests/aggregators/test_pooling.py",
        AGGREGATOR,
        "-k",
        "pooling or mean or max or first or global or context",
    ],
    "vse/aggregators/self_attention.py": [
        "tests/aggregators/test_self_attention.py",
        AGGREGATOR,
        "-k",
        "self_attention",
    ],
    "vse/aggregators/seq2seq.py": ["tests/aggregators/test_seq2seq.py", AGGREGATOR, "-k", "seq2seq"],
    "vse/aggregators/set_prediction.py": [
        "tests/aggregators/test_set_prediction.py",
        AGGREGATOR,
        "-k",
        "set_prediction",
    ],
    "vse/aggregators/softmax_pool.py": ["tests/aggregators/test_softmax_pool.py", AGGREGATOR, "-k", "softmax_pool"],
    "vse/aggregators/tokens.py": ["tests/aggregators/test_kept_tokens.py", AGGREGATOR, "-k", "tokens"],
    "vse/encoders/backbones.py": ["tests/encoders/test_backbones.py"],
    "vse/encoders/base.py": [*ENCODER, "tests/encoders/test_regions.py"],
    "vse/encoders/bert.py": ["tests/encoders/test_bert.py", *ENCODER],
    "vse/encoders/bigru.py": ["tests/encoders/test_bigru.py", *ENCODER],
    "vse/encoders/clip.py": ["tests/encoders/test_clip.py"],
    "vse/encoders/grid.py": ["tests/encoders/test_grid.py", *ENCODER],
    "vse/encoders/pretrained.py": [
        "tests/encoders/test_pretrained.py",
        "tests/encoders/test_bert.py",
        "tests/encoders/test_clip.py",
    ],
    "vse/encoders/recurrent.py": ["tests/encoders/test_bigru.py", "tests/encoders/test_video.py"],
    "vse/encoders/regions.py": ["tests/encoders/test_regions.py", *ENCODER],
    "vse/encoders/timm.py": ["tests/encoders/test_timm.py"],
    "vse/encoders/tokens.py": ["tests/encoders/test_tokens.py", "tests/encoders/test_bert.py"],
    "vse/encoders/video.py": ["tests/encoders/test_video.py"],
    "vse/similarity/base.py": SIMILARITY,
    "vse/similarity/late_interaction.py": ["tests/similarity/test_late_interaction.py", *SIMILARITY],
    "vse/similarity/matching.py": ["tests/similarity/test_matching.py", *SIMILARITY],
    "vse/similarity/pooled.py": SIMILARITY,
    "vse/losses/adaptive_contrastive.py": ["tests/losses/test_adaptive_contrastive.py", LOSS],
    "vse/losses/criterion.py": ["tests/losses/test_criterion.py", "tests/losses/test_regularisers.py"],
    "vse/losses/info_nce.py": ["tests/losses/test_info_nce.py", LOSS],
    "vse/losses/pairs.py": [LOSS, "tests/losses"],
    "vse/losses/regularisers.py": ["tests/losses/test_regularisers.py"],
    "vse/losses/sigmoid.py": ["tests/losses/test_sigmoid.py", LOSS],
    "vse/losses/triplet.py": ["tests/losses/test_triplet.py", LOSS],
    "vse/evaluation/blocks.py": [
        "tests/evaluation/test_blocks.py",
        "tests/evaluation/test_sets_of_any_size.py",
        "tests/evaluation/test_ranks.py",
    ],
    "vse/evaluation/judgements.py": ["tests/evaluation/test_judgements.py"],
    "vse/evaluation/protocols.py": [
        "tests/evaluation/test_protocols.py",
        "tests/evaluation/test_score.py",
        "tests/evaluation/test_judgements.py",
    ],
    "vse/evaluation/ranks.py": ["tests/evaluation/test_ranks.py", "tests/search/test_exact.py"],
    "vse/data/batches.py": [
        "tests/data/test_batches.py",
        "tests/data/test_resident.py",
        "tests/training/test_mining.py",
    ],
    "vse/data/corpus.py": ["tests/data/test_corpus.py", "tests/data/test_part.py", "tests/data/test_formats.py"],
    "vse/data/formats.py": ["tests/data/test_formats.py", "tests/data/test_corpus.py"],
    "vse/data/vocabulary.py": [
        "tests/data/test_vocabulary.py",
        "tests/data/test_words.py",
        "tests/data/test_captions.py",
    ],
    "vse/training/trainer.py": [
        "tests/training/test_trainer.py",
        "tests/training/test_accumulate.py",
        "tests/training/test_resume.py",
        "tests/training/test_loop.py",
        "tests/training/test_evaluations.py",
    ],
    "vse/checkpoints/native.py": ["tests/checkpoints/test_native.py", "tests/checkpoints/test_version_1.py"],
    "vse/checkpoints/official/chan.py": OFFICIAL,
    "vse/checkpoints/official/dive.py": OFFICIAL,
    "vse/checkpoints/official/esa.py": OFFICIAL,
    "vse/checkpoints/official/keys.py": OFFICIAL,
    "vse/checkpoints/official/pvse.py": OFFICIAL,
    "vse/checkpoints/official/vse_2ad.py": OFFICIAL,
    "vse/checkpoints/official/vse_infty.py": OFFICIAL,
}
# Constants that change speed and memory, never a result.
SPEED = {"_CHUNK", "_ROWS", "_BLOCK", "CHUNK", "ENTRIES"}
# Calls whose arguments only inform, or inform only the type checker.
SPOKEN = {"cast", "warn", "print", "show_progress", "progress_bar", "isinstance", "len", "TypeVar"}
WARM = ("torch", "numpy", "pydantic", "yaml", "pytest", "hypothesis", "torchvision", "transformers", "PIL.Image")


@dataclass(frozen=True)
class Mutant:
    """A module's source with one change, and the change as the changed lines."""

    code: str
    change: str

    @property
    def key(self) -> str:
        """A name that stays as long as the module does."""
        return hashlib.sha1(self.code.encode()).hexdigest()[:16]


def change_of(old: str, new: str) -> str:
    """The lines that differ, without their indentation: "- before" and "+ after"."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines if not line.startswith("@@"))


def is_left_alone(node: Any) -> bool:
    """Tell whether a part of the source is no behaviour: types, texts of errors, docstrings, imports, speed."""
    import libcst as cst

    kinds = (cst.Annotation, cst.Decorator, cst.Raise, cst.Import, cst.ImportFrom, cst.FormattedString)
    if isinstance(node, kinds):
        return True
    if isinstance(node, cst.Call):
        name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
        return isinstance(name, cst.Name) and name.value in SPOKEN
    if isinstance(node, cst.Arg):
        return node.keyword is not None and node.keyword.value == "strict"
    if isinstance(node, cst.Assign):
        target = node.targets[0].target
        return isinstance(target, cst.Name) and target.value in SPEED | {"__all__"}
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    return isinstance(node, cst.Expr) and isinstance(node.value, (cst.SimpleString, cst.ConcatenatedString))


def keeps_strict(old: Any, new: Any) -> bool:
    """Tell whether a call's ``strict=True`` is still there, which checks the code and not the data."""
    import libcst as cst

    if not isinstance(old, cst.Call) or not isinstance(new, cst.Call):
        return True
    strict = [arg for arg in old.args if arg.keyword is not None and arg.keyword.value == "strict"]
    return all(any(arg is kept for kept in new.args) for arg in strict)


def replacements(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each part of the source with what takes its place."""
    from mutmut.mutation.mutators import mutation_operators, operator_string

    if is_left_alone(node):
        return
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            found: Iterable[Any] = operator(node)
            for new in islice(found, 1) if operator is operator_string else found:  # type: ignore[comparison-overlap]
                if keeps_strict(node, new):
                    yield node, new
    for child in node.children:
        yield from replacements(child)


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a module that compile, in the order of the source."""
    import libcst as cst

    module = cst.parse_module(source)
    found: dict[str, Mutant] = {}
    for node, new in replacements(module):
        code = module.deep_replace(node, new).code  # type: ignore[attr-defined]
        with contextlib.suppress(SyntaxError):
            compile(code, "mutant", "exec", dont_inherit=True)
            found[code] = Mutant(code, change_of(source, code))
    return list(found.values())


def explained() -> dict[str, set[str]]:
    """The survivors that MUTANTS.md gives a reason for, by module."""
    found: dict[str, set[str]] = {}
    module = ""
    block: list[str] | None = None
    for line in (ROOT / "tests" / "MUTANTS.md").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("## "):
            module = line[3:]
        elif line == "```diff":
            block = []
        elif line == "```" and block is not None:
            found.setdefault(module, set()).add("\n".join(block))
            block = None
        elif block is not None:
            block.append(line)
    return found


def make_copy() -> None:
    """Copy what git knows or would take, so that edits during a run change nothing."""
    shutil.rmtree(COPY, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)


def claim() -> Any:
    """Keep other runs away as long as the file that is returned is open: they would share the copy."""
    STORE.mkdir(exist_ok=True)
    file = (STORE / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{STORE}: another run is at work there") from None
    return file


def warm_up() -> None:
    """Import what is slow to import and is never mutated; no thread may start before a fork."""
    quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other packages' plugins take longer than most tests
    os.environ.update(quick, OMP_NUM_THREADS="1", PYTHONPATH=str(COPY), HF_HUB_OFFLINE="1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False  # in the copy, where compiled files save half of the time
    sys.path[:0] = [str(COPY)]
    os.chdir(COPY)
    for name in WARM:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    if any(name.split(".")[0] == "vse" for name in sys.modules):
        raise RuntimeError("a warm process must not have imported vse")
    gc.collect()
    gc.freeze()  # pytest collects garbage twice at its end


def run_tests(module: str, code: str, words: list[str]) -> None:
    """Run tests in this process with a module's source replaced, and end the process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(STORE / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, 16 << 30))  # files that are mapped do not count
    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Any:
        if self.path == str(COPY / module):
            return compile(code, self.path, "exec", dont_inherit=True)
        return usual(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    status: int = 70
    try:
        import pytest

        plugins = ["-p", "no:cacheprovider"]
        status = int(pytest.main([*words, "-x", "-q", *plugins, f"--basetemp={STORE / 'temporary'}"]))
    finally:
        os._exit(status)


def outcome(module: str, code: str, limit: float) -> tuple[str, float]:
    """Try one source of a module in a fork: "survived", "noticed" or "timeout", and the seconds that it took."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        run_tests(module, code, TESTS[module])
    try:
        while time.monotonic() - started < limit:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                seconds = time.monotonic() - started
                return ("survived" if status == 0 else "noticed"), seconds
            time.sleep(0.02)
        end(child)
        return "timeout", limit
    except BaseException:
        end(child)
        raise


def end(child: int) -> None:
    """End a fork and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def hash_of_tests(module: str) -> str:
    """A name for the state of a module's tests: its survivors are tried again when they change."""
    paths = [ROOT / word for word in TESTS[module] if word.startswith("tests/")]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return hashlib.sha1(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def read_results(module: str) -> dict[str, dict[str, Any]]:
    """The newest result of each mutant."""
    path = STORE / "results" / f"{module.replace('/', '.')}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def write_result(module: str, result: dict[str, Any]) -> None:
    """Append one result."""
    path = STORE / "results" / f"{module.replace('/', '.')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def chosen(mutants: list[Mutant], sample: int, seed: int) -> list[Mutant]:
    """The mutants to try: all, or a random sample that a larger sample with the same seed contains."""
    if not sample or sample >= len(mutants):
        return mutants
    order = list(range(len(mutants)))
    random.Random(seed).shuffle(order)
    return [mutants[place] for place in sorted(order[:sample])]


def try_module(module: str, sample: int, seed: int) -> None:
    """Try the mutants of a module that have no result yet, and the survivors of older tests."""
    source = (COPY / module).read_text(encoding="utf-8")
    known, tests = read_results(module), hash_of_tests(module)
    left = []
    for mutant in chosen(mutants_of(source), sample, seed):
        result = known.get(mutant.key)
        if result is None or (result["status"] == "survived" and result["tests"] != tests):
            left.append(mutant)
    if not left:
        return
    status, seconds = outcome(module, source, 900)
    if status != "survived":
        output = (STORE / "output.txt").read_text(encoding="utf-8", errors="replace")
        tqdm.write(f"{module} is left out, as its tests fail without any mutant:\n{output[-2000:]}")
        return
    for mutant in tqdm(left, desc=module, mininterval=5):
        status, taken = outcome(module, mutant.code, 10 + 4 * seconds)
        write_result(
            module,
            {"key": mutant.key, "status": status, "seconds": round(taken, 2), "tests": tests, "change": mutant.change},
        )


def print_table(modules: list[str], survivors: bool) -> None:
    """Print a line per module, of the mutants of its present source; with the survivors' changes if wanted."""
    reasons = explained()
    print("| module | mutants | tried | noticed | explained | survived | share |\n|---|---|---|---|---|---|---|")
    details = []
    for module in modules:
        results = read_results(module)
        if not results:
            continue
        mutants = mutants_of((ROOT / module).read_text(encoding="utf-8"))
        tried = [results[mutant.key] for mutant in mutants if mutant.key in results]
        lived = [result["change"] for result in tried if result["status"] == "survived"]
        known = [change for change in lived if change in reasons.get(module, set())]
        noticed, rest = len(tried) - len(lived), len(tried) - len(known)
        share = f"{100 * noticed / rest:.0f} %" if rest else "-"
        numbers = [len(mutants), len(tried), noticed, len(known), len(lived) - len(known), share]
        print(f"| {module} | {' | '.join(map(str, numbers))} |")
        details += [f"\n## {module}"] + [f"\n```diff\n{change}\n```" for change in lived if change not in known]
    if survivors:
        print("\n".join(details))


def main() -> None:
    """Try mutants and print the table."""
    parser = argparse.ArgumentParser(description="Change the package and see whether its tests notice.")
    parser.add_argument("modules", nargs="*", help="modules such as vse/metrics.py; by default all of the table")
    parser.add_argument("--sample", type=int, default=0, help="how many random mutants of each module; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--table", action="store_true", help="only print the results so far")
    parser.add_argument("--survivors", action="store_true", help="print the changes that no test noticed")
    choice = parser.parse_args()
    modules = choice.modules or list(TESTS)
    for module in modules:
        if module not in TESTS:
            parser.error(f"{module} is not in the table of tests/mutants.py")
    if not choice.table:
        os.nice(10)
        lock = claim()
        make_copy()
        warm_up()
        for module in modules:
            try_module(module, choice.sample, choice.seed)
        lock.close()
    print_table(modules, choice.survivors)


if __name__ == "__main__":
    main()
