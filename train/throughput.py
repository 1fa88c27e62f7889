"""How fast training goes: tokens a second, the share of the machine's own rate, the time that is left."""

import time
from typing import Any

import torch

from common.machine import matmul_flops, peak_memory_bytes
from data.batching.collate import Batch
from model.llama import Llama
from model.precision import DTYPES
from train import distributed
from train.autotune import Choices, training_flops


class Clock:
    """Speed since the last log line, without the time spent on evaluation, and what is left."""

    def __init__(self, steps: int, choices: Choices, model: Llama, device: torch.device) -> None:
        self._peak_flops = matmul_flops(device, DTYPES[choices.precision]) * distributed.size()
        if device.type == "cuda":
            # What was tried to find the micro-batch is not what training needs.
            torch.cuda.reset_peak_memory_stats(device)
        self._max_steps, self._model, self._device = steps, model, device
        self._tokens = self._targets = self._attended = self._steps = 0
        self._seconds, self._mark = 0.0, time.perf_counter()
        self._last: dict[str, float] = {}
        self._pace = 0.0
        # Seconds: when a wish to stop was last looked for, the longest that one had to wait for that in the last step and in
        # this one, and how long the last checkpoint took to write.
        self._looked: float | None = None
        self._waits = (0.0, 0.0)
        self._saving = 0.0

    def tick(self, tokens: int, targets: int, attended: int, **measures: float) -> None:
        """One step of so many positions, so many of them with a loss, is over; for `attended` see the function."""
        self.look()
        self._waits = (self._waits[1], 0.0)
        self.pause()
        self.go_on()
        self._steps += 1
        self._tokens += tokens
        self._targets += targets
        self._attended += attended
        self._last = measures

    def look(self) -> None:
        """A wish to stop is looked for: in a moment it is acted upon."""
        now = time.perf_counter()
        if self._looked is not None:
            self._waits = (self._waits[0], max(self._waits[1], now - self._looked))
        self._looked = now

    def saved(self, seconds: float) -> None:
        """A checkpoint was written."""
        self._saving, self._looked = seconds, None

    def to_stop(self) -> float | None:
        """Seconds that it may take until a wish to stop is found and a checkpoint written; None if nothing tells yet."""
        longest = max(self._waits)
        return longest + self._saving if longest else None

    def pause(self) -> None:
        """Stop counting time."""
        self._seconds += time.perf_counter() - self._mark

    def go_on(self) -> None:
        """Count again."""
        self._mark, self._looked = time.perf_counter(), None

    def measures(self) -> dict[str, Any]:
        """What the last step told, tokens_per_second (padding left out), mfu (share of the machines' own matmul rate),
        memory_bytes; then anew.
        """
        self._pace = self._seconds / self._steps
        speed = self._tokens / self._seconds
        # A position without loss never reaches the head.
        body, head = training_flops(self._model, row_length(self._tokens, self._attended))
        flops = (self._tokens * body + self._targets * head) / self._seconds
        cuda = self._device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self._device) if cuda else peak_memory_bytes()
        self._tokens = self._targets = self._attended = self._steps = 0
        self._seconds = 0.0
        return {**self._last, "tokens_per_second": speed, "mfu": flops / self._peak_flops, "memory_bytes": memory}

    def left(self, step: int) -> float:
        """Seconds of training left at the pace of the last interval."""
        return (self._max_steps - step) * self._pace


def attended(batch: Batch) -> int:
    """Keys that the positions of a batch attend to, all together: one at position p of its example p + 1.

    Of rows that hold one example each and padding, whose positions the batch does not say, it is that of the mean example.
    """
    if batch.positions is None:
        return round(batch.tokens * (batch.tokens / len(batch.ids) + 1) / 2)
    return int(batch.positions.sum()) + batch.tokens  # padding has position 0, and is no token


def row_length(tokens: int, attended: int) -> float:
    """The length of full rows in which so many tokens attend to so many keys: what attention costs, packed or not."""
    return 2 * attended / tokens - 1


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
