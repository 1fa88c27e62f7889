"""Generation: KV cache, prefill and decode steps, logits processors, sampling, beam search."""
