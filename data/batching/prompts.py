"""Prompts to answer, in a seeded order: the questions of training examples, with the true answers.

A prompt is an example up to one of its answers. Of an example with several answers each epoch takes
one, which is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.batching.examples import Example, Examples
from data.batching.packed_rows import PackedPlan
from data.batching.shuffle import shuffle_in_place

# Tells the draw of an answer from the other draws of an epoch: see `data.batching.shuffle`.
_ANSWER_KEY = 1 << 32


@dataclass(frozen=True)
class Prompt:
    """The ids before an answer, and those of the true answer with its `<eos>`, int64[n] each."""

    set_index: int
    ids: np.ndarray
    answer: np.ndarray


def split_answers(example: Example) -> list[tuple[int, int]]:
    """Return start and stop of each answer among the ids of an example."""
    _, loss_mask = example
    # The mask belongs to the ids after the first; `edges` are the changes between off and on.
    padded = np.concatenate([[False, False], loss_mask, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


class PromptExamples:
    """The prompts of a set of examples. Implements `data.batching.examples.PackableExamples`."""

    def __init__(self, examples: Examples, set_index: int, seed: int | None) -> None:
        """Take prompts from `examples`; without a seed always the last one of an example."""
        self._examples = examples
        self._set_index = set_index
        self._seed = seed
        self.num_truncated = examples.num_truncated

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of positions of each example, int64[n]; 0: left out."""
        return self._examples.lengths(epoch)

    def example(self, index: int, epoch: int) -> Prompt:
        """Return a prompt of example `index`."""
        example = self._examples.example(index, epoch)
        answers = split_answers(example)
        number = len(answers) - 1
        if self._seed is not None:
            key = (self._seed, epoch, _ANSWER_KEY + self._set_index, index)
            order = np.arange(len(answers))
            shuffle_in_place(order, *key)
            number = int(order[0])
        start, stop = answers[number]
        ids, _ = example
        return Prompt(self._set_index, ids[:start], ids[start:stop])


class PromptPlan(PackedPlan):
    """The order of the prompts: a row is one of them."""

    def prompts(self, rows: Sequence[int]) -> list[Prompt]:
        """Return the prompts of some rows, which are numbered across epochs."""
        prompts = []
        for number in rows:
            (prompt,) = self.row(number)
            prompts.append(prompt)
        return prompts

    def _pack(self, sizes: np.ndarray) -> list[list[int]]:
        """Return rows of one example each."""
        return [[index] for index in range(len(sizes))]
