"""Batches of rows of different lengths that grow and shrink while they run."""

import gc
import weakref

import pytest
import torch

from model.decode.batched_inference import InferenceBatch, start_batch
from model.llama import Llama
from tests.helpers.random_llama import SHAPES, random_llama, random_prompts


class TrackedBatch:
    """A batch, and the ids of its rows."""

    def __init__(self, model: Llama, num_rows: int, capacity: int) -> None:
        self.model = model
        self.batch = InferenceBatch(model, num_rows=num_rows, capacity=capacity)
        self.rows: list[list[int]] = []
        self._generator = torch.Generator().manual_seed(0)

    def prefill(self, prompts: list[list[int]]) -> None:
        hidden = self.batch.prefill(prompts)
        self.rows += [list(prompt) for prompt in prompts]
        self.check(hidden, self.rows[-len(prompts) :])

    def step(self) -> None:
        ids = torch.randint(3, 300, (len(self.rows),), generator=self._generator)
        for row, token_id in zip(self.rows, ids.tolist(), strict=True):
            row.append(token_id)
        self.check(self.batch.decode_step(ids), self.rows)

    def remove(self, rows: list[int]) -> None:
        order = self.batch.remove_rows(rows)
        assert sorted(order) == [row for row in range(len(self.rows)) if row not in rows]
        self.rows = [self.rows[row] for row in order]

    def check(self, hidden: torch.Tensor, rows: list[list[int]]) -> None:
        """Compare the logits with those of each row alone."""
        alone = torch.stack([self.model(torch.tensor([row]))[0, -1] for row in rows])
        torch.testing.assert_close(self.batch.head.logits(hidden), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["multi-head", "grouped-query", "with bias"])
@torch.inference_mode()
def test_rows_that_come_and_go_are_as_alone(shape: str) -> None:
    """Prevents new rows at wrong positions, visible padding, and rows with another's keys."""
    model = random_llama(**SHAPES.get(shape, {}))
    if shape == "with bias":
        # The layer is not prepared then, and its projections are called one by one.
        attention = model.model.layers[0].self_attn
        attention.q_proj.bias = torch.nn.Parameter(torch.randn(attention.q_proj.out_features))
    prompts = random_prompts([30, 9, 21, 64, 2, 33, 1, 1])
    tracked = TrackedBatch(model, num_rows=3, capacity=40)
    tracked.prefill(prompts[:3])
    for _ in range(3):
        tracked.step()
    tracked.remove([0])  # the longest; the last one takes its place
    tracked.step()
    tracked.batch.reserve(6, 70)
    tracked.prefill(prompts[3:5])
    tracked.step()
    tracked.batch.append_copies([2], [50])
    tracked.rows.append(tracked.rows[2][:50])
    tracked.prefill(prompts[5:6])
    tracked.step()
    tracked.remove([5, 0, 3])
    tracked.step()
    tracked.remove([0, 1, 2])
    tracked.prefill(prompts[6:])  # prompts of one id, of the same length
    tracked.step()


@torch.inference_mode()
def test_what_overflowed_does_not_reach_the_next_sequence() -> None:
    """Prevents NaN that a sequence leaves in the cache: a weight of zero does not hide it."""
    model = random_llama()
    tracked = TrackedBatch(model, num_rows=2, capacity=40)
    tracked.prefill(random_prompts([20, 30]))
    tracked.batch.cache.storage[:, :, 0, :, :20] = torch.nan
    tracked.remove([0])
    tracked.prefill(random_prompts([5]))
    tracked.step()
    tracked.batch.cache.storage[:, :, 1, :, :6] = torch.nan
    tracked.remove([1])
    tracked.batch.append_copies([0], [4])
    tracked.rows.append(tracked.rows[0][:4])
    tracked.step()


@torch.inference_mode()
def test_memory_of_a_batch_is_released_immediately() -> None:
    """Prevents KV caches that wait for the garbage collector: a server's memory would grow."""
    gc.disable()
    try:
        batch, _ = start_batch(random_llama(), [[5, 6], [7]], max_new_tokens=2)
        references = [weakref.ref(batch.cache)]
        batch.decode_step(torch.tensor([8, 9]))
        batch.reserve(4, 9)
        references.append(weakref.ref(batch.cache))
        batch.decode_step(torch.tensor([8, 9]))
        assert references[0]() is None
        del batch
        assert references[1]() is None
    finally:
        gc.enable()
