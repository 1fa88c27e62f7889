"""Which positions of packed rows attend to which: the segments of each row.

A segment is a stretch of a row whose positions attend to themselves and to earlier ones of it; if
it has a prefix, an earlier stretch of the same row, also to all positions of that. An example of a
packed row is a segment; an answer is one whose prefix is the prompt that it shares with others. In
place of a mask of T · T there are thus a few numbers for each segment; GPUs without a kernel for
them get the mask.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Positions `start` to `stop` of a row, and those of its prefix, by default none.

    What is a prefix of another segment has none itself.
    """

    row: int
    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0

    @property
    def length(self) -> int:
        """Return the number of positions, those of the prefix not counted."""
        return self.stop - self.start


@dataclass(frozen=True)
class Offsets:
    """Segments as variable-length kernels take them: concatenated, each from an offset to the next.

    Queries are all B · T positions in their order, padding too. Keys are chosen by their index if
    segments have prefixes, so that each segment has its prefix in front of it.
    """

    queries: Tensor  # int32[n + 1]
    keys: Tensor  # int32[n + 1]
    key_indices: Tensor | None  # int64[N], among the flattened B · T positions


@dataclass(frozen=True)
class Segments:
    """The segments of the rows of a batch, in the order of their positions.

    Positions that belong to no segment are padding: what they attend to is undefined, and their
    outputs mean nothing.
    """

    items: tuple[Segment, ...]
    num_rows: int
    length: int  # of a row
    offsets: Offsets | None = None  # on a GPU that has kernels for them
    # The cache of `model.attention.packing.pack`, by heads and threads.
    packings: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    _masks: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def mask_on(self, device: torch.device) -> Tensor:
        """Return which positions may attend to which, bool[B, 1, T, T], made once for a device.

        Padding attends to itself.
        """
        if device not in self._masks:
            numbers = torch.full((self.num_rows, self.length), -1)
            for number, item in enumerate(self.items):
                numbers[item.row, item.start : item.stop] = number
            mask = (numbers.unsqueeze(2) == numbers.unsqueeze(1)).tril_()
            for item in self.items:
                mask[item.row, item.start : item.stop, item.prefix_start : item.prefix_stop] = True
            self._masks[device] = mask.unsqueeze(1).to(device)
        return self._masks[device]

    def to(self, device: torch.device) -> "Segments":
        """Return the segments for a device; copies to a GPU are asynchronous."""
        # FlashAttention needs Ampere or later.
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            return self
        return replace(self, offsets=_to_device(make_offsets(self), device))


@functools.lru_cache(maxsize=4)
def whole_rows(num_rows: int, length: int) -> Segments:
    """Return segments that are whole rows: plain causality."""
    return Segments(tuple(Segment(row, 0, length) for row in range(num_rows)), num_rows, length)


def make_offsets(segments: Segments) -> Offsets:
    """Return the offsets of segments; the padding of a row counts as another segment."""
    queries, keys, key_indices = [0], [0], []
    for item in _with_padding(segments):
        row_start = item.row * segments.length
        prefix = range(row_start + item.prefix_start, row_start + item.prefix_stop)
        own = range(row_start + item.start, row_start + item.stop)
        key_indices += [*prefix, *own]
        queries.append(own.stop)
        keys.append(len(key_indices))
    has_prefix = keys != queries
    return Offsets(
        queries=torch.tensor(queries, dtype=torch.int32),
        keys=torch.tensor(keys, dtype=torch.int32),
        key_indices=torch.tensor(key_indices) if has_prefix else None,
    )


def _with_padding(segments: Segments) -> Iterable[Segment]:
    """Yield all segments, and what is left between them, in the order of their positions."""
    place = 0  # among the flattened positions
    for item in (*segments.items, Segment(segments.num_rows, 0, 0)):
        start = item.row * segments.length + item.start
        while place < start:
            row, column = divmod(place, segments.length)
            stop = min(start, (row + 1) * segments.length)
            yield Segment(row, column, column + stop - place)
            place = stop
        if item.stop > item.start:
            yield item
        place = start + item.stop - item.start


def _to_device(offsets: Offsets, device: torch.device) -> Offsets:
    """Return offsets on a GPU; only from pinned memory are the copies asynchronous."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    indices = offsets.key_indices
    return Offsets(
        copy(offsets.queries), copy(offsets.keys), None if indices is None else copy(indices)
    )
