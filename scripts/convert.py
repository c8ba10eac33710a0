#!/usr/bin/env python3
"""Rewrite an official checkpoint: python scripts/convert.py model_best.pth vse_infty.pt; the same as `vse convert`."""

import sys

from vse.cli import run_command

if __name__ == "__main__":
    run_command("convert", sys.argv[1:])
