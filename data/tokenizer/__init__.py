"""Vocabulary training: `python -m data.tokenizer`."""
