"""Batches: the rows of one step as tensors, cut into micro-batches, for one of several processes."""

import abc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batching.packed_rows import PackedPlan
from data.batching.text_rows import Plan


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together. `scored` is None where every position has a loss.

    `segments` tells apart the examples of a row, which do not see each other and each count positions from zero; it is
    None where a row is one stretch of text.
    """

    ids: Tensor  # int64[B, T]
    targets: Tensor  # int64[N]
    scored: Tensor | None = None  # int64[N], positions of the flattened B · T
    positions: Tensor | None = None  # int64[B, T]
    segments: Tensor | None = None  # int64[B, T]
    padding: int = 0  # positions at the ends of rows that hold nothing

    @property
    def tokens(self) -> int:
        """Positions that hold something."""
        return self.ids.numel() - self.padding

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; copies to a GPU do not wait."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = value.pin_memory() if device.type == "cuda" else value
                moved[name] = value.to(device, non_blocking=True)
        return replace(self, **moved)

    def mask(self) -> Tensor | None:
        """Which position may look at which, bool[B, 1, T, T], where that is not plain causality."""
        if self.segments is None:
            return None
        same = self.segments.unsqueeze(2) == self.segments.unsqueeze(1)
        return same.tril().unsqueeze(1)


class Batches(abc.ABC):
    """The batches of a run: a pure function of the plan, the step, and this process's place among `world`."""

    def __init__(self, rows_per_step: int, *, rank: int = 0, world: int = 1) -> None:
        if rows_per_step % world:
            raise ValueError(f"{rows_per_step} rows a step cannot be shared by {world} processes")
        self.rows_per_step = rows_per_step
        self._rank, self._share = rank, rows_per_step // world

    def rows(self, step: int) -> list[int]:
        """The row numbers, since the start of the run, that this process reads in a step."""
        first = step * self.rows_per_step + self._rank * self._share
        return list(range(first, first + self._share))

    def rows_of_all(self, step: int) -> range:
        """The row numbers that all processes together read in a step."""
        return range(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    @abc.abstractmethod
    def step(self, step: int, micro_rows: int) -> list[Batch]:
        """The micro-batches of one step, at most `micro_rows` rows each."""

    @abc.abstractmethod
    def epoch(self, step: int) -> float:
        """Epochs that are over after `step` steps."""


class TextBatches(Batches):
    """Rows cut from a stream of documents, loss on every position."""

    def __init__(self, plan: Plan, rows_per_step: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(rows_per_step, rank=rank, world=world)
        self._plan = plan

    def step(self, step: int, micro_rows: int) -> list[Batch]:
        """See `Batches`."""
        rows = torch.from_numpy(np.stack([self._plan.row(row) for row in self.rows(step)]))
        return [Batch(part[:, :-1].contiguous(), part[:, 1:].reshape(-1)) for part in rows.split(micro_rows)]

    def epoch(self, step: int) -> float:
        """See `Batches`."""
        return step * self.rows_per_step * self._plan.length / self._plan.tokens_per_epoch


class PackedBatches(Batches):
    """Rows of several examples each, loss where they are scored."""

    def __init__(self, plan: PackedPlan, rows_per_step: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(rows_per_step, rank=rank, world=world)
        self._plan = plan

    def step(self, step: int, micro_rows: int) -> list[Batch]:
        """See `Batches`."""
        rows = [self._plan.row(row) for row in self.rows(step)]
        return [assemble(rows[at : at + micro_rows], self._plan.length) for at in range(0, len(rows), micro_rows)]

    def epoch(self, step: int) -> float:
        """See `Batches`."""
        return self._plan.progress(step * self.rows_per_step)


def assemble(rows: list[list[tuple[np.ndarray, np.ndarray]]], length: int) -> Batch:
    """Rows of examples (ids and scored) as a batch of `length` positions; what is left of a row holds id 0, unseen."""
    ids, targets, positions, segments = (np.zeros((len(rows), length), np.int64) for _ in range(4))
    scored = np.zeros((len(rows), length), bool)
    padding = 0
    for number, row in enumerate(rows):
        at = 0
        for segment, (example, wanted) in enumerate(row, start=1):
            size = len(wanted)
            here = number, slice(at, at + size)
            ids[here], targets[here], scored[here] = example[:-1], example[1:], wanted
            positions[here], segments[here] = np.arange(size), segment
            at += size
        padding += length - at
    chosen = np.flatnonzero(scored)
    # One example a row: plain causality, and what follows it is seen by nothing that has a loss.
    alone = max(len(row) for row in rows) == 1
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(targets.reshape(-1)[chosen]), torch.from_numpy(chosen),
        None if alone else torch.from_numpy(positions), None if alone else torch.from_numpy(segments), padding,
    )
