"""Watch a run: metrics, throughput, memory, loss spikes."""
