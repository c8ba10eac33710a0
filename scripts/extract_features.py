#!/usr/bin/env python3
"""Write features of pictures or clips: python scripts/extract_features.py CONFIG.yaml FOLDER; like `vse extract`."""

import sys

from vse.cli import run_command

if __name__ == "__main__":
    run_command("extract", sys.argv[1:])
