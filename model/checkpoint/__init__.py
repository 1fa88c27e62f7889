"""Checkpoints on disk: where they are, their weights, and adapters."""
