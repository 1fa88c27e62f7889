"""Names of corpora to downloaded files and prepared shard sets."""
