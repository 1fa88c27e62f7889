"""How fast training goes: tokens a second, the share of the machine's own rate, the time that is left."""

import time
from typing import Any

import torch

from common.machine import matmul_flops, peak_memory_bytes
from data.batching.collate import Batch
from model.llama import Llama
from model.precision import DTYPES
from train import distributed
from train.autotune import ComputePlan, training_flops_per_token


class ThroughputMonitor:
    """Speed since the last log line, without the time spent on evaluation, and what is left."""

    def __init__(
        self, max_steps: int, compute_plan: ComputePlan, model: Llama, device: torch.device
    ) -> None:
        self._peak_flops = (
            matmul_flops(device, DTYPES[compute_plan.precision]) * distributed.world_size()
        )
        if device.type == "cuda":
            # What was tried to find the micro-batch is not what training needs.
            torch.cuda.reset_peak_memory_stats(device)
        self._max_steps, self._model, self._device = max_steps, model, device
        self._tokens = self._targets = self._attention_pairs = self._steps = 0
        self._seconds, self._interval_start = 0.0, time.perf_counter()
        self._last_metrics: dict[str, float] = {}
        self._seconds_per_step = 0.0
        # Seconds: when a wish to stop was last looked for, the longest that one had to wait for that in the last step and in
        # this one, and how long the last checkpoint took to write.
        self._last_stop_check: float | None = None
        self._stop_check_gaps = (0.0, 0.0)
        self._save_seconds = 0.0

    def record_step(
        self, tokens: int, num_targets: int, num_attention_pairs: int, **metrics: float
    ) -> None:
        """One step of so many positions, so many of them with a loss, is over; for `num_attention_pairs` see the function."""
        self.record_stop_check()
        self._stop_check_gaps = (self._stop_check_gaps[1], 0.0)
        self.pause()
        self.resume()
        self._steps += 1
        self._tokens += tokens
        self._targets += num_targets
        self._attention_pairs += num_attention_pairs
        self._last_metrics = metrics

    def record_stop_check(self) -> None:
        """A wish to stop is looked for: in a moment it is acted upon."""
        now = time.perf_counter()
        if self._last_stop_check is not None:
            self._stop_check_gaps = (
                self._stop_check_gaps[0],
                max(self._stop_check_gaps[1], now - self._last_stop_check),
            )
        self._last_stop_check = now

    def record_save(self, seconds: float) -> None:
        """A checkpoint was written."""
        self._save_seconds, self._last_stop_check = seconds, None

    def estimate_stop_seconds(self) -> float | None:
        """Seconds that it may take until a wish to stop is found and a checkpoint written; None if nothing tells yet."""
        longest = max(self._stop_check_gaps)
        return longest + self._save_seconds if longest else None

    def pause(self) -> None:
        """Stop counting time."""
        self._seconds += time.perf_counter() - self._interval_start

    def resume(self) -> None:
        """Count again."""
        self._interval_start, self._last_stop_check = time.perf_counter(), None

    def pop_metrics(self) -> dict[str, Any]:
        """What the last step told, tokens_per_second (padding left out), mfu (share of the machines' own matmul rate),
        memory_bytes; then anew.
        """
        self._seconds_per_step = self._seconds / self._steps
        speed = self._tokens / self._seconds
        # A position without loss never reaches the head.
        body, head = training_flops_per_token(
            self._model, effective_row_length(self._tokens, self._attention_pairs)
        )
        flops = (self._tokens * body + self._targets * head) / self._seconds
        cuda = self._device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self._device) if cuda else peak_memory_bytes()
        self._tokens = self._targets = self._attention_pairs = self._steps = 0
        self._seconds = 0.0
        return {
            **self._last_metrics,
            "tokens_per_second": speed,
            "mfu": flops / self._peak_flops,
            "memory_bytes": memory,
        }

    def estimate_remaining_seconds(self, step: int) -> float:
        """Seconds of training left at the pace of the last interval."""
        return (self._max_steps - step) * self._seconds_per_step


def count_attention_pairs(batch: Batch) -> int:
    """Keys that the positions of a batch attend to, all together: one at position p of its example p + 1.

    Of rows that hold one example each and padding, whose positions the batch does not say, it is that of the mean example.
    """
    if batch.positions is None:
        return round(batch.num_tokens * (batch.num_tokens / len(batch.ids) + 1) / 2)
    return int(batch.positions.sum()) + batch.num_tokens  # padding has position 0, and is no token


def effective_row_length(tokens: int, num_attention_pairs: int) -> float:
    """The length of full rows in which so many tokens attend to so many keys: what attention costs, packed or not."""
    return 2 * num_attention_pairs / tokens - 1


def format_duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
