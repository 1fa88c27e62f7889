"""Batched prefill and decode steps of sequences of different lengths over one KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.inference_model import inference_model
from model.llama import Llama


def host_sync_interval(device: torch.device) -> int:
    """Return the number of decode steps between two searches for finished rows.

    A search makes the host wait for the device. A GPU would be idle meanwhile, so it is searched
    only every 8 steps; on a CPU it costs nothing.
    """
    return 1 if device.type == "cpu" else 8


class InferenceBatch:
    """Prefill and decode steps of several sequences, one in each row.

    A sequence begins at the first position of its row, and every step writes the position after its
    last one, which differs between rows. So rows come and go without moving the others, and prompts
    are prefilled under the causal mask alone: what pads the shorter ones comes after them. No id
    attends to what is beyond its row, so a row gets the hidden states that it would get alone.
    `head` computes logits or ids of hidden states. Shapes: R rows, S columns of the cache after a
    call, D hidden size.
    """

    def __init__(self, model: Llama, *, num_rows: int, capacity: int) -> None:
        """Allocate a cache for `num_rows` sequences of `capacity` ids each, all still empty."""
        self._llama, self._model = model, inference_model(model)
        self.device = model.model.norm.weight.device
        self.head = self._model.head
        self.host_sync_interval = host_sync_interval(self.device)
        self._allocate(num_rows, capacity)

    def _allocate(self, num_rows: int, capacity: int) -> None:
        """Replace the cache by an empty one."""
        self.cache = self._llama.new_cache(num_rows, capacity)
        self.cache.batch_size = 0
        self._lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        # Positions from here on have not been written since the cache was allocated.
        self._num_written = 0
        self._is_even = True
        self._column_index = torch.arange(capacity, device=self.device)

    def reserve(self, num_rows: int, capacity: int) -> None:
        """Make room for `num_rows` sequences of `capacity` ids; nothing is lost or moved."""
        old, lengths = self.cache, self._lengths
        if num_rows <= old.num_rows and capacity <= old.capacity:
            return
        self._allocate(max(num_rows, old.num_rows), max(capacity, old.capacity))
        filled = slice(old.length)
        self.cache.storage[:, :, : old.batch_size, :, filled] = old.storage[
            :, :, : old.batch_size, :, filled
        ]
        self._set_lengths(lengths)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Process prompts in new rows after the present ones; return hidden[n, D] of their ends.

        The rows must have been reserved.
        """
        longest = max(map(len, prompts))
        # Any id would do as padding.
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        rows = self.cache.rows(self.cache.batch_size, len(prompts))
        # A sequence that overflowed may have left NaN behind, which a weight of zero does not hide.
        rows.storage[..., longest : self._num_written, :].zero_()
        ids = torch.tensor(padded, device=self.device)
        hidden = self._model.prefill(ids, rows, lengths - 1)
        self._set_lengths(torch.cat([self._lengths, lengths]))
        return hidden

    def append_copies(self, sources: Sequence[int], lengths: Sequence[int]) -> None:
        """Add rows that begin as others do: row sources[i], with its first lengths[i] ids."""
        new_row = self.cache.batch_size
        for source, length in zip(sources, lengths, strict=True):
            self.cache.copy_row(source, new_row, length)
            # As in `prefill`.
            self.cache.storage[:, :, new_row, :, length : self._num_written].zero_()
            new_row += 1
        self._set_lengths(torch.cat([self._lengths, self._lengths.new_tensor(lengths)]))

    def decode_step(self, ids: Tensor) -> Tensor:
        """Process one more id of every row, ids[R]; return hidden[R, D]."""
        positions = mask = self.cache.columns = None
        if not self._is_even:
            self.cache.columns = self._lengths
            # Clamped because the rotary table has no others, and a finished row that is not dropped
            # yet may pass the last one. Its output is not used.
            positions = self._lengths.clamp(max=self._llama.config.max_position_embeddings - 1)
            columns = self._column_index[: self.cache.length + 1]
            mask = (columns <= self._lengths[:, None])[:, None, None]
        hidden = self._model.decode_step(ids, self.cache, positions, mask)
        self._lengths = self._lengths + 1
        self._num_written = max(self._num_written, self.cache.length)
        return hidden

    def remove_rows(self, rows: Sequence[int]) -> list[int]:
        """Remove rows, and fill their places with the last ones.

        Returns what is now where: row i is the old row result[i]. Makes the host wait for the
        device.
        """
        removed, num_left = set(rows), self.cache.batch_size - len(rows)
        order = list(range(num_left))
        movable = (row for row in range(num_left, self.cache.batch_size) if row not in removed)
        for place in sorted(removed):
            if place < num_left:
                order[place] = next(movable)
                self.cache.copy_row(order[place], place, self.cache.length)
        self._set_lengths(self._lengths[torch.tensor(order, device=self.device, dtype=torch.int64)])
        return order

    def select_rows(self, rows: Tensor, shared_columns: int = 0) -> None:
        """Replace the rows of the batch: new row i is a copy of old row rows[i], rows int64[n].

        A row may be repeated or dropped. The first `shared_columns` columns of the cache are not
        copied; the caller must know that they are equal in the old rows i and rows[i].
        """
        self.cache.select_rows(rows, shared_columns)
        if shared_columns == 0:
            self._set_lengths(self._lengths[rows])
        else:
            # The lengths are the same, and to look at them would wait for the device.
            self._lengths = self._lengths[rows]

    def _set_lengths(self, lengths: Tensor) -> None:
        """Set the number of ids of every row, int64[R]. Makes the host wait for the device."""
        self._lengths, self.cache.batch_size = lengths, len(lengths)
        values = lengths.tolist()
        self.cache.length = max(values, default=0)
        self._num_written = max(self._num_written, self.cache.length)
        self._is_even = min(values, default=0) == self.cache.length


def start_batch(
    model: Llama, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> tuple[InferenceBatch, Tensor]:
    """Return a batch of prompts with room for new ids, and hidden[R, D] of the prompts' ends."""
    capacity = max(map(len, prompts)) + max_new_tokens
    batch = InferenceBatch(model, num_rows=len(prompts), capacity=capacity)
    return batch, batch.prefill(prompts)
