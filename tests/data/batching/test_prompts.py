"""Prompts: which answer of an example is asked for, and the order of the examples."""

from pathlib import Path

import numpy as np

from data.batching.examples import Example
from data.batching.prompts import PromptExamples, PromptPlan, split_answers

# Ids 0, 1, 2 …, with answers at 3 to 5 and 8 to 10.
IDS = np.arange(11)
LOSS_MASK = np.isin(IDS, [3, 4, 5, 8, 9, 10])[1:]


class Conversations:
    """Examples of two answers each; the first id is the number of the example."""

    num_truncated = 0

    def __init__(self, count: int) -> None:
        self._count = count

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`. The last one does not fit."""
        return np.array([10] * (self._count - 1) + [0])

    def example(self, index: int, epoch: int) -> Example:
        """See `Examples`."""
        return np.concatenate([[index], IDS[1:]]), LOSS_MASK


def test_answers_are_where_the_loss_mask_is_on() -> None:
    """Prevents a prompt with a part of its answer, or one id short."""
    assert split_answers((IDS, LOSS_MASK)) == [(3, 6), (8, 11)]


def test_each_epoch_draws_an_answer_and_evaluation_takes_the_last() -> None:
    """Prevents questions that are never asked, and dev questions that change."""
    prompts = PromptExamples(Conversations(8), set_index=0, seed=1)
    lengths = {len(prompts.example(0, epoch).ids) for epoch in range(20)}
    assert lengths == {3, 8}
    for epoch in range(4):
        prompt = prompts.example(1, epoch)
        np.testing.assert_array_equal(prompt.answer, IDS[len(prompt.ids) :][:3])
        np.testing.assert_array_equal(prompt.ids, prompts.example(1, epoch).ids)
    fixed = PromptExamples(Conversations(8), set_index=0, seed=None)
    assert {len(fixed.example(0, epoch).ids) for epoch in range(20)} == {8}


def test_an_epoch_asks_every_example_once(tmp_path: Path) -> None:
    """Prevents examples left out, asked twice, or always in the same order."""
    prompts = PromptExamples(Conversations(41), set_index=0, seed=3)
    plan = PromptPlan([prompts], (1.0,), seed=3, length=10, folder=tmp_path, identity="")
    assert plan.num_rows(epoch=0) == 40
    epochs = [[int(prompt.ids[0]) for prompt in plan.prompts(range(n, n + 40))] for n in (0, 40)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1] != list(range(40))
