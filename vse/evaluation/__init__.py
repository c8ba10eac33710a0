"""Evaluation: encode a corpus, score it, and report metrics under a protocol."""
