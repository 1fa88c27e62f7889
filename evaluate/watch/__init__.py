"""The same questions to every checkpoint of a run: `python -m evaluate.watch`."""
