"""Shard sets to batches: epoch order, packing, loss masks, collation."""
