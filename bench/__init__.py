"""Benchmarks: speed and memory beside peers."""
