"""KV cache of one sequence that is reused by the next prompt with the same beginning."""

import torch
from torch import Tensor

from model.decode.inference_model import inference_model
from model.decode.kv_cache import KVCache
from model.llama import Llama


class PrefixCache:
    """Prefill and decode steps of a single sequence, with reuse of the longest common prefix.

    Kept over the turns of a conversation, it processes only what a prompt adds to the last one.
    Shapes: D hidden size.
    """

    def __init__(self, model: Llama, capacity: int) -> None:
        """Allocate a cache for up to `capacity` ids, and take the model's present weights."""
        weight = model.model.norm.weight
        self.capacity = capacity
        self._device = weight.device
        self._model = inference_model(model)
        self.head = self._model.head
        self._cache = KVCache(model.config, 1, capacity, self._device, weight.dtype)
        self._ids: list[int] = []

    def prefill(self, ids: list[int]) -> Tensor:
        """Process `ids`, from 1 to `capacity`; return hidden[1, D] of the last one.

        Ids that the cache already holds from the start are not processed again, except the last:
        its hidden state is not stored.
        """
        num_reused = min(_common_prefix_length(self._ids, ids), len(ids) - 1)
        # The list is cut before the model runs and extended after it, so that an interruption
        # leaves no position that is listed but not filled.
        del self._ids[num_reused:]
        self._cache.length = num_reused
        new_ids = torch.tensor([ids[num_reused:]], device=self._device)
        hidden = self._model.prefill(new_ids, self._cache, mask=self._mask(num_reused, len(ids)))
        self._ids += ids[num_reused:]
        return hidden

    def decode_step(self, token_id: int) -> Tensor:
        """Process one more id of the sequence; return its hidden[1, D]."""
        hidden = self._model.decode_step(torch.tensor([token_id], device=self._device), self._cache)
        self._ids.append(token_id)
        return hidden

    def _mask(self, num_reused: int, length: int) -> Tensor | None:
        """Return the mask of the new positions, bool[1, 1, new, length]; None: plain causal."""
        num_new = length - num_reused
        if num_reused == 0 or num_new == 1:
            return None
        mask = torch.ones(1, 1, num_new, length, dtype=torch.bool, device=self._device)
        return mask.tril(num_reused)


def _common_prefix_length(first: list[int], second: list[int]) -> int:
    """Return the number of ids that both begin with."""
    if second[: len(first)] == first:  # the usual case, at the speed of a list comparison
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(second))
