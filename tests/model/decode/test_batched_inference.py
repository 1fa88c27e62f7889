"""Left-padded batches that are joined and shrunk while they run."""

import gc
import weakref
from typing import Any

import pytest
import torch

from model.decode.batch_generate import generate_batch
from model.decode.batched_inference import InferenceBatch
from model.decode.fast.model import FastModel
from tests.helpers.random_llama import random_llama, random_prompts


@torch.inference_mode()
def test_concatenated_batches_decode_like_separate_ones() -> None:
    """Prevents new rows at wrong positions, visible padding, and a cache that is too small."""
    model = random_llama()
    generator = torch.Generator().manual_seed(0)
    lengths = {"a": 30, "b": 9, "c": 21, "d": 64, "e": 2, "f": 33}
    sequences = dict(zip(lengths, random_prompts(list(lengths.values())), strict=True))

    def step(batch: InferenceBatch, names: str, ids_of: dict[str, list[int]]) -> torch.Tensor:
        """Decode one random id per row, append it to the rows' ids, and return the logits."""
        ids = torch.randint(3, 300, (len(names),), generator=generator)
        for name, token_id in zip(names, ids.tolist(), strict=True):
            ids_of[name] = [*ids_of[name], token_id]
        return batch.head.logits(batch.decode_step(ids))

    first = InferenceBatch(model, [sequences[name] for name in "abc"], max_new_tokens=3)
    first.prefill()
    for _ in range(3):
        step(first, "abc", sequences)
    first.select_rows(torch.tensor([1, 2]))  # the longest is dropped: now both others are padded
    second = InferenceBatch(model, [sequences["e"]], max_new_tokens=5)
    second.prefill()
    third = InferenceBatch(model, [sequences["d"], sequences["f"]], max_new_tokens=1)
    third.prefill()
    for batches, names in (
        ([first, second], "bce"),
        ([first, third, second], "bcdfe"),
        ([second], "e"),
    ):
        joined = InferenceBatch.concat(batches, max_new_tokens=2)
        assert joined.cache.length == max(len(sequences[name]) for name in names), (
            "columns that are padding in all rows were copied"
        )
        ids_of = {name: sequences[name] for name in names}
        for _ in range(2):
            logits = step(joined, names, ids_of)
            alone = torch.stack([model(torch.tensor([ids_of[name]]))[0, -1] for name in names])
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_memory_of_a_batch_is_released_immediately() -> None:
    """Prevents KV caches that wait for the garbage collector: a server's memory would grow."""
    model = random_llama()
    gc.disable()
    try:
        batch = InferenceBatch(model, [[5, 6], [7]], max_new_tokens=2)
        batch.prefill()
        joined = InferenceBatch.concat([batch], max_new_tokens=1)
        joined.decode_step(torch.tensor([8, 9]))
        references = [weakref.ref(each.cache) for each in (batch, joined)]
        del batch, joined
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_every_position_attends_to_at_least_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a softmax over no key: on some devices NaN, which spreads to all rows."""
    masks: list[Any] = []
    prefill, decode_step = FastModel.prefill, FastModel.decode_step

    def record_prefill(self: FastModel, *args: Any) -> torch.Tensor:
        masks.append(args[-1])
        return prefill(self, *args)

    def record_decode_step(self: FastModel, *args: Any) -> torch.Tensor:
        masks.append(args[-1])
        return decode_step(self, *args)

    monkeypatch.setattr(FastModel, "prefill", record_prefill)
    monkeypatch.setattr(FastModel, "decode_step", record_decode_step)
    generate_batch(random_llama(), random_prompts([3, 40, 17, 1]), max_new_tokens=5)
    assert masks[0].shape[2] == masks[0].shape[3] == 40 and not masks[0].all()
    assert len(masks) > 1 and all(mask.any(-1).all() for mask in masks)
