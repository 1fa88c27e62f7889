"""Metrics as functions of predictions, references or logits."""
