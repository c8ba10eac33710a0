#!/usr/bin/env python3
"""Evaluate a run or a checkpoint: python scripts/eval.py RUN_DIR_OR_CHECKPOINT [--split test] [key=value ...]."""

from pathlib import Path

from vse import runtime
from vse.protocols import PROTOCOLS


def main() -> None:
    """Parse arguments, evaluate each member and their ensemble, print the tables."""
    parser = runtime.Parser(description="Evaluate retrieval with a trained model, or with several and their ensemble.")
    parser.add_argument("run", nargs="+", metavar="RUN", help="run folder, checkpoint, or file of --save-scores")
    parser.add_argument("--split", default="test", help="train, dev, test (default) or testall")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="retrieval", help="what is ranked together")
    parser.add_argument("--bootstrap", type=int, metavar="N", help="95 %% intervals from N samples of the images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there as well")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table after the others")
    parser.add_argument("--save-scores", type=Path, metavar="FILE.npz", help="write the (ensemble's) score matrix")
    parser.epilog = "key=value: settings that differ from the run's, such as data.root=DIR"
    arguments = parser.parse_intermixed_args()

    from vse.comparison import compare
    from vse.evaluation import format_markdown, format_table, write_json

    overrides = [item for item in arguments.run if "=" in item and not Path(item).exists()]
    runs = [item for item in arguments.run if item not in overrides]
    results, size = compare(
        runs, overrides, arguments.split, arguments.protocol, arguments.bootstrap, arguments.save_scores
    )
    content = results if len(results) > 1 else next(iter(results.values()))
    folder = [Path(runs[0]) / f"{arguments.split}.json"] if len(runs) == 1 and Path(runs[0]).is_dir() else []
    for path in [*([arguments.json] if arguments.json else []), *folder]:
        write_json(path, content)
    print("\n\n".join(format_table(metrics, f"{name}, {arguments.split}: {size}") for name, metrics in results.items()))
    if arguments.markdown:
        print("\n" + format_markdown(results))


if __name__ == "__main__":
    with runtime.command_line():
        main()
