"""Attention on a CPU in strips of scores that stay in its cache, without what causality masks.

The heads of a row, or of several segments of one length, are multiplied together, strip by strip: a
strip is some successive queries with all keys that they see (forward), or some keys with all
queries that see them (backward, which computes the scores once more: Dao et al. 2022,
arXiv:2205.14135). What happens to scores happens in place. docs/training.md has figures.

Shapes: B rows, T positions, H query heads, K key-value heads, d head_dim; G = H / K query heads of
a key-value head, whose queries are rows of one matrix.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.attention.segments import Segment, Segments
from model.recomputation import keep_attention

# Queries of a strip in the forward pass, keys of one in the backward pass.
_STRIP = 64
# Segments are filled up to a multiple of this, so that many are of one length.
_LENGTH_STEP = 32
# Scores that are computed together: 1 MB in fp32. Their gradients need as much.
_MAX_SCORES = 1 << 18
# How many layouts of the buffers are kept.
_MAX_LAYOUTS = 128
# If no score is larger in absolute value, exponentials of scores do not overflow, nor are they so
# small (subnormal) that processors are slow with them.
_MAX_PLAIN_SCORE = 40.0
# Beside exp(0) = 1, the exponential of anything smaller is negligible.
_MIN_EXPONENT = -60.0


class AttentionFunction(torch.autograd.Function):
    """Causal attention within segments of rows.

    q[B, T, H, d], k and v[B, T, K, d] -> [B, T, H, d]: 0 where a position belongs to no segment. It
    computes in fp32, or in fp64 if that is the dtype of `q`.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        has_small_scores = _has_small_scores(q, k)

        def attend() -> tuple[Tensor, Tensor]:
            """Return the result, and the logarithms of the sums over all keys of exp(score)."""
            out = _new_result(q, segments)
            log_sums = torch.zeros(q.shape[:3], dtype=_compute_dtype(q), device=q.device)
            inputs = _by_heads(k.shape[2], q.to(log_sums.dtype), k, v)
            results = _by_heads(k.shape[2], out, log_sums.unsqueeze(-1))
            for part in _parts(segments, q, k):
                part.load(*inputs)
                for strip in part.layout.query_strips:
                    strip.attend(has_small_scores)
                part.store(has_small_scores, *results)
            return out, log_sums

        out, log_sums = keep_attention(attend)
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.segments, ctx.has_small_scores = segments, has_small_scores
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_sums = ctx.saved_tensors
        d_q, d_k, d_v = (_new_result(x, ctx.segments) for x in (q, k, v))
        num_kv_heads = k.shape[2]
        inputs = _by_heads(num_kv_heads, q.to(log_sums.dtype), k, v)
        gradient_inputs = _by_heads(num_kv_heads, gradients[0], out, -log_sums.unsqueeze(-1))
        results = _by_heads(num_kv_heads, d_q, d_k, d_v)
        for part in _parts(ctx.segments, q, k):
            part.load(*inputs)
            part.load_gradients(*gradient_inputs)
            for strip in part.layout.key_strips:
                strip.differentiate(ctx.has_small_scores)
            part.store_gradients(*results)
        return d_q, d_k, d_v, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _new_result(like: Tensor, segments: Segments) -> Tensor:
    """Return a contiguous tensor like another one, 0 at the positions of padding."""
    num_positions = sum(segment.length for segment in segments.items)
    is_full = num_positions == segments.num_rows * segments.length
    new = torch.empty if is_full else torch.zeros
    return new(like.shape, dtype=like.dtype, device=like.device)


def _has_small_scores(q: Tensor, k: Tensor) -> bool:
    """Return whether no score exceeds _MAX_PLAIN_SCORE, by the norms of queries and keys."""
    norms = [torch.linalg.vector_norm(x, dim=-1).amax() for x in (q, k)]
    return float(norms[0] * norms[1]) * q.shape[-1] ** -0.5 < _MAX_PLAIN_SCORE


def _by_heads(num_kv_heads: int, *tensors: Tensor) -> list[Tensor]:
    """Return views [B, K, T, G, d] of tensors[B, T, H, d], or [B, K, T, 1, d] if H is K."""
    return [x.unflatten(2, (num_kv_heads, -1)).transpose(1, 2) for x in tensors]


class _Shape(NamedTuple):
    """What the layout of the buffers depends on."""

    segments: int
    kv_heads: int
    group: int  # G
    length: int  # of each segment, filled up
    prefix: int  # keys in front of each segment
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class _QueryStrip(NamedTuple):
    """Successive queries, n for each of M matrices, and all s keys that they see."""

    q: Tensor  # [M, n, d]
    k: Tensor  # [M, d, s]
    v: Tensor  # [M, s, d]
    scores: Tensor  # [M, n, s]
    last_scores: list[Tensor]  # G times [M, p, p], those of the keys at their own positions
    sums: Tensor  # [M, n, 1]
    maxima: Tensor  # [M, n, 1]
    product: Tensor  # [M, n, d]
    out: Tensor  # [M, n, d]

    def attend(self, has_small_scores: bool) -> None:
        """Compute `out` and `sums`; unless scores are small, relative to `maxima`."""
        torch.bmm(self.q, self.k, out=self.scores)
        if not has_small_scores:
            for scores in self.last_scores:
                is_later = torch.ones_like(scores[0], dtype=torch.bool).triu_(1)
                scores.masked_fill_(is_later, -torch.inf)
            torch.amax(self.scores, -1, keepdim=True, out=self.maxima)
            self.scores.sub_(self.maxima).clamp_min_(_MIN_EXPONENT)
        self.scores.exp_()
        # They are masked now, because an exponential of -inf is slow.
        for exponentials in self.last_scores:
            exponentials.tril_()
        torch.sum(self.scores, -1, keepdim=True, out=self.sums)
        torch.bmm(self.scores, self.v, out=self.product)
        torch.div(self.product, self.sums, out=self.out)


class _KeyStrip(NamedTuple):
    """Successive keys, n for each of M matrices, and all s queries that see them.

    With the additional column of `k_1`, which is 1, and row of `q_log_sums`, their product is
    scores minus log_sums; likewise with `v_1` and `d_out_delta`.
    """

    k: Tensor  # [M, n, d]
    k_1: Tensor  # [M, n, d + 1]
    v_1: Tensor  # [M, n, d + 1]
    q: Tensor  # [M, s, d]
    q_log_sums: Tensor  # [M, d + 1, s]
    d_out: Tensor  # [M, s, d]
    d_out_delta: Tensor  # [M, d + 1, s]
    scores: Tensor  # [M, n, s]
    d_scores: Tensor  # [M, n, s]
    first_scores: list[Tensor]  # G times [M, n, n], those of the queries at their own positions
    is_seen: Tensor  # [n, n], 1 where a query sees a key, else 0
    product: Tensor  # [M, n, d]
    d_k: Tensor  # [M, n, d]
    d_v: Tensor  # [M, n, d]
    query_product: Tensor  # [M, s, d]
    d_q: Tensor  # [M, s, d]

    def differentiate(self, has_small_scores: bool) -> None:
        """Compute `d_k` and `d_v`, and add to `d_q`."""
        torch.bmm(self.k_1, self.q_log_sums, out=self.scores)
        if not has_small_scores:
            self.scores.clamp_(_MIN_EXPONENT, 0.0)
        probabilities = self.scores.exp_()
        for own in self.first_scores:
            own.mul_(self.is_seen)  # triu_ takes three times as long
        torch.bmm(probabilities, self.d_out, out=self.product)
        self.d_v.copy_(self.product)
        torch.bmm(self.v_1, self.d_out_delta, out=self.d_scores)
        self.d_scores.mul_(probabilities)
        torch.bmm(self.d_scores, self.q, out=self.product)
        self.d_k.copy_(self.product)
        torch.bmm(self.d_scores.mT, self.k, out=self.query_product)
        if self.query_product is not self.d_q:
            self.d_q.add_(self.query_product)


class _Layout:
    """The buffers of one shape, and the views of them that each strip needs, which are made once.

    Buffers are [M, N, d], M = segments · kv_heads, of queries (N = length · G) or of keys. Those of
    q, d_out, k and v end in another column, which only the backward pass needs.
    """

    def __init__(self, shape: _Shape, storage: Tensor) -> None:
        """Divide a storage. `size` is what is needed of it; a storage on "meta" has any size."""
        self.shape = shape
        self.size = 0
        self._storage = storage
        matrices, dim = shape.segments * shape.kv_heads, shape.head_dim
        rows, keys = shape.length * shape.group, shape.prefix + shape.length
        num_scores = matrices * min(_STRIP, keys) * keys * shape.group
        self._scores, self._d_scores = self._take(num_scores), self._take(num_scores)
        self._products = self._take(matrices * max(rows, min(_STRIP, keys)) * dim)
        self.out, self.d_q = (self._take(matrices, rows, dim) for _ in range(2))
        self.d_k, self.d_v = (self._take(matrices, keys, dim) for _ in range(2))
        self.sums, self.maxima = (self._take(matrices, rows, 1) for _ in range(2))
        # Rows begin at multiples of 64 bytes.
        width = -(-(dim + 1) // 16) * 16
        self._wide_q, self._wide_d_out = (self._take(matrices, rows, width) for _ in range(2))
        self._wide_k, self._wide_v = (self._take(matrices, keys, width) for _ in range(2))
        self.q, self.d_out, self.k, self.v = (
            wide[..., :dim] for wide in (self._wide_q, self._wide_d_out, self._wide_k, self._wide_v)
        )
        self.log_sums, self.delta, self.k_ones, self.v_ones = (
            wide[..., dim : dim + 1]
            for wide in (self._wide_q, self._wide_d_out, self._wide_k, self._wide_v)
        )
        self._is_seen = torch.ones(_STRIP, _STRIP, dtype=shape.dtype, device=shape.device).triu_()
        own_keys = range(shape.prefix, keys, _STRIP)
        self.query_strips = [
            self._query_strip(start, min(start + _STRIP, shape.length))
            for start in range(0, shape.length, _STRIP)
        ]
        self.key_strips = [
            self._key_strip(start, min(start + _STRIP, stop))
            for starts, stop in ((range(0, shape.prefix, _STRIP), shape.prefix), (own_keys, keys))
            for start in starts
        ]

    def by_segment(self, buffer: Tensor) -> Tensor:
        """Return a buffer[M, N, d] as [segments, kv_heads, positions, heads of each, d]."""
        shape = self.shape
        heads = shape.group if buffer.shape[1] == shape.length * shape.group else 1
        return buffer.view(shape.segments, shape.kv_heads, -1, heads, buffer.shape[2])

    def _take(self, *shape: int) -> Tensor:
        """Return the next part of the storage, aligned to 64 bytes."""
        start, self.size = self.size, self.size + -(-prod(shape) // 16) * 16
        return self._storage[start : start + prod(shape)].view(shape)

    def _query_strip(self, start: int, stop: int) -> _QueryStrip:
        """Return the strip of the queries at some positions of the segments."""
        shape = self.shape
        rows = slice(start * shape.group, stop * shape.group)
        num_rows, num_keys = rows.stop - rows.start, shape.prefix + stop
        scores = _first(self._scores, len(self.q), num_rows, num_keys)
        last_scores = scores[:, :, shape.prefix + start :]
        return _QueryStrip(
            q=self.q[:, rows],
            k=self.k[:, :num_keys].mT,
            v=self.v[:, :num_keys],
            scores=scores,
            last_scores=list(last_scores.unflatten(1, (-1, shape.group)).unbind(2)),
            sums=self.sums[:, rows],
            maxima=self.maxima[:, rows],
            product=_first(self._products, len(self.q), num_rows, shape.head_dim),
            out=self.out[:, rows],
        )

    def _key_strip(self, start: int, stop: int) -> _KeyStrip:
        """Return the strip of some keys; positions are those of prefix and segment together."""
        shape = self.shape
        rows = slice(max(0, start - shape.prefix) * shape.group, None)
        q = self.q[:, rows]
        scores = _first(self._scores, len(q), stop - start, q.shape[1])
        # None in a prefix, which all queries see.
        num_masked = (stop - start) * shape.group if start >= shape.prefix else 0
        first_scores = scores[:, :, :num_masked].unflatten(2, (-1, shape.group))
        with_column = slice(shape.head_dim + 1)
        d_q = self.d_q[:, rows]
        return _KeyStrip(
            k=self.k[:, start:stop],
            k_1=self._wide_k[:, start:stop, with_column],
            v_1=self._wide_v[:, start:stop, with_column],
            q=q,
            q_log_sums=self._wide_q[:, rows, with_column].mT,
            d_out=self.d_out[:, rows],
            d_out_delta=self._wide_d_out[:, rows, with_column].mT,
            scores=scores,
            d_scores=_first(self._d_scores, *scores.shape),
            first_scores=list(first_scores.unbind(3)) if num_masked else [],
            is_seen=self._is_seen[: stop - start, : stop - start],
            product=_first(self._products, len(q), stop - start, shape.head_dim),
            d_k=self.d_k[:, start:stop],
            d_v=self.d_v[:, start:stop],
            # The first keys are seen by all queries, so theirs is the first part of all gradients.
            query_product=_first(self._products, *q.shape) if start else d_q,
            d_q=d_q,
        )


def _first(buffer: Tensor, *shape: int) -> Tensor:
    """Return the beginning of a flat buffer in another shape."""
    return buffer[: prod(shape)].view(shape)


class _Workspace(threading.local):
    """The buffers of a thread, used again and again: fresh memory costs a page fault every 4 KB."""

    def __init__(self) -> None:
        self._storages: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._layouts: dict[_Shape, _Layout] = {}

    def layout(self, shape: _Shape) -> _Layout:
        """Return the buffers of a shape; those of all shapes share their memory."""
        if shape not in self._layouts:
            size = _Layout(shape, torch.empty(1 << 50, dtype=shape.dtype, device="meta")).size
            kind = shape.dtype, shape.device
            storage = self._storages.get(kind)
            if storage is None or len(storage) < size:
                storage = torch.empty(size, dtype=shape.dtype, device=shape.device)
                self._storages[kind] = storage
                self._layouts.clear()
            if len(self._layouts) == _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[shape] = _Layout(shape, storage)
        return self._layouts[shape]


_workspace = _Workspace()


class _Part(NamedTuple):
    """Segments of one length, and some of their heads, that are computed together.

    Arguments of its methods are views by `_by_heads`.
    """

    layout: _Layout
    segments: Sequence[Segment]
    kv_heads: slice

    def load(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Copy queries, scaled, keys and values into the buffers."""
        layout = self.layout
        self._load_queries(layout.q, q, layout.shape.head_dim**-0.5)
        for buffer, source in ((layout.k, k), (layout.v, v)):
            for segment, keys in zip(self.segments, layout.by_segment(buffer), strict=True):
                prefix, stop = layout.shape.prefix, layout.shape.prefix + segment.length
                if prefix:
                    keys[:, :prefix] = self._prefix(segment, source)
                keys[:, prefix:stop] = self._own(segment, source)
                # What fills a segment up may not be NaN, although its probabilities are 0.
                if stop < keys.shape[1]:
                    keys[:, stop:] = 0

    def store(self, has_small_scores: bool, out: Tensor, log_sums: Tensor) -> None:
        """Copy the results of the forward pass out of the buffers."""
        layout = self.layout
        self._store_queries(layout.out, out)
        logarithms = layout.sums.log_()
        if not has_small_scores:
            logarithms.add_(layout.maxima)
        self._store_queries(logarithms, log_sums)

    def load_gradients(self, d_out: Tensor, out: Tensor, log_sums: Tensor) -> None:
        """Copy what the backward pass needs besides into the buffers; `log_sums` are negated."""
        layout = self.layout
        self._load_queries(layout.d_out, d_out)
        self._load_queries(layout.out, out)
        self._load_queries(layout.log_sums, log_sums)
        # The negated sums over all keys of probabilities times their gradients.
        torch.sum(layout.out.mul_(layout.d_out), -1, keepdim=True, out=layout.delta)
        layout.delta.neg_()
        layout.k_ones.fill_(1)
        layout.v_ones.fill_(1)

    def store_gradients(self, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> None:
        """Copy gradients out of the buffers; add those of prefixes, which are there already."""
        layout = self.layout
        self._store_queries(layout.d_q.mul_(layout.shape.head_dim**-0.5), d_q)
        for buffer, target in ((layout.d_k, d_k), (layout.d_v, d_v)):
            for segment, keys in zip(self.segments, layout.by_segment(buffer), strict=True):
                prefix = layout.shape.prefix
                if prefix:
                    self._prefix(segment, target).add_(keys[:, :prefix])
                self._own(segment, target).copy_(keys[:, prefix : prefix + segment.length])

    def _load_queries(self, buffer: Tensor, source: Tensor, scale: float | None = None) -> None:
        for segment, rows in zip(self.segments, self.layout.by_segment(buffer), strict=True):
            own = rows[:, : segment.length]
            if scale is None:
                own.copy_(self._own(segment, source))
            else:
                torch.mul(self._own(segment, source), scale, out=own)
            if segment.length < rows.shape[1]:
                rows[:, segment.length :] = 0

    def _store_queries(self, buffer: Tensor, target: Tensor) -> None:
        for segment, rows in zip(self.segments, self.layout.by_segment(buffer), strict=True):
            self._own(segment, target).copy_(rows[:, : segment.length])

    def _own(self, segment: Segment, tensor: Tensor) -> Tensor:
        return tensor[segment.row, self.kv_heads, segment.start : segment.stop]

    def _prefix(self, segment: Segment, tensor: Tensor) -> Tensor:
        return tensor[segment.row, self.kv_heads, segment.prefix_start : segment.prefix_stop]


def _parts(segments: Segments, q: Tensor, k: Tensor) -> Iterator[_Part]:
    """Yield all segments and heads in parts, whose scores fit the cache as far as possible."""
    num_kv_heads, dim = k.shape[2:]
    group = q.shape[2] // num_kv_heads
    of_length: dict[tuple[int, int], list[Segment]] = defaultdict(list)
    for segment in segments.items:
        if segment.length:
            filled = -(-segment.length // _LENGTH_STEP) * _LENGTH_STEP
            of_length[filled, segment.prefix_stop - segment.prefix_start].append(segment)
    # Those without a prefix first: they are the prefixes of others.
    for (length, prefix), alike in sorted(of_length.items(), key=lambda item: item[0][1] > 0):
        scores_per_head = min(_STRIP, length) * group * (prefix + length)
        # Equal shares of the heads, each of as many as fit.
        num_shares = -(-num_kv_heads // max(1, _MAX_SCORES // scores_per_head))
        heads = -(-num_kv_heads // num_shares)
        # Powers of two, so that there are few layouts.
        fitting = max(1, _MAX_SCORES // (scores_per_head * num_kv_heads))
        most = 1 << fitting.bit_length() - 1
        start = 0
        while start < len(alike):
            count = min(most, 1 << (len(alike) - start).bit_length() - 1)
            for first_head in range(0, num_kv_heads, heads):
                kv_heads = slice(first_head, min(first_head + heads, num_kv_heads))
                shape = _Shape(
                    count,
                    kv_heads.stop - first_head,
                    group,
                    length,
                    prefix,
                    dim,
                    _compute_dtype(q),
                    q.device,
                )
                yield _Part(_workspace.layout(shape), alike[start : start + count], kv_heads)
            start += count
