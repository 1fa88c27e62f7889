"""Throughput: the cost of attention in the MFU, the time until a stop, durations."""

import pytest
import torch

from data.batching.collate import Batch, collate
from model.config import LlamaConfig
from model.llama import Llama
from tests.helpers.dense_mask import dense_mask
from tests.helpers.training import TINY_SHAPE
from tests.train.test_trainer import random_examples
from train.autotune import ComputePlan
from train.monitoring.throughput import ThroughputMonitor, count_attention_pairs, format_duration

CONFIG = LlamaConfig(99, num_key_value_heads=4, **TINY_SHAPE)
PLAN = ComputePlan("cpu", "fp32", False, 1, "chunked")


class Clock:
    """Replaces time.perf_counter."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still unless the test moves it, on a machine of one FLOP per second."""
    clock = Clock()
    monkeypatch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1.0)
    monkeypatch.setattr("train.monitoring.throughput.time.perf_counter", clock)
    return clock


def visible_pairs(batch: Batch) -> int:
    """Return the number of attention pairs of a batch's tokens, counted in a mask."""
    assert batch.segments is not None
    # Each position of the padding attends to itself.
    return int(dense_mask(batch.segments).sum()) - batch.num_padding


def test_attention_pairs_are_counted_per_example() -> None:
    """Catch an MFU that counts attention over whole rows where examples are short."""
    packed = collate([random_examples(9, 5, 14), random_examples(30, 1)], 32)
    expected = sum(n * (n + 1) // 2 for n in (9, 5, 14, 30, 1))
    assert count_attention_pairs(packed) == visible_pairs(packed) == expected
    full_rows = Batch(torch.zeros((3, 32), dtype=torch.int64), torch.zeros(96))
    assert count_attention_pairs(full_rows) == 3 * 32 * 33 // 2
    padded = collate([random_examples(20)], 32)
    assert count_attention_pairs(padded) == 20 * 21 // 2


@pytest.mark.parametrize("is_packed", [True, False])
def test_mfu_counts_visible_attention_pairs(clock: Clock, is_packed: bool) -> None:
    """Catch an MFU that is too high for packed rows, or too low for full ones."""
    if is_packed:
        batch = collate([random_examples(9, 5, 14), random_examples(30, 1)], 32)
        # Half a key less per token, as the formula for full rows has it.
        pairs = visible_pairs(batch) - batch.num_tokens / 2
    else:
        batch = Batch(torch.zeros((3, 32), dtype=torch.int64), torch.zeros(96))
        pairs = 3 * 32 * 32 / 2
    monitor = ThroughputMonitor(9, PLAN, Llama(CONFIG), torch.device("cpu"))
    clock.seconds += 1.0
    monitor.record_step(batch.num_tokens, 0, count_attention_pairs(batch))
    flops_per_token = 6 * (CONFIG.num_matmul_parameters - 32 * 99)
    # Scores and weighted sums over the width in each layer, once forward and twice backward.
    attention_flops = 2 * 2 * 3 * 2 * 32 * pairs
    expected = batch.num_tokens * flops_per_token + attention_flops
    assert monitor.pop_metrics()["mfu"] == pytest.approx(expected)


def test_rate_is_measured_again_if_steps_are_faster(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch an MFU of 300 % where the machine was busy when its rate was measured."""
    flops_per_token = 6 * (CONFIG.num_matmul_parameters - 32 * 99)
    rates = [1.0, 4.0, 2.0]

    def measure(*_: object) -> float:
        clock.seconds += 50.0
        return rates.pop(0) * flops_per_token

    monkeypatch.setattr("train.monitoring.throughput.matmul_flops", measure)
    monitor = ThroughputMonitor(9, PLAN, Llama(CONFIG), torch.device("cpu"))
    monitor.resume()

    def mfu(tokens: int) -> float:
        """Return the MFU of a step of one second, without attention."""
        clock.seconds += 1.0
        monitor.record_step(tokens, 0, tokens // 2)
        metrics = monitor.pop_metrics()
        assert metrics["tokens_per_second"] == tokens
        return float(metrics["mfu"])

    assert mfu(2) == pytest.approx(2 / 4) and rates == [2.0]
    assert mfu(4) == pytest.approx(4 / 4) and rates == [2.0]
    # Faster than both measurements: the highest counts, and the figure is not clipped.
    assert mfu(6) == pytest.approx(6 / 4) and rates == []


def test_stop_time_is_estimated(clock: Clock) -> None:
    """Catch an estimate that ignores long steps, or never forgets an evaluation or first step."""
    monitor = ThroughputMonitor(9, PLAN, Llama(CONFIG), torch.device("cpu"))

    def run_step(*micro_batch_seconds: float) -> None:
        for seconds in micro_batch_seconds:
            monitor.record_stop_check()
            clock.seconds += seconds
        monitor.record_step(1, 1, 1)

    assert monitor.estimate_stop_seconds() is None
    run_step(60.0, 3.0)
    assert monitor.estimate_stop_seconds() == 60.0
    run_step(4.0, 5.0)
    run_step(4.0, 5.0)
    assert monitor.estimate_stop_seconds() == 5.0
    clock.seconds += 20.0
    monitor.record_save(20.0)
    monitor.pause()
    clock.seconds += 100.0
    monitor.resume()
    run_step(4.0, 6.0)
    assert monitor.estimate_stop_seconds() == 6.0 + 20.0


def test_durations_are_formatted_as_clock_time() -> None:
    """Prevent an ETA of 3,661 seconds."""
    durations = [format_duration(seconds) for seconds in (0, 59.6, 125, 3661)]
    assert durations == ["0:00", "1:00", "2:05", "1:01:01"]
