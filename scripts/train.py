#!/usr/bin/env python3
"""Train a model: python scripts/train.py CONFIG.yaml [key=value ...] [--dry-run]."""

from vse import cli


def main() -> None:
    """Parse arguments, call the trainer."""
    parser = cli.Parser(description="Train a model; the same command goes on with an interrupted run.")
    parser.add_argument("config", help="YAML file, such as configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ, such as run.seed=2")
    parser.add_argument("--dry-run", action="store_true", help="check config, data and model; train nothing")
    arguments = parser.parse_intermixed_args()

    from vse.build import read_config
    from vse.training.trainer import dry_run, train

    config = read_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        dry_run(config)
    else:
        train(config)


if __name__ == "__main__":
    with cli.command_line():
        main()
