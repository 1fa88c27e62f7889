"""Batched prefill and decode steps of prompts of different lengths over one KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.inference_model import inference_model
from model.decode.kv_cache import KVCache
from model.llama import Llama

# Finished rows are dropped once they are this share of a batch: dropping copies the KV cache of the
# remaining ones.
_COMPACTION_THRESHOLD = 0.25


def host_sync_interval(device: torch.device) -> int:
    """Return the steps between host syncs that look for finished rows.

    1 on a CPU, 8 on a GPU, which would stand idle while the host waits for each step.
    """
    return 1 if device.type == "cpu" else 8


def should_compact(num_active: int, num_rows: int) -> bool:
    """Return whether enough of the rows are finished to drop them from the batch."""
    return num_active <= (1 - _COMPACTION_THRESHOLD) * num_rows


class InferenceBatch:
    """Prefill and decode steps of several left-padded sequences.

    Padding on the left lets all rows write the same column of the cache in a step. Positions of a
    row count from its own first id and no id attends to padding, so a row gets the hidden states it
    would get alone. `head` turns hidden states into logits or ids. Shapes: R rows, T columns of the
    padded prompts, S columns of the cache after a call, D hidden size.
    """

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        rows_per_prompt: int = 1,
    ) -> None:
        """Allocate a cache for `max_new_tokens` ids behind the longest prompt.

        `rows_per_prompt` reserves room for so many rows of every prompt (see `select_rows`).
        """
        weight = model.model.norm.weight
        self._llama, self._model, self.device = model, inference_model(model), weight.device
        self.head = self._model.head
        longest = max(map(len, prompts))
        capacity = longest + max_new_tokens
        num_rows = len(prompts) * rows_per_prompt
        self.cache = KVCache(model.config, num_rows, capacity, self.device, weight.dtype)
        self.cache.batch_size = len(prompts)
        self._column_index = torch.arange(capacity, device=self.device)
        padding = [longest - len(prompt) for prompt in prompts]
        self._padding = torch.tensor(padding, device=self.device)
        self._is_unpadded = not any(padding)
        padded_prompts = [
            [0] * count + list(ids) for count, ids in zip(padding, prompts, strict=True)
        ]
        self._padded_prompts = torch.tensor(padded_prompts, device=self.device)
        self.host_sync_interval = host_sync_interval(self.device)

    @classmethod
    def concat(
        cls, batches: Sequence["InferenceBatch"], *, max_new_tokens: int
    ) -> "InferenceBatch":
        """Join batches of one model; allocate room for `max_new_tokens` more ids of every row.

        Keys and values are copied. Columns that are padding in all rows are left out.
        """
        row_lengths = [
            int(length) for batch in batches for length in batch.cache.length - batch._padding
        ]
        # Prompts of these lengths give the joined batch its padding; they are never processed.
        prompts = [[0] * length for length in row_lengths]
        joined = cls(batches[0]._llama, prompts, max_new_tokens=max_new_tokens)
        joined.cache.length = max(row_lengths)
        first_row = 0
        for batch in batches:
            joined.cache.copy_from(batch.cache, first_row)
            first_row += batch.cache.batch_size
        return joined

    def prefill(self) -> Tensor:
        """Process all prompts; return hidden[R, D] of their last ids."""
        start, stop = 0, self._padded_prompts.shape[1]
        positions, mask = self._positions(start, stop), self._attention_mask(start, stop)
        return self._model.prefill(self._padded_prompts, self.cache, positions, mask)

    def decode_step(self, ids: Tensor) -> Tensor:
        """Process one more id of every row, ids[R]; return hidden[R, D]."""
        start, stop = self.cache.length, self.cache.length + 1
        positions, mask = self._positions(start, stop), self._attention_mask(start, stop)
        if positions is not None:
            positions = positions[:, 0]
        return self._model.decode_step(ids, self.cache, positions, mask)

    def _positions(self, start: int, stop: int) -> Tensor | None:
        """Return the positions of these columns, int64[R, stop - start]; None without padding."""
        if self._is_unpadded:
            return None
        # Columns of padding become position 0. A finished row that waits to be dropped may be past
        # the model's last position; its output is not used.
        last = self._llama.config.max_position_embeddings - 1
        return (self._column_index[start:stop] - self._padding[:, None]).clamp(0, last)

    def _attention_mask(self, start: int, stop: int) -> Tensor | None:
        """Return which keys each new column may attend to, bool[R, 1, T, S]; None: plain causal."""
        if self._is_unpadded:
            return None
        key_columns, query_columns = self._column_index[:stop], self._column_index[start:stop, None]
        is_not_padding = (key_columns >= self._padding[:, None])[:, None, None]
        # Padding attends to itself: a softmax over no key at all would be NaN, which spreads.
        return is_not_padding & (key_columns <= query_columns) | (key_columns == query_columns)

    def select_rows(self, rows: Tensor, shared_columns: int = 0) -> None:
        """Continue with `rows`, int64[n], in any order and with repeats.

        The first `shared_columns` of the cache are not copied: the caller knows that they are equal
        in the old and the new occupant of each row.
        """
        self.cache.select_rows(rows, shared_columns)
        self._padding = self._padding[rows]
        if not self._is_unpadded and shared_columns == 0:
            self._is_unpadded = not bool(self._padding.any())
