"""Batches: the rows of one step as tensors, cut into micro-batches, for one of several processes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.plan import Plan


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together. `scored` is None where every position has a loss."""

    ids: Tensor  # int64[B, T]
    targets: Tensor  # int64[N]
    scored: Tensor | None = None  # int64[N], positions of the flattened B · T

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; copies to a GPU do not wait."""
        tensors = (self.ids, self.targets, self.scored)
        if device.type == "cuda":
            tensors = tuple(t.pin_memory() if t is not None else None for t in tensors)  # type: ignore[assignment]
        return Batch(*(t.to(device, non_blocking=True) if t is not None else None for t in tensors))  # type: ignore[arg-type]


class Batches:
    """The batches of a run: a pure function of the plan, the step, and this process's place among `world`."""

    def __init__(self, plan: Plan, rows_per_step: int, *, rank: int = 0, world: int = 1) -> None:
        if rows_per_step % world:
            raise ValueError(f"{rows_per_step} rows a step cannot be shared by {world} processes")
        self.plan, self.rows_per_step = plan, rows_per_step
        self._rank, self._share = rank, rows_per_step // world

    def rows(self, step: int) -> list[int]:
        """The row numbers, since the start of the run, that this process reads in a step."""
        first = step * self.rows_per_step + self._rank * self._share
        return list(range(first, first + self._share))

    def step(self, step: int, micro_rows: int) -> list[Batch]:
        """The micro-batches of one step, at most `micro_rows` rows each."""
        rows = torch.from_numpy(np.stack([self.plan.row(row) for row in self.rows(step)]))
        return [
            Batch(part[:, :-1].contiguous(), part[:, 1:].reshape(-1)) for part in rows.split(micro_rows)
        ]
