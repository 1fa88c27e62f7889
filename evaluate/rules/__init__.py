"""Probes with invented rules: tell whether a model reads a rule or recites what it knows."""
