"""KV cache of one sequence, reused for the next prompt that begins with the same ids."""

import torch
from torch import Tensor

from model.decode.inference_model import inference_model
from model.llama import Llama


class PrefixCache:
    """Prefill and decode steps of a single sequence, with reuse of the longest common prefix.

    One instance serves all turns of a conversation, so each turn processes only the ids that its
    prompt adds to the sequence before it. Shapes: D hidden size.
    """

    def __init__(self, model: Llama, capacity: int) -> None:
        """Allocate a cache for up to `capacity` ids; the weights may not change afterwards."""
        self.capacity = capacity
        self._device = model.model.norm.weight.device
        self._model = inference_model(model)
        self.head = self._model.head
        self._cache = model.new_cache(1, capacity)
        self._ids: list[int] = []

    def prefill(self, ids: list[int]) -> Tensor:
        """Replace the sequence by `ids`; return hidden[1, D] of the last one.

        There must be at least 1 and at most `capacity` ids. The longest prefix in common with the
        cached sequence is not processed again.
        """
        # The last id is always processed, because its hidden state is not stored.
        num_reused = min(_common_prefix_length(self._ids, ids), len(ids) - 1)
        # The list is cut before the model runs and extended after it, so that after an interruption
        # (Ctrl-C) it never names an id whose keys and values are not in the cache.
        self.truncate(num_reused)
        new_ids = torch.tensor([ids[num_reused:]], device=self._device)
        hidden = self._model.prefill(new_ids, self._cache)
        self._ids += ids[num_reused:]
        return hidden

    def extend(self, ids: list[int]) -> Tensor:
        """Process n more ids of the sequence in one pass; return hidden[n, D] of all of them."""
        hidden = self._model.extend(torch.tensor(ids, device=self._device), self._cache)
        self._ids += ids
        return hidden

    def truncate(self, length: int) -> None:
        """Remove all ids of the sequence after the first `length`."""
        del self._ids[length:]
        self._cache.length = length


def _common_prefix_length(first: list[int], second: list[int]) -> int:
    """Return the length of the longest common prefix of two lists."""
    # The usual case, in which a list comparison is much faster than the loop.
    if second[: len(first)] == first:
        return len(first)
    for index, (first_id, second_id) in enumerate(zip(first, second, strict=False)):
        if first_id != second_id:
            return index
    # `first` is not a prefix of `second`, so `second` is a prefix of `first`.
    return len(second)
