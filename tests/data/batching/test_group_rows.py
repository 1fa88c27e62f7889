"""Rows of groups: each answer as if it stood alone behind the prompt, whatever row it is in."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batching.group_rows import Group, GroupBatch, Sample, iter_batches
from model.llama import Llama
from tests.helpers.random_llama import random_llama

LENGTH = 40


def random_groups(*sizes: tuple[int, ...]) -> list[Group]:
    """Return groups of random ids with these lengths of prompt and answers."""
    rng = np.random.default_rng(4)
    groups = []
    for prompt_length, *answer_lengths in sizes:
        samples = [
            Sample(rng.integers(97, size=length), float(rng.normal()), rng.normal(size=3))
            for length in answer_lengths
        ]
        groups.append(Group(rng.integers(97, size=prompt_length), samples))
    return groups


def log_probs_of(model: Llama, batch: GroupBatch) -> tuple[Tensor, ...]:
    """Return the log-probabilities of the ids of each answer."""
    log_probs = model(
        batch.ids,
        batch.targets,
        target_positions=batch.loss_indices,
        per_target=True,
        positions=batch.positions,
        mask=batch.segments,
    )
    return log_probs.split(batch.answer_lengths.tolist())


@pytest.mark.parametrize("rows", [1, 8])
def test_answers_of_a_group_are_those_of_conversations(rows: int) -> None:
    """Prevents an answer that sees another one, or that is behind another prompt in a next row."""
    model = random_llama()
    # The second group does not fit a row, and an answer of one id has no position of its own.
    groups = random_groups((7, 5, 9, 1), (12, 20, 8, 25, 3), (3, 1, 1))
    prompts = {id(sample): group.prompt for group in groups for sample in group.samples}
    seen, sums, num_samples = [], np.zeros(3), 0
    with torch.no_grad():
        for batch, samples in iter_batches(groups, LENGTH, rows):
            assert batch.ids.shape[0] <= rows and batch.ids.shape[1] <= LENGTH
            torch.testing.assert_close(
                batch.advantages, torch.tensor([sample.advantage for sample in samples])
            )
            for sample, log_probs in zip(samples, log_probs_of(model, batch), strict=True):
                seen.append(id(sample))
                prompt = prompts[id(sample)]
                ids = torch.from_numpy(np.concatenate([prompt, sample.ids]))
                alone = model(ids[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
                expected = alone.gather(1, ids[len(prompt) :, None]).squeeze(1)
                torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)
            sums += batch.measure_sums.numpy()
            num_samples += batch.num_samples
    assert sorted(seen) == sorted(prompts) and num_samples == len(prompts)
    np.testing.assert_allclose(sums, sum(s.measures for group in groups for s in group.samples))


def test_log_probs_follow_their_answers_through_packing() -> None:
    """Prevents the old log-probabilities of another answer."""
    groups = random_groups((7, 5, 9), (12, 20, 8, 25), (3, 2))
    for group in groups:
        for sample in group.samples:
            sample.old_log_probs = sample.ids.astype(np.float32)
    for batch, _ in iter_batches(groups, LENGTH, 2):
        assert batch.old_log_probs is not None and batch.reference_log_probs is None
        torch.testing.assert_close(batch.old_log_probs, batch.targets.float())
