"""Retrieval: how often a question finds the passage that answers it."""
