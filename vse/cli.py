"""The command ``vse``, as in ``vse train``; the files in ``scripts/`` call the same functions.

A command is a function of a parser and of the words that follow its name on the command line. The first line of its
docstring is its help. A command imports what it needs after it has read its arguments, so that help and mistakes are
quick.
"""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vse.errors import InputError, ProcessLost, close_match, first_line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all errors of this package."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        message = message.replace(", key=value", "")  # argparse calls optional overrides required
        raise InputError(f"{message}; see {self.prog} --help")


def train(parser: Parser, words: Sequence[str]) -> None:
    """Train a model; the same command continues an interrupted run."""
    parser.add_argument("config", help="YAML file, run folder or shipped config such as demo; `vse configs` lists them")
    _add_overrides(parser, "run.seed=2")
    parser.add_argument("--dry-run", action="store_true", help="check config, data and model; train nothing")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config; train nothing")
    arguments = parser.parse_intermixed_args(words)

    from vse.build import read_config

    if arguments.print_config:
        import yaml

        config = read_config(arguments.config, arguments.overrides)
        print(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), end="")
        return

    from vse.distributed import joined
    from vse.training import trainer

    with joined():
        config = read_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            trainer.dry_run(config)
        else:
            trainer.train(config)


def evaluate(parser: Parser, words: Sequence[str]) -> None:
    """Evaluate retrieval with a trained model, or compare several."""
    help_of_run = "run folder, exported model, checkpoint, file of --save-scores, or config of a pretrained model"
    parser.add_argument("run", nargs="+", metavar="RUN", help=help_of_run)
    parser.add_argument("--split", default="test", help="train, dev, test (default) or testall")
    parser.add_argument(
        "--protocol",
        default="retrieval",
        metavar="NAME",
        help="how results are computed: retrieval (default), f30k, coco_1k, coco_5k, coco, eccv, cxc or video",
    )
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocabulary of an official checkpoint")
    padding = "released: repeat the padding mistakes of the official codes"
    parser.add_argument("--padding", choices=("masked", "released"), default="masked", help=padding)
    parser.add_argument("--cxc", type=Path, metavar="FOLDER", help="folder with CxC's sis_test.csv and sts_test.csv")
    parser.add_argument("--bootstrap", type=int, metavar="N", help="print 95 %% intervals from N samples of the images")
    parser.add_argument("--published", action="store_true", help="print the papers' numbers next to your own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    parser.add_argument("--ensemble", action="store_true", help="also evaluate the mean of all members' scores")
    parser.add_argument("--each", action="store_true", help="do not average runs that differ in their seed alone")
    for name in ("Markdown", "LaTeX", "CSV"):
        parser.add_argument(f"--{name.lower()}", action="store_true", help=f"print a table in {name} after the others")
    parser.add_argument("--save-scores", type=Path, metavar="FILE.npz", help="save the (ensemble's) score matrix")
    parser.epilog = "key=value: settings that differ from the run's, such as data.root=DIR"
    arguments = parser.parse_intermixed_args(words)

    from vse.distributed import joined
    from vse.evaluation.compare import compare
    from vse.evaluation.tables import FORMATS

    overrides = [item for item in arguments.run if "=" in item and not Path(item).exists()]
    runs = [item for item in arguments.run if item not in overrides]
    with joined():
        result = compare(
            runs,
            overrides,
            arguments.split,
            arguments.protocol,
            vocabulary=arguments.vocabulary,
            padding=arguments.padding,
            cxc=arguments.cxc,
            samples=arguments.bootstrap,
            published=arguments.published,
            with_ensemble=arguments.ensemble,
            each=arguments.each,
            scores_file=arguments.save_scores,
            json_file=arguments.json,
        )
        print(result.text)
        for name, write in FORMATS.items():
            if getattr(arguments, name) and result.tables:
                print("\n" + write(result.tables))
        result.write()


def show(parser: Parser, words: Sequence[str]) -> None:
    """Write a page on a trained model: metrics, curves, weights, and what it answers to some queries."""
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint, or config of a pretrained model")
    _add_overrides(parser, "data.root=DIR")
    parser.add_argument("--split", default="test", help="train, dev, test (default) or testall")
    parser.add_argument("--queries", type=int, default=20, metavar="N", help="queries of each kind that are drawn (20)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; by default show.html in the run folder")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write each figure as PNG and SVG")
    parser.add_argument("--grid", metavar="HxW", help="regions are the cells of a grid over the picture, such as 7x7")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocabulary of an official checkpoint")
    arguments = parser.parse_intermixed_args(words)
    grid = None
    if arguments.grid is not None:
        sides = arguments.grid.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise InputError(f"--grid: expected rows x columns such as 7x7, got {arguments.grid}")
        grid = int(sides[0]), int(sides[1])

    from vse.pages.run_page import show_run

    settings = arguments.split, arguments.queries, arguments.out, arguments.figures, grid, arguments.vocabulary
    print(show_run(arguments.run, arguments.overrides, *settings))


def extract(parser: Parser, words: Sequence[str]) -> None:
    """Extract features of a config's pictures or clips; the same command continues an interrupted extraction."""
    parser.add_argument("config", help="YAML file or shipped config whose data and image encoder are used")
    parser.add_argument("folder", type=Path, help="the folder to write to; for clips, data.root itself")
    _add_overrides(parser, "data.root=DIR")
    parser.add_argument("--split", action="append", metavar="NAME", help="extract only this split; may be repeated")
    parser.add_argument(
        "--detector", metavar="WEIGHTS", help="extract Faster R-CNN's boxes: weights file, coco or none"
    )
    parser.add_argument("--boxes", type=int, help="number of boxes per picture (36)")
    parser.add_argument("--size", type=int, help="size of a picture's shorter side for the detector (800)")
    parser.add_argument("--float16", action="store_true", help="write float16, which takes half the space")
    arguments = parser.parse_intermixed_args(words)
    if "=" in str(arguments.folder):
        raise InputError(f"expected a folder to write into, got {arguments.folder}")
    if arguments.detector is None and (arguments.boxes, arguments.size) != (None, None):
        raise InputError("--boxes and --size need --detector, which is not given")

    from vse import runtime
    from vse.build import complete, read_config
    from vse.distributed import joined
    from vse.features.detector import Detector
    from vse.features.extraction import extract_features

    detector, splits = None, arguments.split or ["train", "dev", "test"]
    sizes = {"boxes": arguments.boxes, "size": arguments.size}
    given = {name: value for name, value in sizes.items() if value is not None}
    with joined():
        config = complete(read_config(arguments.config, arguments.overrides))
        runtime.seed_everything(config.run.seed)  # for a detector with random weights
        if arguments.detector is not None:
            detector = Detector(weights=None if arguments.detector == "none" else arguments.detector, **given)
        extract_features(config, arguments.folder, splits, detector, arguments.float16)
        print(f"{arguments.folder}: {', '.join(splits)} finished")


def convert(parser: Parser, words: Sequence[str]) -> None:
    """Convert a checkpoint of the official VSE∞, PVSE, VSE-2AD, DivE, ESA or CHAN code into one of this package."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint that the official code saved")
    parser.add_argument("output", type=Path, help="the new file")
    _add_overrides(parser, "data.root=DIR")
    parser.add_argument("--vocabulary", metavar="FILE", help="its vocabulary file, or BERT's tokenizer folder")
    arguments = parser.parse_intermixed_args(words)

    from vse.checkpoints.load import convert as convert_checkpoint
    from vse.data.vocabulary import MissingVocabulary

    vocabulary = convert_checkpoint(arguments.checkpoint, arguments.output, arguments.overrides, arguments.vocabulary)
    note = f" that are missing (--vocabulary {vocabulary.file})" if isinstance(vocabulary, MissingVocabulary) else ""
    print(f"{arguments.output}: written, with {len(vocabulary):,} words{note}")


def export(parser: Parser, words: Sequence[str]) -> None:
    """Write a trained model as a folder to share: safetensors, a config, a card; see vse.load(FOLDER)."""
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("folder", type=Path, help="the new folder")
    _add_overrides(parser, "data.root=DIR")
    parser.add_argument("--vocabulary", metavar="FILE", help="vocabulary of an official checkpoint")
    arguments = parser.parse_intermixed_args(words)

    from vse.sharing.export import export as export_model

    export_model(arguments.run, arguments.folder, arguments.overrides, arguments.vocabulary)
    print(f"{arguments.folder}: written; vse.load({str(arguments.folder)!r}) reads it")


def configs(parser: Parser, words: Sequence[str]) -> None:
    """List the shipped configs, to be used by name as in `vse train NAME`."""
    parser.parse_args(words)

    from vse.config_files import shipped_configs

    _list_files(shipped_configs())


def _list_files(files: Mapping[str, Path]) -> None:
    """Print the names of shipped files, each with the comment on its first line."""
    from vse.config_files import first_comment

    width = max(len(name) for name in files)
    for name, file in files.items():
        print(f"{name:{width}}  {first_comment(file)}".rstrip())


def docs_config(parser: Parser, words: Sequence[str]) -> None:
    """Print every setting with its type, default and meaning, as docs/config.md has them."""
    parser.parse_args(words)

    from vse.config_page import config_page

    print(config_page())


def embed(parser: Parser, words: Sequence[str]) -> None:
    """Embed pictures, clips, features or captions for `vse search`; the same command continues an interrupted one."""
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint or config of a pretrained model")
    parser.add_argument("source", help="a folder of pictures; or a config or run, whose data are embedded")
    _add_overrides(parser, "data.root=DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="the folder to write to")
    parser.add_argument("--split", action="append", metavar="NAME", help="of a config: test (default); may be repeated")
    parser.add_argument("--captions", action="store_true", help="of a config: embed its captions, not its images")
    parser.add_argument("--float32", action="store_true", help="write float32 instead of float16, twice the size")
    parser.add_argument("--shard", type=int, default=8192, metavar="N", help="items in a shard (8192)")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocabulary of an official checkpoint")
    parser.add_argument("--approximate", action="store_true", help="also build an approximate index, with Faiss")
    parser.add_argument("--factory", metavar="NAME", help="Faiss's description of that index, such as IVF4096,SQ8")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="captions, one a line, to measure its recall with")
    arguments = parser.parse_intermixed_args(words)
    if not arguments.approximate and (arguments.factory, arguments.queries) != (None, None):
        raise InputError("--factory and --queries need --approximate, which is not given")
    if arguments.shard < 1:
        raise InputError(f"--shard must be at least 1, got {arguments.shard}")

    from vse.distributed import is_main, joined
    from vse.search import approximate
    from vse.search.embed import describe, measuring_queries
    from vse.search.embed import embed as embed_source
    from vse.search.index import Index
    from vse.search.shards import Shards

    if arguments.approximate:
        approximate.import_faiss()
    splits = arguments.split or ["test"]
    with joined():
        loaded = embed_source(
            arguments.run,
            arguments.source,
            arguments.out,
            arguments.overrides,
            splits,
            captions=arguments.captions,
            half=not arguments.float32,
            shard=arguments.shard,
            vocabulary=arguments.vocabulary,
        )
        if not is_main():
            return
        print(describe(arguments.out))
        if arguments.approximate:
            chosen = arguments.source, arguments.overrides, splits, arguments.captions, arguments.queries
            index = Index(Shards(arguments.out), loaded.model.similarity, loaded.model.device, loaded.model)
            print(index.build_approximate(arguments.factory, *measuring_queries(loaded, *chosen)))


def search(parser: Parser, words: Sequence[str]) -> None:
    """Search what `vse embed` has embedded, with texts or pictures."""
    parser.add_argument("index", type=Path, help="the folder that vse embed has written")
    parser.add_argument("queries", nargs="*", metavar="TEXT", help="a query such as 'a dog on a beach'; or several")
    parser.add_argument("--image", action="append", type=Path, default=[], metavar="FILE", help="a picture as a query")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="results for each query (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page that shows the results")
    parser.add_argument("--run", type=Path, metavar="PATH", help="the run or checkpoint, if it has been moved")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="vocabulary of an official checkpoint")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--approximate", action="store_true", help="rank what the approximate index proposes")
    parser.add_argument(
        "--candidates", type=int, metavar="N", help="embeddings that it proposes (as when it was built)"
    )
    arguments = parser.parse_intermixed_args(words)
    queries = [*arguments.queries, *arguments.image]
    if not queries or not all(map(str.strip, arguments.queries)):
        raise InputError(f"expected a text or --image FILE to search for; see {parser.prog} --help")
    for option, number in (("--top", arguments.top), ("--candidates", arguments.candidates)):
        if number is not None and number < 1:
            raise InputError(f"{option} must be at least 1, got {number}")
    if arguments.candidates is not None and not arguments.approximate:
        raise InputError("--candidates needs --approximate, which is not given")

    from vse.pages.html import check_page
    from vse.pages.search import search_page
    from vse.search.index import Index
    from vse.search.results import check_results_file, format_results, write_results

    if arguments.json:
        check_results_file(arguments.json)
    if arguments.html:
        check_page(arguments.html)
    index = Index.open(arguments.index, arguments.run, arguments.vocabulary, arguments.device)
    results = index.search(queries, arguments.top, arguments.approximate, arguments.candidates)
    print(format_results(results))
    if arguments.json:
        write_results(arguments.json, results)
    if arguments.html:
        search_page(results, arguments.html)
        print(f"{arguments.html} shows the results")


def study(parser: Parser, words: Sequence[str]) -> None:
    """Train and evaluate many runs, configs times seeds, and write their tables; the same command goes on."""
    parser.add_argument("study", nargs="?", help="YAML file or shipped study such as demo; --list lists them")
    _add_overrides(parser, "data.root=DIR")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where runs and results go (runs/studies/NAME)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (one for each GPU; on a CPU, one)")
    parser.add_argument("--only", metavar="I/N", help="train this share of the runs, such as 1/3")
    text = "add other machines' results; train nothing"
    parser.add_argument("--merge", nargs="+", action="extend", type=Path, metavar="DIR", help=text)
    parser.add_argument("--dry-run", action="store_true", help="list what is missing; train nothing")
    parser.add_argument("--list", action="store_true", help="list the shipped studies")
    text = "write a page of results.json files"
    parser.add_argument("--report", nargs="+", action="extend", type=Path, metavar="JSON", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="the page of --report")
    parser.add_argument("--text", type=Path, metavar="FILE.md", help="Markdown that --report puts below the studies")
    arguments = parser.parse_intermixed_args(words)
    if arguments.list:
        from vse.config_files import shipped_studies

        _list_files(shipped_studies())
        return
    if arguments.report is not None:
        if arguments.out is None:
            raise InputError("--report needs --out FILE.md, the page to write")
        from vse.studies.report import results_page

        results_page(arguments.report, arguments.out, arguments.text)
        print(f"{arguments.out}: written")
        return
    if arguments.study is None:
        raise InputError(f"expected the name or file of a study; see {parser.prog} --help")

    from vse.studies.command import run_study

    chosen = arguments.dir, arguments.jobs, arguments.only, arguments.merge or [], arguments.dry_run
    code = run_study(arguments.study, arguments.overrides, *chosen)
    if code:
        sys.exit(code)


COMMANDS: dict[str, Callable[[Parser, Sequence[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "show": show,
    "extract": extract,
    "embed": embed,
    "search": search,
    "study": study,
    "convert": convert,
    "export": export,
    "configs": configs,
    "docs-config": docs_config,
}


def main(words: Sequence[str] | None = None) -> None:
    """Run ``vse``.

    Args:
        words: The words of the command line after ``vse``; those of this process by default.
    """
    words = sys.argv[1:] if words is None else words
    if words and words[0] in COMMANDS:
        run_command(words[0], words[1:], f"vse {words[0]}")
        return
    with command_line():
        _help(words)


def run_command(name: str, words: Sequence[str], program: str | None = None) -> None:
    """Run one command.

    Args:
        name: Its key in :data:`COMMANDS`.
        words: The words of the command line after its name.
        program: How it was called, for its help; by default the name of the running script.
    """
    command = COMMANDS[name]
    with command_line():
        command(Parser(prog=program, description=command.__doc__), words)


def _help(words: Sequence[str]) -> None:
    """Print what ``vse`` prints without a command."""
    from vse import __version__

    lines = [f"  {name:11} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    parser = Parser(
        prog="vse",
        usage="vse COMMAND ...",
        description="Train and evaluate models of image-text and video-text retrieval.",
        epilog="\n".join(["commands (see vse COMMAND --help):", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vse {__version__}")
    _, others = parser.parse_known_args(words)
    if others:
        raise InputError(f"{others[0]}: unknown command ({close_match(others[0], list(COMMANDS))}); see vse --help")
    parser.print_help()


def _add_overrides(parser: Parser, example: str) -> None:
    """Add the ``key=value`` arguments of a command that reads a config."""
    text = f"settings that differ from the config's, such as {example}"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=text)


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Print the user's mistakes as one line on stderr and exit with code 2; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # run the cleanup of context managers
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _said_once():
            yield
    except InputError as error:
        _fail(str(error))
    except ProcessLost as error:
        _fail(f"another process of this training has ended or cannot be reached ({error}); what was saved is kept")
    except RuntimeError as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            raise
        _fail(f"out of memory ({first_line(error)}); what may help: a smaller eval.batch_size")
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):  # the reader of our output has gone; saved files are complete
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "writing"
        _fail(f"{where}: {error.strerror}; what was saved is kept")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Of the processes that ``torchrun`` started, the first one says what went wrong; the others leave in silence."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if "RANK" in os.environ:
            from vse.distributed import is_first_to_report

            if not is_first_to_report():
                sys.exit(2)
        raise


def _fail(message: str) -> NoReturn:
    line = f"error: {' '.join(message.splitlines())}"
    # Another process's progress bar may stand on the line.
    print(f"\n{line}" if "RANK" in os.environ else line, file=sys.stderr)
    sys.exit(2)
