#!/usr/bin/env python3
"""Train a model: python scripts/train.py CONFIG.yaml [key=value ...] [--dry-run]; the same as `vse train`."""

import sys

from vse.cli import run_command

if __name__ == "__main__":
    run_command("train", sys.argv[1:])
