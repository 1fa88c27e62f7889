"""What a model is worth, in figures a command reproduces. Never imports `train`."""
