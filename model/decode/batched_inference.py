"""Batched prefill and decode steps of prompts of different lengths over one KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.inference_model import inference_model
from model.decode.kv_cache import KVCache
from model.llama import Llama

# Finished rows are dropped once they are this fraction of a batch, not one by one, because dropping
# copies the KV cache of the remaining rows.
_COMPACTION_THRESHOLD = 0.25


def host_sync_interval(device: torch.device) -> int:
    """Return the number of decode steps between two searches for finished rows.

    A search makes the host wait for the device. A GPU would be idle meanwhile, so it is searched
    only every 8 steps; on a CPU it costs nothing.
    """
    return 1 if device.type == "cpu" else 8


def should_compact(num_active: int, num_rows: int) -> bool:
    """Return whether enough of the rows are finished to drop them from the batch."""
    return num_active <= (1 - _COMPACTION_THRESHOLD) * num_rows


class InferenceBatch:
    """Prefill and decode steps of several left-padded sequences.

    Padding on the left lets all rows write the same column of the cache in a step. The positions of
    a row are counted from its own first id, and no id attends to padding, so a row gets the hidden
    states that it would get alone. `head` computes logits or ids of hidden states. Shapes: R rows,
    T new columns, S columns of the cache after a call, D hidden size.
    """

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        rows_per_prompt: int = 1,
    ) -> None:
        """Allocate a cache for `max_new_tokens` ids after the longest prompt.

        `rows_per_prompt` is the number of rows to allocate for each prompt. A batch starts with one
        row per prompt; `select_rows` can copy it to more.
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
        # Any id would do as padding, because no other column attends to it.
        padded_prompts = [
            [0] * count + list(ids) for count, ids in zip(padding, prompts, strict=True)
        ]
        self._padded_prompts = torch.tensor(padded_prompts, device=self.device)
        self.host_sync_interval = host_sync_interval(self.device)

    @classmethod
    def concat(
        cls, batches: Sequence["InferenceBatch"], *, max_new_tokens: int
    ) -> "InferenceBatch":
        """Join batches of the same model into one with a new cache.

        The cache is allocated for `max_new_tokens` more ids in every row. Keys and values are
        copied; columns that would be padding in all rows are left out.
        """
        # Number of ids in the cache for each row: the filled columns except the padding.
        row_lengths = [
            int(length) for batch in batches for length in batch.cache.length - batch._padding
        ]
        # Placeholder prompts of these lengths give the joined batch its padding; they are never
        # prefilled.
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
        """Return the positions of the columns `start` to `stop` - 1, int64[R, T].

        Returns None without padding: the default, the columns themselves, is right then.
        """
        if self._is_unpadded:
            return None
        # Positions are clamped because the rotary table has no others: padding would get negative
        # ones, and a finished row that is not dropped yet may pass the last one. Neither output is
        # used.
        last = self._llama.config.max_position_embeddings - 1
        return (self._column_index[start:stop] - self._padding[:, None]).clamp(0, last)

    def _attention_mask(self, start: int, stop: int) -> Tensor | None:
        """Return which of S columns each new one may attend to, bool[R, 1, T, S].

        Returns None without padding: the default causal mask is right then.
        """
        if self._is_unpadded:
            return None
        key_columns, query_columns = self._column_index[:stop], self._column_index[start:stop, None]
        is_not_padding = (key_columns >= self._padding[:, None])[:, None, None]
        # Padding attends to itself: a softmax over no key at all would be NaN, and NaN in the
        # values of a column makes every row that multiplies them by zero NaN, too.
        return is_not_padding & (key_columns <= query_columns) | (key_columns == query_columns)

    def select_rows(self, rows: Tensor, shared_columns: int = 0) -> None:
        """Replace the rows of the batch: new row i is a copy of old row rows[i], rows int64[n].

        A row may be repeated or dropped. The first `shared_columns` columns of the cache are not
        copied; the caller must know that they are equal in the old rows i and rows[i].
        """
        self.cache.select_rows(rows, shared_columns)
        self._padding = self._padding[rows]
        # The batch can only become unpadded when all rows of a padded prompt are dropped, and then
        # the caller passes shared_columns=0. Otherwise the check, which would wait for the device,
        # is skipped.
        if not self._is_unpadded and shared_columns == 0:
            self._is_unpadded = not bool(self._padding.any())
