"""Raw records to shard sets: clean, deduplicate, encode, split."""
