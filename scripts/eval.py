#!/usr/bin/env python3
"""Evaluate a run or a checkpoint: python scripts/eval.py RUN_DIR_OR_CHECKPOINT [--split test] [key=value ...]."""

from pathlib import Path

from vse import cli
from vse.evaluation.protocols import PROTOCOLS


def main() -> None:
    """Parse arguments, evaluate each member and their ensemble, print the tables."""
    parser = cli.Parser(description="Evaluate retrieval with a trained model, or with several and their ensemble.")
    parser.add_argument("run", nargs="+", metavar="RUN", help="run folder, checkpoint, or file of --save-scores")
    parser.add_argument("--split", default="test", help="train, dev, test (default) or testall")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="retrieval", help="what is ranked together")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="of an official checkpoint, which has none")
    parser.add_argument("--padding", choices=("masked", "released"), default="masked", help="official padding mistakes")
    parser.add_argument("--cxc", type=Path, metavar="FOLDER", help="CxC's sis_test.csv and sts_test.csv")
    parser.add_argument("--bootstrap", type=int, metavar="N", help="95 %% intervals from N samples of the images")
    parser.add_argument("--published", action="store_true", help="print the papers' numbers beside one's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there as well")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table after the others")
    parser.add_argument("--save-scores", type=Path, metavar="FILE.npz", help="write the (ensemble's) score matrix")
    parser.epilog = "key=value: settings that differ from the run's, such as data.root=DIR"
    given = parser.parse_intermixed_args()

    from vse.evaluation.compare import compare

    overrides = [item for item in given.run if "=" in item and not Path(item).exists()]
    runs = [item for item in given.run if item not in overrides]
    places = {"vocabulary": given.vocabulary, "cxc": given.cxc, "scores_file": given.save_scores}
    ways = {"padding": given.padding, "samples": given.bootstrap, "published": given.published}
    result = compare(runs, overrides, given.split, given.protocol, **places, **ways, json_file=given.json)
    print(result.tables)
    if given.markdown:
        print("\n" + result.markdown)
    result.write()


if __name__ == "__main__":
    with cli.command_line():
        main()
