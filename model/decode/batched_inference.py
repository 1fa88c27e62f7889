"""A batch of prompts of different lengths behind one KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.fast.inference_model import inference_model_for
from model.decode.kv_cache import KVCache
from model.llama import Llama

# Rows that are over are dropped once they are this share of the batch: dropping copies what the others hold.
_COMPACTION_THRESHOLD = 0.25


def host_sync_interval(device: torch.device) -> int:
    """How many steps pass before the host looks who is over: waiting for a GPU at each of them would leave it idle."""
    return 1 if device.type == "cpu" else 8


class InferenceBatch:
    """Reads ids for several rows at once and says what each row makes of the next one.

    Prompts are padded on the left, so that all rows write the same column of the cache; a row's positions count from its
    own first id and nothing looks at padding: a row gets what it would get alone. `prompts`[R, T] are those of the start,
    padded. Shapes: R rows, T new columns, D hidden size, V vocabulary.
    """

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        rows_per_prompt: int = 1,
    ) -> None:
        """Make room for `max_new_tokens` ids behind the longest prompt, and for `rows_per_prompt` rows of each prompt (see `select`)."""
        weight = model.model.norm.weight
        self._model, self._decoder, self.device = model, inference_model_for(model), weight.device
        self.head = self._decoder.head
        longest = max(map(len, prompts))
        self.cache = KVCache(
            model.config,
            len(prompts) * rows_per_prompt,
            longest + max_new_tokens,
            self.device,
            weight.dtype,
        )
        self.cache.batch_size = len(prompts)
        self._column_index = torch.arange(longest + max_new_tokens, device=self.device)
        self._padding = torch.tensor(
            [longest - len(prompt) for prompt in prompts], device=self.device
        )
        self.prompts = torch.tensor(
            [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self.device
        )
        self._is_unpadded = len(set(map(len, prompts))) == 1
        self.host_sync_interval = host_sync_interval(self.device)

    @classmethod
    def concat(
        cls, batches: Sequence["InferenceBatch"], *, max_new_tokens: int
    ) -> "InferenceBatch":
        """One reader with the rows of several of one model, in their order, and room for `max_new_tokens` more ids behind them.

        What was read is copied, not read again; columns that are padding in every row are left out.
        """
        row_lengths = [
            int(count) for each in batches for count in each.cache.length - each._padding
        ]
        joined = cls(
            batches[0]._model, [[0] * count for count in row_lengths], max_new_tokens=max_new_tokens
        )
        joined.cache.length, row = max(row_lengths), 0
        for each in batches:
            joined.cache.copy_from(each.cache, row)
            row += each.cache.batch_size
        return joined

    def prefill(self) -> Tensor:
        """Read all prompts; logits[R, V] of what follows them, fp32."""
        return self.forward(self.prompts)

    def forward(self, ids: Tensor) -> Tensor:
        """Put ids[R, T] behind what the rows hold; logits[R, V] of what follows the last of them, fp32."""
        return self.head.logits(self.forward_hidden(ids))

    def prefill_argmax(self) -> Tensor:
        """Read all prompts; the likeliest id behind each, int64[R]."""
        return self.forward_argmax(self.prompts)

    def forward_argmax(self, ids: Tensor) -> Tensor:
        """Put ids[R, T] behind what the rows hold; the likeliest id behind the last of them, int64[R].

        The argmax of what `read` gives, found without computing all of it where that is faster.
        """
        return self.head.argmax(self.forward_hidden(ids))

    def forward_hidden(self, ids: Tensor) -> Tensor:
        """Put ids[R, T] behind what the rows hold; hidden[R, D] of the last of them, for `head`."""
        start, stop = self.cache.length, self.cache.length + ids.shape[1]
        positions = None
        if not self._is_unpadded:
            # A row that reached the end of its context may wait in the batch to be dropped: clamped, nobody reads it.
            last = self._model.config.max_position_embeddings - 1
            positions = (self._column_index[start:stop] - self._padding[:, None]).clamp(0, last)
        hidden = self._decoder.forward(
            ids, self.cache, positions, self._attention_mask(start, stop)
        )
        self.cache.length = stop
        return hidden

    def _attention_mask(self, start: int, stop: int) -> Tensor | None:
        """Who may look where, bool[R, 1, T, stop]; None where plain causality says it."""
        if self._is_unpadded:
            return None
        key_columns, query_columns = self._column_index[:stop], self._column_index[start:stop, None]
        is_not_padding = (key_columns >= self._padding[:, None])[:, None, None]
        # Padding looks at itself: a softmax over nothing would be NaN, and spread.
        return is_not_padding & (key_columns <= query_columns) | (key_columns == query_columns)

    def select_rows(self, rows: Tensor, shared_columns: int = 0) -> None:
        """Go on with these rows (int64[n]: any order, repeats allowed), which share what is before column `shared_columns`."""
        self.cache.select_rows(rows, shared_columns)
        self._padding = self._padding[rows]
        if not self._is_unpadded and shared_columns == 0:
            self._is_unpadded = not bool(self._padding.any())


def should_compact(num_active: int, num_rows: int) -> bool:
    """Whether so many of the rows are over that going on without them pays."""
    return num_active <= (1 - _COMPACTION_THRESHOLD) * num_rows
