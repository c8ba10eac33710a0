"""Checkpoints: this package's own, and those of the four official codes."""
