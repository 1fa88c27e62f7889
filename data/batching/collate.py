"""Batches: the rows of one step as tensors, cut into micro-batches, for one of several processes."""

import abc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batching.packed_rows import PackedPlan
from data.batching.text_rows import TextPlan


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together. `loss_indices` is None where every position has a loss.

    `segments` tells apart the examples of a row, which do not see each other and each count positions from zero; it is
    None where a row is one stretch of text.
    """

    ids: Tensor  # int64[B, T]
    targets: Tensor  # int64[N]
    loss_indices: Tensor | None = None  # int64[N], positions of the flattened B · T
    positions: Tensor | None = None  # int64[B, T]
    segments: Tensor | None = None  # int64[B, T]
    num_padding: int = 0  # positions at the ends of rows that hold nothing

    @property
    def num_tokens(self) -> int:
        """Positions that hold something."""
        return self.ids.numel() - self.num_padding

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; copies to a GPU do not wait."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = value.pin_memory() if device.type == "cuda" else value
                moved[name] = value.to(device, non_blocking=True)
        return replace(self, **moved)

    def attention_mask(self) -> Tensor | None:
        """Which position may look at which, bool[B, 1, T, T], where that is not plain causality."""
        if self.segments is None:
            return None
        same = self.segments.unsqueeze(2) == self.segments.unsqueeze(1)
        return same.tril().unsqueeze(1)


class BatchLoader(abc.ABC):
    """The batches of a run: a pure function of the plan, the step, and this process's place among `world`."""

    def __init__(self, rows_per_step: int, *, rank: int = 0, world_size: int = 1) -> None:
        if rows_per_step % world_size:
            raise ValueError(
                f"{rows_per_step} rows a step cannot be shared by {world_size} processes"
            )
        self.rows_per_step = rows_per_step
        self._rank, self._rows_per_rank = rank, rows_per_step // world_size

    def local_rows(self, step: int) -> list[int]:
        """The row numbers, since the start of the run, that this process reads in a step."""
        first = step * self.rows_per_step + self._rank * self._rows_per_rank
        return list(range(first, first + self._rows_per_rank))

    def global_rows(self, step: int) -> range:
        """The row numbers that all processes together read in a step."""
        return range(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    @abc.abstractmethod
    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """The micro-batches of one step, at most `micro_rows` rows each."""

    @abc.abstractmethod
    def epochs_completed(self, step: int) -> float:
        """Epochs that are over after `step` steps."""


class TextBatchLoader(BatchLoader):
    """Rows cut from a stream of documents, loss on every position."""

    def __init__(
        self, plan: TextPlan, rows_per_step: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(rows_per_step, rank=rank, world_size=world_size)
        self._plan = plan

    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """See `Batches`."""
        rows = torch.from_numpy(np.stack([self._plan.row(row) for row in self.local_rows(step)]))
        return [
            Batch(part[:, :-1].contiguous(), part[:, 1:].reshape(-1))
            for part in rows.split(micro_rows)
        ]

    def epochs_completed(self, step: int) -> float:
        """See `Batches`."""
        return step * self.rows_per_step * self._plan.length / self._plan.tokens_per_epoch


class PackedBatchLoader(BatchLoader):
    """Rows of several examples each, loss where they are scored."""

    def __init__(
        self, plan: PackedPlan, rows_per_step: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(rows_per_step, rank=rank, world_size=world_size)
        self._plan = plan

    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """See `Batches`."""
        rows = [self._plan.row(row) for row in self.local_rows(step)]
        return [
            collate(rows[at : at + micro_rows], self._plan.length)
            for at in range(0, len(rows), micro_rows)
        ]

    def epochs_completed(self, step: int) -> float:
        """See `Batches`."""
        return self._plan.epochs_completed(step * self.rows_per_step)


def collate(rows: list[list[tuple[np.ndarray, np.ndarray]]], length: int) -> Batch:
    """Rows of examples (ids and scored) as a batch of `length` positions; what is left of a row holds id 0, unseen."""
    ids, targets, positions, segments = (np.zeros((len(rows), length), np.int64) for _ in range(4))
    loss_mask = np.zeros((len(rows), length), bool)
    padding = 0
    for number, row in enumerate(rows):
        offset = 0
        for segment, (example, example_mask) in enumerate(row, start=1):
            size = len(example_mask)
            here = number, slice(offset, offset + size)
            ids[here], targets[here], loss_mask[here] = example[:-1], example[1:], example_mask
            positions[here], segments[here] = np.arange(size), segment
            offset += size
        padding += length - offset
    loss_indices = np.flatnonzero(loss_mask)
    # One example a row: plain causality, and what follows it is seen by nothing that has a loss.
    is_unpacked = max(len(row) for row in rows) == 1
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets.reshape(-1)[loss_indices]),
        torch.from_numpy(loss_indices),
        None if is_unpacked else torch.from_numpy(positions),
        None if is_unpacked else torch.from_numpy(segments),
        padding,
    )
