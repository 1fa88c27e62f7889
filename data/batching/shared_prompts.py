"""Rows in which several answers follow one prompt, which is read once.

An answer does not attend to the other answers, and its positions go on from the end of the prompt,
so that its hidden states are those of prompt and answer alone. The first ids of all answers are
predicted from the last position of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batching.collate import Batch
from model.attention.segments import Segment, Segments


class SharedPrompt(NamedTuple):
    """A prompt and its answers, int64[n] each; an answer has at least one id."""

    prompt: np.ndarray
    answers: Sequence[np.ndarray]

    @property
    def num_positions(self) -> int:
        """Return the positions in a row: the last id of an answer is only a target."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True, kw_only=True)
class SharedPromptBatch(Batch):
    """Rows of prompts with answers. Targets are in the order of the answers."""

    answer_lengths: Tensor  # int64[n], targets of each answer


def collate_shared_prompts(
    rows: Sequence[Sequence[SharedPrompt]], length: int
) -> SharedPromptBatch:
    """Collate rows, each a list of prompts with answers, into rows of `length` positions.

    The prompts of a row follow one another; the rest of the row is padding with id 0.
    """
    shape = len(rows), length
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, loss_indices, targets, answer_lengths = [], [], [], []
    num_padding = 0
    for row, shared_prompts in enumerate(rows):
        start = 0
        for prompt, answers in shared_prompts:
            prompt_stop = start + len(prompt)
            segments.append(Segment(row, start, prompt_stop))
            ids[row, start:prompt_stop] = prompt
            positions[row, start:prompt_stop] = np.arange(len(prompt))
            stop = prompt_stop
            for answer in answers:
                answer_start, stop = stop, stop + len(answer) - 1
                ids[row, answer_start:stop] = answer[:-1]
                segments.append(Segment(row, answer_start, stop, start, prompt_stop))
                positions[row, answer_start:stop] = len(prompt) + np.arange(len(answer) - 1)
                # Its first id is predicted by the end of the prompt, the others by the one before.
                predicting = np.arange(answer_start - 1, stop)
                predicting[0] = prompt_stop - 1
                loss_indices.append(row * length + predicting)
                targets.append(answer)
                answer_lengths.append(len(answer))
            start = stop
        num_padding += length - start
    return SharedPromptBatch(
        ids=torch.from_numpy(ids),
        targets=torch.from_numpy(np.concatenate(targets)),
        loss_indices=torch.from_numpy(np.concatenate(loss_indices)),
        positions=torch.from_numpy(positions),
        segments=Segments(tuple(segments), *shape),
        num_padding=num_padding,
        answer_lengths=torch.tensor(answer_lengths),
    )
