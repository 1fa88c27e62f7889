"""Measure models: metrics, the commands that compute them, and reports. Never imports `train`."""
