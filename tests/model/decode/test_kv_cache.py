"""The KV cache of a batch."""

import torch

from model.decode.kv_cache import KVCache
from tests.helpers.random_llama import random_llama


def random_cache() -> KVCache:
    """Return a cache of 4 rows and 6 positions with random contents, 5 positions filled."""
    cache = KVCache(random_llama().config, 4, 6, torch.device("cpu"), torch.float32)
    cache.storage.copy_(torch.randn(cache.storage.shape))
    cache.length = 5
    return cache


def test_rows_can_be_selected_and_reordered() -> None:
    """Prevents a beam with another beam's keys, and a copy that overwrites its own source."""
    cache = random_cache()
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.select_rows(torch.tensor([1, 0, 1, 3]), 2)
    assert torch.equal(cache.keys[:, :, :, :2], keys[:, :, :, :2])
    assert torch.equal(cache.keys[:, :, :, 2:5], keys[:, [1, 0, 1, 3], :, 2:5])
    assert torch.equal(cache.values[:, :, :, 2:5], values[:, [1, 0, 1, 3], :, 2:5])


def test_new_positions_are_appended_to_the_selected_rows_only() -> None:
    """Prevents a finished row that is still written, and attended to, in a smaller batch."""
    cache = random_cache()
    before = cache.keys.clone()
    cache.select_rows(torch.tensor([3, 2]))
    assert cache.batch_size == 2
    assert torch.equal(cache.keys[:, :2, :, :5], before[:, [3, 2], :, :5])
    new = torch.randn(2, *cache.keys.shape[2:3], 1, cache.keys.shape[-1])
    keys, _ = cache.layer(1).append(new, new)
    assert len(keys) == 2 and torch.equal(keys[:, :, 5:], new)
    assert torch.equal(keys[:, :, :5], before[1, [3, 2], :, :5])
