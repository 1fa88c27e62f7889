"""Prefill in chunks: only the KV cache of a long prompt grows, the rest is that of one chunk."""

from collections.abc import Callable

import torch
from torch import Tensor

# Positions of all rows that are processed together: enough that matmuls run at full speed.
CHUNK_POSITIONS = 8192


def prefill_in_chunks(
    process: Callable[[Tensor], Tensor], ids: Tensor, last: Tensor | None
) -> Tensor:
    """Process ids[R, T] in chunks of positions; return hidden[R, D] of one position of each row.

    It is position last[r] of row r or, without `last`, the last one. `process` takes ids[R, n],
    which follow those of the calls before, and returns hidden[R, n, D].
    """
    num_rows, length = ids.shape
    rows = torch.arange(num_rows, device=ids.device)
    if last is None:
        last = torch.full_like(rows, length - 1)
    chunk_length = max(1, CHUNK_POSITIONS // num_rows)
    hidden: Tensor | None = None
    for start in range(0, length, chunk_length):
        part = process(ids[:, start : start + chunk_length])
        # Of rows that end later this is not yet the right state: a later chunk replaces it.
        chosen = part[rows, (last - start).clamp(0, part.shape[1] - 1)]
        is_reached = (last >= start).unsqueeze(1)
        hidden = chosen if hidden is None else torch.where(is_reached, chosen, hidden)
    assert hidden is not None
    return hidden
