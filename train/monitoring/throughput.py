"""Measure training: tokens per second, model FLOPs utilization (MFU), memory, time left."""

import time
from typing import Any

import torch

from common.machine import matmul_flops, peak_memory_bytes
from data.batching.collate import Batch
from model.llama import Llama
from model.precision import DTYPES
from train import distributed
from train.autotune import ComputePlan, count_trainable_parameters


class ThroughputMonitor:
    """Sums over the steps since the last log line; evaluations and checkpoints are not timed."""

    def __init__(
        self, max_steps: int, compute_plan: ComputePlan, model: Llama, device: torch.device
    ) -> None:
        peak_flops = matmul_flops(device, DTYPES[compute_plan.precision])
        self._peak_flops = peak_flops * distributed.world_size()
        if device.type == "cuda":
            # The search for a micro-batch may have used more memory than training will.
            torch.cuda.reset_peak_memory_stats(device)
        self._max_steps = max_steps
        self._model = model
        self._device = device
        self._steps = 0
        self._tokens = 0
        self._targets = 0
        self._attention_pairs = 0
        self._seconds = 0.0
        self._interval_start = time.perf_counter()
        self._last_metrics: dict[str, float] = {}
        self._seconds_per_step = 0.0
        # Time of the last stop check; longest time between two checks in the previous and in the
        # current step; duration of the last checkpoint.
        self._last_stop_check: float | None = None
        self._previous_stop_gap = 0.0
        self._current_stop_gap = 0.0
        self._save_seconds = 0.0

    def record_step(
        self, tokens: int, num_targets: int, num_attention_pairs: int, **metrics: float
    ) -> None:
        """Add a step of all ranks: its tokens, the targets among them, see `count_attention_pairs`.

        `metrics` are returned by the next `pop_metrics`.
        """
        self.record_stop_check()
        self._previous_stop_gap = self._current_stop_gap
        self._current_stop_gap = 0.0
        self.pause()
        self.resume()
        self._steps += 1
        self._tokens += tokens
        self._targets += num_targets
        self._attention_pairs += num_attention_pairs
        self._last_metrics = metrics

    def record_stop_check(self) -> None:
        """Record that the stop request is checked now."""
        now = time.perf_counter()
        if self._last_stop_check is not None:
            self._current_stop_gap = max(self._current_stop_gap, now - self._last_stop_check)
        self._last_stop_check = now

    def record_save(self, seconds: float) -> None:
        """Record the duration of a checkpoint."""
        self._save_seconds = seconds
        self._last_stop_check = None

    def estimate_stop_seconds(self) -> float | None:
        """Return the seconds until a stop request is seen and saved; None before the first step."""
        longest = max(self._previous_stop_gap, self._current_stop_gap)
        return longest + self._save_seconds if longest else None

    def pause(self) -> None:
        """Stop the timer."""
        self._seconds += time.perf_counter() - self._interval_start

    def resume(self) -> None:
        """Start the timer."""
        self._interval_start = time.perf_counter()
        self._last_stop_check = None

    def pop_metrics(self) -> dict[str, Any]:
        """Return the metrics of the interval and start a new one.

        These are the metrics of the last step, `tokens_per_second` (without padding), `mfu` (share
        of the measured matmul rate of the machines) and `memory_bytes` (peak).
        """
        self._seconds_per_step = self._seconds / self._steps
        # Positions without a target do not pass through the head.
        body, head = training_flops_per_token(
            self._model, effective_row_length(self._tokens, self._attention_pairs)
        )
        flops_per_second = (self._tokens * body + self._targets * head) / self._seconds
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
        else:
            memory = peak_memory_bytes()
        metrics = {
            **self._last_metrics,
            "tokens_per_second": self._tokens / self._seconds,
            "mfu": flops_per_second / self._peak_flops,
            "memory_bytes": memory,
        }
        self._steps = 0
        self._tokens = 0
        self._targets = 0
        self._attention_pairs = 0
        self._seconds = 0.0
        return metrics

    def estimate_remaining_seconds(self, step: int) -> float:
        """Return the seconds of training left, at the speed of the last interval."""
        return (self._max_steps - step) * self._seconds_per_step


def training_flops_per_token(model: Llama, length: float) -> tuple[float, float]:
    """Return the floating point operations to train on one position: below the head, and in it.

    `length` is the length of the row. A weight costs two operations in the forward pass and four in
    the backward pass; a frozen weight two, because it has no gradient of its own.
    """
    config = model.config
    body = config.flops_per_token(length, include_head=False)
    head = config.flops_per_token(length) - body
    if model.adapter is None:
        return body, head
    frozen = config.num_matmul_parameters - config.vocab_size * config.hidden_size
    return body - 2 * frozen + 6 * count_trainable_parameters(model), head * 2 / 3


def count_attention_pairs(batch: Batch) -> int:
    """Return the number of (query, key) pairs in a batch: p + 1 at position p of an example.

    Without `positions` rows hold one example each, and the mean example is counted for all.
    """
    if batch.positions is None:
        return round(batch.num_tokens * (batch.num_tokens / len(batch.ids) + 1) / 2)
    return int(batch.positions.sum()) + batch.num_tokens  # padding has position 0 and no token


def effective_row_length(tokens: int, num_attention_pairs: int) -> float:
    """Return the length of full rows with as many attention pairs for as many tokens.

    It makes the attention cost of packed rows that of `LlamaConfig.flops_per_token`.
    """
    return 2 * num_attention_pairs / tokens - 1


def format_duration(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
