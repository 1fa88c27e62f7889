"""Talking to a model: the terminal, and passages of Wikipedia to talk about. Never imports `train`."""
