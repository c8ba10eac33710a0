"""Evaluation: encode a corpus, score it, report under a protocol."""
