"""Measure training: tokens per second, model FLOPs utilization (MFU), memory, time left."""

import contextlib
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
    """Measures the steps since the last log line.

    Evaluations are not timed, but checkpoints are. It also estimates how long the rest of the run,
    and a stop on request, will take.
    """

    def __init__(
        self, max_steps: int, compute_plan: ComputePlan, model: Llama, device: torch.device
    ) -> None:
        self._max_steps = max_steps
        self._model = model
        self._device = device
        self._dtype = DTYPES[compute_plan.precision]
        # MFU is relative to the matmul rate that this machine reaches.
        self._peak_flops = self._measure_flops()
        # Sums over the steps since the last `pop_metrics`.
        self._steps = 0
        self._tokens = 0
        self._targets = 0
        self._attention_pairs = 0
        self._seconds = 0.0
        self._sampled_tokens = 0
        self._sampling_seconds = 0.0
        self._interval_start = time.perf_counter()
        self._last_metrics: dict[str, float] = {}
        self._seconds_per_step = 0.0
        # The estimate of the time that stopping takes. A stop gap is the longest time in seconds
        # between two checks of the stop request in one step.
        self._last_stop_check: float | None = None
        self._previous_stop_gap = 0.0
        self._current_stop_gap = 0.0
        self._save_seconds = 0.0

    def _measure_flops(self) -> float:
        """Measure the matmul rate of this machine; return that of all ranks in FLOP/s."""
        flops_per_rank = matmul_flops(self._device, self._dtype)
        if self._device.type == "cuda":
            # The measurement, and the search for a micro-batch before it, may use more memory than
            # training does.
            torch.cuda.reset_peak_memory_stats(self._device)
        return flops_per_rank * distributed.world_size()

    def record_step(
        self, tokens: int, num_targets: int, num_attention_pairs: int, **metrics: float
    ) -> None:
        """Add a step, with numbers that are sums over all ranks.

        Args:
            tokens: tokens of the step, without padding.
            num_targets: targets with a loss.
            num_attention_pairs: see `count_attention_pairs`.
            **metrics: further metrics of the step, which the next `pop_metrics` returns.
        """
        self.record_stop_check()
        self._previous_stop_gap = self._current_stop_gap
        self._current_stop_gap = 0.0
        # Add the time of this step to the sum.
        self.pause()
        self.resume()
        self._steps += 1
        self._tokens += tokens
        self._targets += num_targets
        self._attention_pairs += num_attention_pairs
        self._last_metrics = metrics

    def record_sampling(self, tokens: int, seconds: float) -> None:
        """Add the tokens that the model wrote for the batches of a step, and the time it took."""
        self._sampled_tokens += tokens
        self._sampling_seconds += seconds

    def record_stop_check(self) -> None:
        """Record that the stop request is checked now."""
        now = time.perf_counter()
        if self._last_stop_check is not None:
            self._current_stop_gap = max(self._current_stop_gap, now - self._last_stop_check)
        self._last_stop_check = now

    def record_save(self, seconds: float) -> None:
        """Record the duration of a checkpoint."""
        self._save_seconds = seconds
        # The time of saving is not a gap between two stop checks.
        self._last_stop_check = None

    def estimate_stop_seconds(self) -> float | None:
        """Return the seconds until a stop request is noticed and a checkpoint is saved.

        Returns None as long as no time between two checks has been measured.
        """
        # A step in progress may not have reached its longest gap yet, so the last one counts too.
        longest_gap = max(self._previous_stop_gap, self._current_stop_gap)
        return longest_gap + self._save_seconds if longest_gap else None

    def pause(self) -> None:
        """Stop the timer, before work that is not timed."""
        self._seconds += time.perf_counter() - self._interval_start

    def resume(self) -> None:
        """Start the timer again."""
        self._interval_start = time.perf_counter()
        self._last_stop_check = None

    def pop_metrics(self) -> dict[str, Any]:
        """Return the metrics of the steps since the last call.

        These are the further metrics of the last step, `tokens_per_second` (without padding), `mfu`
        (model FLOPs utilization: fraction of the measured matmul rate of all ranks) and
        `memory_bytes` (peak). If the model wrote answers for the batches, there are also
        `sampled_tokens_per_second` and `sampling_share`, the share of the time that it took; the
        other rates are of the rest of the time. If the steps were faster than that rate, it is
        measured again, and the highest of all measurements counts.
        """
        self._seconds_per_step = self._seconds / self._steps
        body_flops, head_flops = training_flops_per_token(
            self._model, effective_row_length(self._tokens, self._attention_pairs)
        )
        # Positions without a target do not pass through the head.
        total_flops = self._tokens * body_flops + self._targets * head_flops
        training_seconds = self._seconds - self._sampling_seconds
        flops_per_second = total_flops / training_seconds
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
        else:
            memory = peak_memory_bytes()
        if flops_per_second > self._peak_flops:
            # The machine was busy with other work when its rate was measured.
            # A GPU may have no memory left for the matrices; the rate then stays as it is.
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                self._peak_flops = max(self._peak_flops, self._measure_flops())
            # The time of the measurement is not a time of training.
            self.resume()
        metrics = {
            **self._last_metrics,
            "tokens_per_second": self._tokens / training_seconds,
            "mfu": flops_per_second / self._peak_flops,
            "memory_bytes": memory,
        }
        if self._sampling_seconds:
            metrics["sampled_tokens_per_second"] = self._sampled_tokens / self._sampling_seconds
            metrics["sampling_share"] = self._sampling_seconds / self._seconds
        self._steps = 0
        self._tokens = 0
        self._targets = 0
        self._attention_pairs = 0
        self._seconds = 0.0
        self._sampled_tokens = 0
        self._sampling_seconds = 0.0
        return metrics

    def estimate_remaining_seconds(self, step: int) -> float:
        """Return the seconds of training left, at the speed of the last interval."""
        return (self._max_steps - step) * self._seconds_per_step


def training_flops_per_token(model: Llama, length: float) -> tuple[float, float]:
    """Return the floating point operations to train on one position of a row of `length`.

    The first number is that of the layers below the LM head, the second that of the head. A weight
    costs two operations in the forward pass and four in the backward pass, two for the gradient of
    its input and two for its own gradient. A frozen weight saves the last two.
    """
    config = model.config
    body = config.flops_per_token(length, include_head=False)
    head = config.flops_per_token(length) - body
    if model.adapter is None:
        return body, head
    # With an adapter all weights of the base are frozen, and those of the adapter are added.
    num_frozen = config.num_matmul_parameters - config.vocab_size * config.hidden_size
    return body - 2 * num_frozen + 6 * count_trainable_parameters(model), head * 2 / 3


def count_attention_pairs(batch: Batch) -> int:
    """Return the number of (query, key) pairs in a batch: p + 1 at position p of an example."""
    if batch.positions is None:
        # Rows hold one example each, whose lengths are unknown here: n tokens have n (n + 1) / 2
        # pairs, counted as if all examples were of the mean length.
        mean_length = batch.num_tokens / len(batch.ids)
        return round(batch.num_tokens * (mean_length + 1) / 2)
    # Padding adds nothing: its positions are 0, and it is not counted in num_tokens.
    return int(batch.positions.sum()) + batch.num_tokens


def effective_row_length(tokens: int, num_attention_pairs: int) -> float:
    """Return the row length that `LlamaConfig.flops_per_token` needs to count packed rows.

    Causal attention in full rows of length n has (n + 1) / 2 (query, key) pairs per token. Packed
    examples have fewer, because they do not attend to each other; the result is the n of full rows
    with as many pairs per token.
    """
    return 2 * num_attention_pairs / tokens - 1


def format_duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds `1:02:03`, or `2:03` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
