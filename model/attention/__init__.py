"""Attention: the segments of packed rows, and kernels that skip what causality masks."""
