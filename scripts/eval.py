#!/usr/bin/env python3
"""Evaluate a run or a checkpoint: python scripts/eval.py RUN_DIR_OR_CHECKPOINT ...; the same as `vse eval`."""

import sys

from vse.cli import run_command

if __name__ == "__main__":
    run_command("eval", sys.argv[1:])
