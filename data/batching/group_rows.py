"""Rows of groups: the answers that a model drew to a prompt, and what it learns from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batching.packed_rows import pack_best_fit
from data.batching.shared_prompts import (
    SharedPrompt,
    SharedPromptBatch,
    collate_shared_prompts,
)

# Rows are as long as the fullest of a batch needs, rounded up to a multiple of this.
_LENGTH_STEP = 64


@dataclass
class Sample:
    """An answer that was drawn.

    The log-probabilities of its ids, fp32[n], are those at which they were drawn, and those of the
    model that the run started from. Without the former, they are those of the model in training.
    """

    ids: np.ndarray  # int64[n], with its stop id unless the limit of length ended it
    advantage: float
    measures: np.ndarray  # fp64[m]
    old_log_probs: np.ndarray | None = None
    reference_log_probs: np.ndarray | None = None


class Group(NamedTuple):
    """A prompt, int64[p], and answers to it: all that were drawn, or those that one row has."""

    prompt: np.ndarray
    samples: list[Sample]

    @property
    def has_gradient(self) -> bool:
        """Return whether any answer is better or worse than the others."""
        return any(sample.advantage for sample in self.samples)


@dataclass(frozen=True, kw_only=True)
class GroupBatch(SharedPromptBatch):
    """Rows of groups.

    `num_samples` and `measure_sums` may count answers that no row has, because they have no
    gradient.
    """

    advantages: Tensor  # fp32[n]
    old_log_probs: Tensor | None  # fp32[N]
    reference_log_probs: Tensor | None  # fp32[N]
    num_samples: int
    measure_sums: Tensor  # fp64[m]


def iter_batches(
    groups: Sequence[Group], length: int, rows: int
) -> Iterator[tuple[GroupBatch, list[Sample]]]:
    """Yield batches of at most `rows` rows of at most `length` positions, and their answers.

    The answers are in the order of the targets. A group that does not fit a row is divided: the
    rest of its answers follow the prompt in another row.
    """
    parts = [part for group in groups for part in _divide(group, length)]
    sizes = np.array([_as_shared_prompt(part).num_positions for part in parts], np.int64)
    packed = pack_best_fit(sizes, length)
    for start in range(0, len(packed), rows):
        indices = packed[start : start + rows]
        fullest = max(int(sizes[row].sum()) for row in indices)
        width = min(length, -(-fullest // _LENGTH_STEP) * _LENGTH_STEP)
        yield _collate([[parts[index] for index in row] for row in indices], width)


def _divide(group: Group, length: int) -> Iterator[Group]:
    """Yield parts of a group that fit rows of `length` positions."""
    samples: list[Sample] = []
    num_positions = len(group.prompt)
    for sample in group.samples:
        # The last id of an answer is only a target.
        added = len(sample.ids) - 1
        if samples and num_positions + added > length:
            yield Group(group.prompt, samples)
            samples, num_positions = [], len(group.prompt)
        samples.append(sample)
        num_positions += added
    yield Group(group.prompt, samples)


def _as_shared_prompt(group: Group) -> SharedPrompt:
    return SharedPrompt(group.prompt, [sample.ids for sample in group.samples])


def _collate(rows: list[list[Group]], length: int) -> tuple[GroupBatch, list[Sample]]:
    """Return rows of groups as a batch of rows of `length` positions, and their answers."""
    batch = collate_shared_prompts(
        [[_as_shared_prompt(group) for group in groups] for groups in rows], length
    )
    samples = [sample for groups in rows for group in groups for sample in group.samples]
    group_batch = GroupBatch(
        **vars(batch),
        advantages=torch.tensor([sample.advantage for sample in samples]),
        old_log_probs=_join([sample.old_log_probs for sample in samples]),
        reference_log_probs=_join([sample.reference_log_probs for sample in samples]),
        num_samples=len(samples),
        measure_sums=torch.from_numpy(np.sum([sample.measures for sample in samples], axis=0)),
    )
    return group_batch, samples


def _join(arrays: list[np.ndarray | None]) -> Tensor | None:
    """Return arrays as one tensor, or None if there are none."""
    present = [array for array in arrays if array is not None]
    return torch.from_numpy(np.concatenate(present)) if present else None
