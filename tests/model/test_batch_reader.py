"""Batches that are joined while they run."""

import gc
import weakref

import pytest
import torch

from model.config import LlamaConfig
from model.decode.batched_inference import InferenceBatch
from model.llama import Llama


@pytest.fixture(scope="module")
def model() -> Llama:
    """Random weights large enough that every id read matters."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
    )
    model = Llama(config).init_weights(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


@torch.inference_mode()
def test_concatenated_batches_decode_like_separate_ones(model: Llama) -> None:
    """A newcomer at another's positions, rows that see each other's padding, room that is too small."""
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> list[int]:
        return torch.randint(3, 300, (length,), generator=draw).tolist()

    texts = {
        name: text(length)
        for name, length in {"a": 30, "b": 9, "c": 21, "d": 64, "e": 2, "f": 33}.items()
    }
    first = InferenceBatch(model, [texts["a"], texts["b"], texts["c"]], max_new_tokens=3)
    first.prefill()
    for _ in range(3):
        more = {name: text(1) for name in "abc"}
        first.forward(torch.tensor(list(more.values())))
        texts = {name: ids + more.get(name, []) for name, ids in texts.items()}
    first.select_rows(torch.tensor([1, 2]))  # the longest goes: both others are padded now
    second = InferenceBatch(model, [texts["e"]], max_new_tokens=5)
    second.prefill()
    third = InferenceBatch(model, [texts["d"], texts["f"]], max_new_tokens=1)
    third.prefill()
    for parts, names in (
        (([first, second]), "bce"),
        ([first, third, second], "bcdfe"),
        ([second], "e"),
    ):
        joined = InferenceBatch.concat(parts, max_new_tokens=2)
        assert joined.cache.length == max(len(texts[name]) for name in names), (
            "common padding was kept"
        )
        held = {name: texts[name] for name in names}
        for _ in range(2):
            more = {name: text(1) for name in names}
            found = joined.forward(torch.tensor(list(more.values())))
            held = {name: ids + more[name] for name, ids in held.items()}
            alone = torch.stack([model(torch.tensor([ids]))[0, -1] for ids in held.values()])
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_batch_memory_is_released_immediately(model: Llama) -> None:
    """Caches that wait until Python looks for circles: a server's memory grows by the megabytes of answers long over."""
    gc.disable()
    try:
        reader = InferenceBatch(model, [[5, 6], [7]], max_new_tokens=2)
        reader.prefill()
        joined = InferenceBatch.concat([reader], max_new_tokens=1)
        joined.forward(torch.tensor([[8], [9]]))
        held = [weakref.ref(each.cache) for each in (reader, joined)]
        del reader, joined
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()
