"""The report: `python -m evaluate.report`."""
