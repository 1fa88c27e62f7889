"""The fast path: fused linear layers and prepared decode steps.

Its equality with `Llama` is tested in tests/model/decode/test_inference_model.py.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from model.decode.batch_generate import generate_batch
from model.decode.fast.model import FastModel
from model.decode.kv_cache import KVCache
from model.quantize import is_plain_linear, quantize_int8
from tests.helpers.random_llama import SHAPES, greedy_without_cache, random_llama, random_prompts

CPU = torch.device("cpu")


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Set PyTorch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_blocked_products_match_full_products(
    set_threads: Callable[[int], None], threads: int, rows: int
) -> None:
    """Prevents column blocks in another order, or lost where threads do not divide the width."""
    set_threads(threads)
    model = random_llama(**SHAPES["wide heads"])
    ids = torch.tensor(random_prompts([10]) * rows)
    ids[-1, 1:] -= 1
    cache = KVCache(model.config, rows, 10, CPU, torch.float32)
    fast = FastModel(model)
    for index in range(10):
        hidden = fast.decode_step(ids[:, index], cache)
    with torch.no_grad():
        expected = model.model(ids)[:, -1]
    torch.testing.assert_close(hidden, expected, rtol=2e-5, atol=2e-5)


def test_int8_decode_steps_match_prefill() -> None:
    """Prevents a norm weight or a scale that prepared int8 layers leave out."""
    model = quantize_int8(random_llama())
    ids = torch.tensor(random_prompts([40]))
    fast = FastModel(model)
    expected = fast.prefill(ids, KVCache(model.config, 1, 40, CPU, torch.float32))
    cache = KVCache(model.config, 1, 40, CPU, torch.float32)
    for index in range(40):
        hidden = fast.decode_step(ids[:, index], cache)
    # Activations are rounded to bf16, in the two paths at other places.
    torch.testing.assert_close(hidden, expected, rtol=0.05, atol=0.05)


def test_hidden_states_are_not_overwritten_by_later_steps() -> None:
    """Prevents a returned tensor that shares memory with the buffers of the next step."""
    model = random_llama()
    fast, cache = FastModel(model), KVCache(model.config, 1, 4, CPU, torch.float32)
    first = fast.decode_step(torch.tensor([5]), cache)
    copy = first.clone()
    second = fast.decode_step(torch.tensor([6]), cache)
    assert torch.equal(first, copy) and not torch.equal(first, second)


class AdaptedLinear(torch.nn.Linear):
    """A projection that adds something to its product, as adapters do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Add a multiple of the sum of the inputs."""
        return super().forward(input) + 0.1 * input.sum(-1, keepdim=True)


@pytest.mark.slow
def test_adapted_projections_are_called() -> None:
    """Prevents answers of the base in place of the adapted model."""
    model = random_llama()
    prompts = random_prompts([5, 23, 1, 40, 12])
    before = generate_batch(model, prompts, max_new_tokens=12)
    layers: Any = model.model.layers
    for layer in layers:
        for module, name in (
            (layer.self_attn, "q_proj"),
            (layer.self_attn, "o_proj"),
            (layer.mlp, "down_proj"),
        ):
            projection = getattr(module, name)
            adapted = AdaptedLinear(projection.in_features, projection.out_features, bias=False)
            adapted.load_state_dict(projection.state_dict())
            setattr(module, name, adapted)
    after = generate_batch(model, prompts, max_new_tokens=12)
    assert after != before
    assert [answer.ids for answer in after] == [
        greedy_without_cache(model, prompt, 12) for prompt in prompts
    ]


def test_decode_steps_do_not_reallocate_the_cache() -> None:
    """Prevents a cache that is copied to grow, for every id of an answer."""
    model = random_llama()
    fast, cache = FastModel(model), KVCache(model.config, 2, 60, CPU, torch.float32)
    address = cache.storage.data_ptr()
    for _ in range(60):
        fast.decode_step(torch.tensor([5, 9]), cache)
    assert cache.storage.data_ptr() == address
    assert bool(cache.storage.any(-1).all()), "a position was not written"


def test_plain_projections_are_fused_and_prepared() -> None:
    """Prevents a linear class that is not recognized: separate matmuls, and no prepared step."""
    layers: Any = random_llama().model.layers
    for layer in layers:
        projections = (*layer.self_attn.children(), *layer.mlp.children())
        assert all(is_plain_linear(projection) for projection in projections)
    assert FastModel(random_llama())._can_prepare_step


@pytest.mark.slow
def test_concurrent_decoding_is_thread_safe() -> None:
    """Prevents two conversations that write into each other's buffers."""
    model = random_llama()
    prompts = [[1, *range(5, 5 + 3 * n)] for n in range(1, 7)]

    def answers(rows: list[list[int]]) -> list[list[int]]:
        batches = [generate_batch(model, rows, max_new_tokens=40) for _ in range(3)]
        return [answer.ids for batch in batches for answer in batch]

    # Of the same size: a prepared step is made for a number of rows.
    groups = [prompts[:2], prompts[2:4], prompts[4:]]
    alone = [answers(rows) for rows in groups]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answers, groups)) == alone
