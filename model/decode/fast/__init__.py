"""Inference-only re-implementation of the forward pass, fast on CPUs."""
