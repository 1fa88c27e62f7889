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

# The part of a prompt; its answers have the parts 1, 2 …
PROMPT = 0


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

    parts: Tensor  # int64[B, T]: PROMPT, or the number of the answer from 1 on
    answer_lengths: Tensor  # int64[n], targets of each answer

    def attention_mask(self) -> Tensor:
        """Return the mask of allowed attention, bool[B, 1, T, T].

        A position attends to itself and to earlier positions of its prompt and of its own answer.
        """
        same_prompt = super().attention_mask()
        assert same_prompt is not None
        queries, keys = self.parts.unsqueeze(2), self.parts.unsqueeze(1)
        return same_prompt & ((keys == PROMPT) | (keys == queries)).unsqueeze(1)


def collate_shared_prompts(
    rows: Sequence[Sequence[SharedPrompt]], length: int
) -> SharedPromptBatch:
    """Collate rows, each a list of prompts with answers, into rows of `length` positions.

    The prompts of a row follow one another; the rest of the row is padding with id 0.
    """
    shape = len(rows), length
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, parts = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    loss_indices, targets, answer_lengths = [], [], []
    num_padding = 0
    for row, shared_prompts in enumerate(rows):
        start = 0
        # Segment 0 is the padding.
        for segment, (prompt, answers) in enumerate(shared_prompts, start=1):
            prompt_stop = start + len(prompt)
            ids[row, start:prompt_stop] = prompt
            positions[row, start:prompt_stop] = np.arange(len(prompt))
            stop = prompt_stop
            for part, answer in enumerate(answers, start=1):
                answer_start, stop = stop, stop + len(answer) - 1
                ids[row, answer_start:stop] = answer[:-1]
                parts[row, answer_start:stop] = part
                positions[row, answer_start:stop] = len(prompt) + np.arange(len(answer) - 1)
                # Its first id is predicted by the end of the prompt, the others by the one before.
                predicting = np.arange(answer_start - 1, stop)
                predicting[0] = prompt_stop - 1
                loss_indices.append(row * length + predicting)
                targets.append(answer)
                answer_lengths.append(len(answer))
            segments[row, start:stop] = segment
            start = stop
        num_padding += length - start
    return SharedPromptBatch(
        ids=torch.from_numpy(ids),
        targets=torch.from_numpy(np.concatenate(targets)),
        loss_indices=torch.from_numpy(np.concatenate(loss_indices)),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        num_padding=num_padding,
        parts=torch.from_numpy(parts),
        answer_lengths=torch.tensor(answer_lengths),
    )
