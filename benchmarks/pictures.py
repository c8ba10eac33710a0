#!/usr/bin/env python3
"""Pictures a second of processor time through each transform, beside Pillow's decoding and resizing of the same files.

    python benchmarks/pictures.py FOLDER_OF_PICTURES

docs/PERFORMANCE.md keeps the ratios.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vse.data.transforms import Crop, PictureFiles, Square, open_picture

BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    paths = sorted(itertools.islice((p for p in parser.parse_args().folder.rglob("*.jpg")), 400))
    torch.set_num_threads(1)
    for transform, size in ((Square(512), 512), (Square(224), 224), (Crop(224, 256), 224)):
        pictures = PictureFiles(paths, transform)

        def plain(indices: np.ndarray, side: int = size) -> object:
            opened = [Image.open(paths[i]).convert("RGB") for i in indices]
            return [picture.resize((side, side), Image.Resampling.BILINEAR) for picture in opened]

        def decode(indices: np.ndarray) -> object:
            return [open_picture(paths[i]) for i in indices]

        def train(indices: np.ndarray, source: PictureFiles = pictures) -> object:
            return source.read(indices, epoch=0)

        readers = {"Pillow": plain, "decoding alone": decode, "evaluation": pictures.read, "training": train}
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for start in range(0, len(paths) - BATCH + 1, BATCH):  # in turns: a busy machine slows all alike
            for name, read in readers.items():
                begin = time.process_time()
                read(np.arange(start, start + BATCH))
                rates[name].append(BATCH / (time.process_time() - begin))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        line = ", ".join(f"{name} {value:.0f}/s ({value / medians['Pillow']:.2f})" for name, value in medians.items())
        print(f"{type(transform).__name__} {size}: {line}")


if __name__ == "__main__":
    main()
