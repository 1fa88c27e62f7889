"""Generation: KV cache, prefill and decode steps, sampling, beam search."""
