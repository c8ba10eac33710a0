"""Sharing trained models: the exported folder and its card."""
