#!/usr/bin/env python3
"""Features of pictures or clips as files to train from: python scripts/extract_features.py CONFIG.yaml FOLDER."""

from pathlib import Path

from vse import runtime


def main() -> None:
    """Parse arguments, extract; the same command goes on with what was interrupted."""
    parser = runtime.Parser(description="Write the features of a config's pictures or clips into a folder.")
    parser.add_argument("config", help="YAML file whose data and image encoder are used")
    parser.add_argument("folder", type=Path, help="where to write; data.root of the training that follows")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ, such as data.root=DIR")
    parser.add_argument("--split", action="append", metavar="NAME", help="this split alone; may be repeated")
    parser.add_argument("--detector", metavar="WEIGHTS", help="Faster R-CNN's boxes instead: a file, coco or none")
    parser.add_argument("--boxes", type=int, default=36, help="boxes of a picture (36)")
    parser.add_argument("--size", type=int, default=800, help="the picture's shorter side before the detector (800)")
    parser.add_argument("--float16", action="store_true", help="write half as many bytes")
    arguments = parser.parse_intermixed_args()

    from vse.build import read_config
    from vse.detector import Detector
    from vse.extraction import extract_features

    config = read_config(arguments.config, arguments.overrides)
    detector = None
    if arguments.detector is not None:
        weights = None if arguments.detector == "none" else arguments.detector
        detector = Detector(weights=weights, boxes=arguments.boxes, size=arguments.size)
    splits = arguments.split or ["train", "dev", "test"]
    extract_features(config, arguments.folder, splits, detector, arguments.float16)
    print(f"{arguments.folder}: {', '.join(splits)} finished")


if __name__ == "__main__":
    with runtime.command_line():
        main()
