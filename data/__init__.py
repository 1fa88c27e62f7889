"""Raw records → documents and conversations → token shards → batches."""
