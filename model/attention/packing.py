"""Indices that gather the segments of a batch into matrices of one shape, and scatter results back.

Segments of one length are computed together, in one batched product for all their heads. One
`index_select` of vectors of head_dim gathers the queries of all segments, heads and positions,
another the keys, and so on. The indices are the same in all layers of a model.

Shapes: B rows, T positions, H query heads, K key-value heads, d head_dim; G = H / K query heads of
a key-value head, whose queries are rows of one matrix. A part is M matrices, one for each of its
segments and key-value heads, with N rows of queries and S keys, those of the prefix first.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.attention.segments import Segment, Segments

# Queries of a strip in the forward pass, keys of one in the backward pass.
STRIP = 64
# Segments are filled up to a multiple of this, so that many are of one length.
LENGTH_STEP = 32
# Scores that are computed together by each thread: 1 MB in fp32. Their gradients need as much.
MAX_SCORES = 1 << 18


class PartShape(NamedTuple):
    """The size of a part."""

    matrices: int  # M
    group: int  # G
    length: int  # of each segment, filled up
    prefix: int  # keys in front of each segment

    @property
    def rows(self) -> int:
        """Return N, the number of rows of queries of a matrix."""
        return self.length * self.group

    @property
    def keys(self) -> int:
        """Return S, the number of keys of a matrix."""
        return self.prefix + self.length

    @property
    def query_strips(self) -> list[tuple[int, int]]:
        """Return the bounds of each strip of queries among the rows of a matrix."""
        size = STRIP * self.group
        return [(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]

    @property
    def key_strips(self) -> list[tuple[int, int]]:
        """Return the bounds of each strip of keys, none of which crosses the end of the prefix."""
        return [
            (start, min(start + STRIP, stop))
            for first, stop in ((0, self.prefix), (self.prefix, self.keys))
            for start in range(first, stop, STRIP)
        ]


class Part(NamedTuple):
    """Segments of one length, and some of their heads, that are computed together."""

    shape: PartShape
    rows: slice  # M * N of the rows of all parts
    keys: slice  # M * S


class PrefixKeys(NamedTuple):
    """The keys of a prefix in front of one segment, whose gradients are added to the prefix's."""

    row: int
    positions: slice
    heads: slice
    in_strips: Tensor  # int32[positions * heads]


class Packing(NamedTuple):
    """The parts of a batch, and the indices that gather into them and scatter back.

    Vectors are indexed as in contiguous tensors[B, T, heads, d]. Rows of queries, and keys, are
    indexed in one of two orders: that of the matrices[M, N or S, d], one part after another; or
    "in strips", that of the matrices[M, n, d] of one strip after another, which is how batched
    products write results. A segment that is shorter than its part is filled up with copies of its
    last vector, which are never read back. Positions in no segment read the vector after the last.
    """

    parts: Sequence[Part]
    queries: Tensor  # int32[rows]: the vector that each row is a copy of
    keys: Tensor  # int32[keys]: the same of keys
    is_filler: Tensor  # bool[rows, 1]: the copies that fill segments up
    query_rows: Tensor  # int32[B * T * H]: the row of each vector
    query_rows_in_strips: Tensor  # int32[B * T * H]: its number in strips
    keys_in_strips: Tensor  # int32[B * T * K]: the same of keys
    prefixes: Sequence[PrefixKeys]


def pack(segments: Segments, num_heads: int, num_kv_heads: int) -> Packing:
    """Return the packing for H query and K key-value heads, which is made once for a batch."""
    key = num_heads, num_kv_heads, torch.get_num_threads()
    if key not in segments.packings:
        segments.packings[key] = _Packer(segments, num_heads, num_kv_heads).pack()
    packing: Packing = segments.packings[key]
    return packing


class _Packer:
    """Builds a `Packing`, part by part."""

    def __init__(self, segments: Segments, num_heads: int, num_kv_heads: int) -> None:
        self._segments = segments
        self._num_kv_heads, self._group = num_kv_heads, num_heads // num_kv_heads
        self._parts: list[Part] = []
        self._prefixes: list[PrefixKeys] = []
        self._num_rows = self._num_keys = 0
        # Fields of `Packing`, and which rows and keys are not filler, of one part after another.
        names = "queries", "keys", "is_row", "is_key", "rows_in_strips", "keys_in_strips"
        self._pieces = {name: [torch.zeros(0, dtype=torch.int64)] for name in names}

    def pack(self) -> Packing:
        """Return the packing of all segments that have positions."""
        of_length: dict[tuple[int, int], list[Segment]] = defaultdict(list)
        for segment in self._segments.items:
            if segment.length:
                filled = -(-segment.length // LENGTH_STEP) * LENGTH_STEP
                of_length[filled, segment.prefix_stop - segment.prefix_start].append(segment)
        for (length, prefix), alike in of_length.items():
            for some, heads in self._divide(length, prefix, alike):
                self._add_part(length, prefix, some, heads)
        pieces = {name: torch.cat(tensors) for name, tensors in self._pieces.items()}
        num_kv_vectors = self._segments.num_rows * self._segments.length * self._num_kv_heads
        num_vectors = num_kv_vectors * self._group
        is_row, is_key = pieces["is_row"].bool(), pieces["is_key"].bool()
        queries, keys = pieces["queries"], pieces["keys"]
        return Packing(
            parts=self._parts,
            queries=queries.int(),
            keys=keys.int(),
            is_filler=~is_row.unsqueeze(1),
            query_rows=_inverse(queries, torch.arange(self._num_rows), is_row, num_vectors),
            query_rows_in_strips=_inverse(queries, pieces["rows_in_strips"], is_row, num_vectors),
            keys_in_strips=_inverse(keys, pieces["keys_in_strips"], is_key, num_kv_vectors),
            prefixes=self._prefixes,
        )

    def _divide(
        self, length: int, prefix: int, alike: Sequence[Segment]
    ) -> Iterator[tuple[Sequence[Segment], range]]:
        """Yield segments and key-value heads whose scores fit the caches of the threads.

        Those of one head may not; they are computed all the same.
        """
        num_heads = self._num_kv_heads
        max_scores = MAX_SCORES * torch.get_num_threads()
        scores_per_head = min(STRIP, length) * self._group * (prefix + length)
        # Equal shares of the heads, each of as many as fit.
        num_shares = -(-num_heads // max(1, max_scores // scores_per_head))
        share = -(-num_heads // num_shares)
        # Powers of two, so that there are few shapes.
        most = 1 << max(1, max_scores // (scores_per_head * num_heads)).bit_length() - 1
        start = 0
        while start < len(alike):
            count = min(most, 1 << (len(alike) - start).bit_length() - 1)
            for head in range(0, num_heads, share):
                yield alike[start : start + count], range(head, min(head + share, num_heads))
            start += count

    def _add_part(
        self, length: int, prefix: int, segments: Sequence[Segment], heads: range
    ) -> None:
        """Append a part of some segments, filled up to `length`, and some key-value heads."""
        group = self._group
        shape = PartShape(len(segments) * len(heads), group, length, prefix)
        # [segments, 1, 1, 1], [heads, 1, 1], [positions, 1] and [G]
        lengths = torch.tensor([item.length for item in segments]).view(-1, 1, 1, 1)
        starts, prefixes = (
            torch.tensor(
                [item.row * self._segments.length + getattr(item, name) for item in segments]
            ).view(-1, 1, 1, 1)
            for name in ("start", "prefix_start")
        )
        head = torch.tensor(heads).view(-1, 1, 1)
        position = torch.arange(length).view(-1, 1)
        own = starts + torch.minimum(position, lengths - 1)  # [segments, 1, length, 1]
        queries = (own * self._num_kv_heads + head) * group + torch.arange(group)
        is_row = (position < lengths).expand_as(queries)
        in_prefix = prefixes + torch.arange(prefix).view(-1, 1)
        keys = torch.cat([in_prefix, own], 2) * self._num_kv_heads + head
        place = torch.arange(-prefix, length).view(-1, 1)
        is_key = ((place >= 0) & (place < lengths)).expand_as(keys)
        rows_in_strips = self._num_rows + _indices_in_strips(shape.matrices, shape.query_strips)
        keys_in_strips = self._num_keys + _indices_in_strips(shape.matrices, shape.key_strips)
        for name, piece in (
            ("queries", queries),
            ("keys", keys),
            ("is_row", is_row),
            ("is_key", is_key),
            ("rows_in_strips", rows_in_strips),
            ("keys_in_strips", keys_in_strips),
        ):
            self._pieces[name].append(piece.flatten())
        if prefix:
            by_segment = keys_in_strips.view(len(segments), len(heads), -1)[..., :prefix]
            self._prefixes += [
                PrefixKeys(
                    segment.row,
                    slice(segment.prefix_start, segment.prefix_stop),
                    slice(heads.start, heads.stop),
                    indices.t().flatten().int(),
                )
                for segment, indices in zip(segments, by_segment, strict=True)
            ]
        first_row, first_key = self._num_rows, self._num_keys
        self._num_rows += queries.numel()
        self._num_keys += keys.numel()
        self._parts.append(
            Part(shape, slice(first_row, self._num_rows), slice(first_key, self._num_keys))
        )


def _inverse(vectors: Tensor, indices: Tensor, is_real: Tensor, num_vectors: int) -> Tensor:
    """Return the index of the copy of each vector, int32[num_vectors].

    indices[i] is the index of a copy of vectors[i]; where is_real[i] is False, the copy is filler
    and does not count. A vector without a copy gets the index after the last.
    """
    result = torch.full((num_vectors,), len(indices))
    result[vectors[is_real]] = indices[is_real]
    return result.int()


def _indices_in_strips(num_matrices: int, strips: Sequence[tuple[int, int]]) -> Tensor:
    """Return the index in strips of each row of each matrix of a part, int64[M, rows]."""
    matrix = torch.arange(num_matrices).view(-1, 1)
    return torch.cat(
        [
            num_matrices * start + matrix * (stop - start) + torch.arange(stop - start)
            for start, stop in strips
        ],
        1,
    )
