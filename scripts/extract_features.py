#!/usr/bin/env python3
"""Features of pictures or clips as files to train from: python scripts/extract_features.py CONFIG.yaml FOLDER."""

from pathlib import Path

from vse import cli


def main() -> None:
    """Parse arguments, extract; the same command goes on with what was interrupted."""
    parser = cli.Parser(description="Write the features of a config's pictures or clips into a folder.")
    parser.add_argument("config", help="YAML file whose data and image encoder are used")
    parser.add_argument("folder", type=Path, help="where to write; for clips, data.root itself")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ, such as data.root=DIR")
    parser.add_argument("--split", action="append", metavar="NAME", help="this split alone; may be repeated")
    parser.add_argument("--detector", metavar="WEIGHTS", help="Faster R-CNN's boxes instead: a file, coco or none")
    parser.add_argument("--boxes", type=int, help="boxes of a picture (36)")
    parser.add_argument("--size", type=int, help="the picture's shorter side before the detector (800)")
    parser.add_argument("--float16", action="store_true", help="write half as many bytes")
    arguments = parser.parse_intermixed_args()

    from vse import runtime
    from vse.build import read_config
    from vse.errors import InputError
    from vse.features.detector import Detector
    from vse.features.extraction import extract_features

    if "=" in str(arguments.folder):
        raise InputError(f"expected a folder to write into, got {arguments.folder}")
    if arguments.detector is None and (arguments.boxes, arguments.size) != (None, None):
        raise InputError("--boxes and --size are for --detector, which is not given")
    config = read_config(arguments.config, arguments.overrides)
    detector = None
    runtime.seed_everything(config.run.seed)  # of a detector's random weights
    if arguments.detector is not None:
        weights = None if arguments.detector == "none" else arguments.detector
        given = {key: getattr(arguments, key) for key in ("boxes", "size") if getattr(arguments, key) is not None}
        detector = Detector(weights=weights, **given)
    splits = arguments.split or ["train", "dev", "test"]
    extract_features(config, arguments.folder, splits, detector, arguments.float16)
    print(f"{arguments.folder}: {', '.join(splits)} finished")


if __name__ == "__main__":
    with cli.command_line():
        main()
