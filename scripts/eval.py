#!/usr/bin/env python3
"""Evaluate a run or a checkpoint: python scripts/eval.py RUN_DIR_OR_CHECKPOINT [--split test] [key=value ...]."""

from pathlib import Path

from vse import runtime


def main() -> None:
    """Parse arguments, evaluate, print the table."""
    parser = runtime.Parser(description="Evaluate retrieval with a trained model.")
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ, such as data.root=DIR")
    parser.add_argument("--split", default="test", help="train, dev, test (default) or testall")
    parser.add_argument("--protocol", choices=["retrieval"], default="retrieval", help="among all images and captions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there as well")
    arguments = parser.parse_intermixed_args()

    from vse.build import build_corpus, load_model
    from vse.evaluation import evaluate, format_table, write_json

    model, config, file = load_model(arguments.run, arguments.overrides)
    corpus = build_corpus(config, arguments.split)
    model.to(runtime.pick_device(config.run.device))
    metrics = evaluate(model, corpus, config.eval.batch_size, config.run.precision)
    folder = [Path(arguments.run) / f"{arguments.split}.json"] if Path(arguments.run).is_dir() else []
    for path in [*([arguments.json] if arguments.json else []), *folder]:
        write_json(path, metrics)
    size = f"{len(corpus.images):,} images, {len(corpus.captions):,} captions"
    print(format_table(metrics, f"{file}, {arguments.split}: {size}"))


if __name__ == "__main__":
    with runtime.command_line():
        main()
