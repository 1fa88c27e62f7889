"""Preference pairs of a model's own answers: `python -m evaluate.preferences`."""
