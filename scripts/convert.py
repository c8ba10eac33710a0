#!/usr/bin/env python3
"""Write an official checkpoint as one of this package: python scripts/convert.py model_best.pth vse_infty.pt."""

from pathlib import Path

from vse import cli


def main() -> None:
    """Parse arguments, load the checkpoint strictly, write it."""
    parser = cli.Parser(description="Write a checkpoint of VSE∞, PVSE, VSE-2AD or DivE as one of this package.")
    parser.add_argument("checkpoint", type=Path, help="as the official code saved it")
    parser.add_argument("output", type=Path, help="where to write: the name of a new file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ, such as data.root=DIR")
    parser.add_argument("--vocabulary", metavar="FILE", help="its vocabulary; for BERT, a tokenizer's folder")
    arguments = parser.parse_intermixed_args()

    from vse.checkpoints.load import convert
    from vse.data.vocabulary import MissingVocabulary

    words = convert(arguments.checkpoint, arguments.output, arguments.overrides, arguments.vocabulary)
    note = f" that are missing (--vocabulary {words.file})" if isinstance(words, MissingVocabulary) else ""
    print(f"{arguments.output}: written, with {len(words):,} words{note}")


if __name__ == "__main__":
    with cli.command_line():
        main()
