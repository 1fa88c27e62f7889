"""Batches: the rows of one step as tensors, in micro-batches, for one of several processes."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.batching.curriculum import CurriculumPlan
from data.batching.examples import Example
from data.batching.packed_rows import PackedPlan
from data.batching.text_rows import TextPlan
from model.attention.segments import Segment, Segments
from model.llama import Llama

PlanT = TypeVar("PlanT", bound="RowPlan")
BatchT = TypeVar("BatchT", bound="Batch")


class RowPlan(Protocol):
    """What a loader of any batches needs of a plan."""

    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs the first `num_rows` rows make."""


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    `loss_indices` is None if every position has a loss. `segments` say which positions attend to
    each other (`model.attention.segments`), `positions` count within an example; both are None if
    a row is one stretch of text.
    """

    ids: Tensor  # int64[B, T]
    targets: Tensor  # int64[N]
    loss_indices: Tensor | None = None  # int64[N], positions of the flattened B · T
    positions: Tensor | None = None  # int64[B, T]
    segments: Segments | None = None
    num_padding: int = 0  # unused positions at the ends of rows

    @property
    def num_tokens(self) -> int:
        """Return the number of positions without padding."""
        return self.ids.numel() - self.num_padding

    def to(self: BatchT, device: torch.device) -> BatchT:
        """Return the batch on a device; copies to a GPU are asynchronous."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                # Only from pinned memory are copies to a GPU asynchronous.
                source = value.pin_memory() if device.type == "cuda" else value
                moved[name] = source.to(device, non_blocking=True)
            elif isinstance(value, Segments):
                moved[name] = value.to(device)
        return replace(self, **moved)


class BatchLoader(abc.ABC, Generic[PlanT]):
    """The batches of a run: a pure function of the plan, the step, the rank and the world size.

    If they depend on the weights, they are a function of the weights before the step, too.
    """

    # Then the batches of a step cannot be assembled before the step.
    depends_on_weights: ClassVar[bool] = False

    def __init__(
        self, plan: PlanT, rows_per_step: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Read `rows_per_step` rows of the plan in each step, shared by `world_size` processes.

        Raises ValueError if the processes cannot share a step evenly.
        """
        if rows_per_step % world_size:
            raise ValueError(
                f"{rows_per_step} rows a step cannot be shared by {world_size} processes"
            )
        self.rows_per_step = rows_per_step
        self._plan = plan
        self._rank = rank
        self._rows_per_rank = rows_per_step // world_size

    def local_rows(self, step: int) -> list[int]:
        """Return the numbers of the rows that this process reads in a step.

        Rows are numbered from the start of the run, and steps from 0.
        """
        first = step * self.rows_per_step + self._rank * self._rows_per_rank
        return list(range(first, first + self._rows_per_rank))

    def global_rows(self, step: int) -> range:
        """Return the numbers of the rows that all processes together read in a step.

        Rows are numbered from the start of the run, and steps from 0.
        """
        return range(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    def epochs_completed(self, step: int) -> float:
        """Return how many epochs the first `step` steps make."""
        return self._plan.epochs_completed(step * self.rows_per_step)

    @abc.abstractmethod
    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """Return this process's share of a step in micro-batches of at most `micro_rows` rows."""

    def typical_batch(self) -> Batch:
        """Return rows like those of a step, to estimate its cost; by default those of step 0."""
        (batch,) = self.micro_batches(step=0, micro_rows=self.rows_per_step)
        return batch

    def use_model(self, model: Llama) -> None:
        """Take the model whose weights the batches depend on; by default they do not.

        Called once, before the first batch of a process, with the weights to go on from.
        """

    def pop_sampled(self) -> tuple[int, float]:
        """Return how many tokens the model wrote for batches since the last call, in what time.

        The time is in seconds; by default both are 0.
        """
        return 0, 0.0


class TextBatchLoader(BatchLoader[TextPlan | CurriculumPlan]):
    """Rows of text with a loss on every position."""

    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """Return this process's share of a step in micro-batches of at most `micro_rows` rows."""
        # int64[rows, T + 1]: the inputs are all ids except the last, the targets all except the
        # first.
        rows = np.stack([self._plan.row(number) for number in self.local_rows(step)])
        return [
            Batch(ids=part[:, :-1].contiguous(), targets=part[:, 1:].reshape(-1))
            for part in torch.from_numpy(rows).split(micro_rows)
        ]


class PackedBatchLoader(BatchLoader[PackedPlan]):
    """Rows of several examples each, with a loss on the answers."""

    @staticmethod
    def collate(rows: Sequence[Any], length: int) -> Batch:
        """Collate rows, each a list of examples, into a batch of rows of `length` positions."""
        return collate(rows, length)

    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """Return this process's share of a step in micro-batches of at most `micro_rows` rows."""
        rows = [self._plan.row(number) for number in self.local_rows(step)]
        return [
            self.collate(rows[start : start + micro_rows], self._plan.length)
            for start in range(0, len(rows), micro_rows)
        ]


def collate(rows: Sequence[Sequence[Example]], length: int) -> Batch:
    """Collate rows, each a list of examples, into a batch of rows of `length` positions.

    The examples of a row follow one another; the rest of the row is padding with id 0. Targets
    without a loss are left out of `targets`.
    """
    shape = len(rows), length
    ids, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    positions, loss_mask = np.zeros(shape, np.int64), np.zeros(shape, bool)
    segments = []
    num_padding = 0
    for row, examples in enumerate(rows):
        offset = 0
        for example_ids, example_mask in examples:
            # n + 1 ids make n positions: the inputs are all except the last id, the targets all
            # except the first.
            stop = offset + len(example_mask)
            ids[row, offset:stop] = example_ids[:-1]
            targets[row, offset:stop] = example_ids[1:]
            loss_mask[row, offset:stop] = example_mask
            positions[row, offset:stop] = np.arange(stop - offset)
            segments.append(Segment(row, offset, stop))
            offset = stop
        num_padding += length - offset
    loss_indices = np.flatnonzero(loss_mask)
    # With one example a row, causality hides the padding behind it from every position that has a
    # loss.
    is_unpacked = max(len(examples) for examples in rows) == 1
    return Batch(
        ids=torch.from_numpy(ids),
        targets=torch.from_numpy(targets.reshape(-1)[loss_indices]),
        loss_indices=torch.from_numpy(loss_indices),
        positions=None if is_unpacked else torch.from_numpy(positions),
        segments=None if is_unpacked else Segments(tuple(segments), *shape),
        num_padding=num_padding,
    )
