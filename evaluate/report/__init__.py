"""The report that compares runs: `python -m evaluate.report`."""
