"""Needles: whether a model finds what stands somewhere in a long text."""
