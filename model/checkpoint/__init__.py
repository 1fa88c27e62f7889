"""Weights on disk: find, load and save checkpoints and adapters."""
