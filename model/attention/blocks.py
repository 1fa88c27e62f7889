"""Attention on a CPU in strips of scores that stay in its cache, without what causality masks.

The heads of a row, or of several segments of one length, are multiplied together, strip by strip: a
strip is some successive queries with all keys that they see (forward), or some keys with all
queries that see them (backward, which computes the scores once more: Dao et al. 2022,
arXiv:2205.14135). Scores are changed in place. docs/training.md has figures.

`model.attention.packing` gathers queries and keys; the shapes in its docstring hold here, too.
"""

import threading
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.attention.packing import STRIP, Packing, PartShape, pack
from model.attention.segments import Segments
from model.recomputation import keep_attention

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
        packing = pack(segments, q.shape[2], k.shape[2])
        has_small_scores = _has_small_scores(q, k)
        out, log_sums = keep_attention(lambda: _attend(packing, q, k, v, has_small_scores))
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.packing, ctx.has_small_scores = packing, has_small_scores
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_sums = ctx.saved_tensors
        d_q, d_k, d_v = _differentiate(
            ctx.packing, q, k, v, out, log_sums, gradients[0], ctx.has_small_scores
        )
        return d_q, d_k, d_v, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _select(vectors: Tensor, indices: Tensor) -> Tensor:
    """Return vectors[..., d] at int32 indices[n], counted in contiguous order -> [n, d]."""
    return vectors.reshape(-1, vectors.shape[-1]).index_select(0, indices)


def _has_small_scores(q: Tensor, k: Tensor) -> bool:
    """Return whether no score exceeds _MAX_PLAIN_SCORE, by the norms of queries and keys."""
    norms = [torch.linalg.vector_norm(x, dim=-1).amax() for x in (q, k)]
    return float(norms[0] * norms[1]) * q.shape[-1] ** -0.5 < _MAX_PLAIN_SCORE


def _new_results(num_vectors: int, width: int, like: Tensor) -> Tensor:
    """Return uninitialized vectors and one more, which is 0: that of positions in no segment."""
    results = like.new_empty(num_vectors + 1, width, dtype=_compute_dtype(like))
    results[-1] = 0
    return results


def _matrices(vectors: Tensor, first: int, num_matrices: int, rows: int) -> Tensor:
    """Return a view [M, rows, d] of vectors from the first one on."""
    return vectors.narrow(0, first, num_matrices * rows).view(num_matrices, rows, -1)


def _gather(vectors: Tensor, indices: Tensor, matrices: Tensor) -> Tensor:
    """Copy vectors[..., d] at int32 indices[M * rows] to matrices[M, rows, d]; return these."""
    flat, out = vectors.reshape(-1, vectors.shape[-1]), matrices.view(-1, matrices.shape[-1])
    # The dtypes have to be the same.
    if flat.dtype == out.dtype:
        torch.index_select(flat, 0, indices, out=out)
    else:
        out.copy_(flat.index_select(0, indices))
    return matrices


def _attend(
    packing: Packing, q: Tensor, k: Tensor, v: Tensor, has_small_scores: bool
) -> tuple[Tensor, Tensor]:
    """Return the result[B, T, H, d], and the logarithms[B, T, H, 1] of the sums of exp(score).

    The sums are over all keys of a query, and in fp32 or fp64. `has_small_scores` is what
    `_has_small_scores` returned.
    """
    dtype, dim = _compute_dtype(q), q.shape[-1]
    num_rows = len(packing.queries)
    # In strips.
    out, sums = _new_results(num_rows, dim, q), _new_results(num_rows, 1, q)
    maxima = None if has_small_scores else _new_results(num_rows, 1, q)
    for part in packing.parts:
        shape, layout = part.shape, _workspace.layout(part.shape, dim, dtype)
        part_q = _gather(q, packing.queries[part.rows], layout.q)
        part_k, part_v = (
            _gather(x, packing.keys[part.keys], matrices)
            for x, matrices in ((k, layout.k), (v, layout.v))
        )
        for strip in layout.query_strips:
            place = part.rows.start + shape.matrices * strip.start, shape.matrices, strip.rows
            strip.attend(
                part_q.narrow(1, strip.start, strip.rows),
                part_k.narrow(1, 0, strip.keys),
                part_v.narrow(1, 0, strip.keys),
                _matrices(out, *place),
                _matrices(sums, *place),
                None if maxima is None else _matrices(maxima, *place),
            )
    out[:-1].div_(sums[:-1])
    log_sums = sums.log_() if maxima is None else sums.log_().add_(maxima)
    out, log_sums = (_select(x, packing.query_rows_in_strips) for x in (out, log_sums))
    return out.view(q.shape).to(q.dtype), log_sums.view(*q.shape[:-1], 1)


def _differentiate(
    packing: Packing,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    d_out: Tensor,
    has_small_scores: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, from the results of `_attend` and d_out[B, T, H, d]."""
    dtype, dim = log_sums.dtype, q.shape[-1]
    # The sum over keys of probabilities times their gradients.
    delta = (out.to(dtype) * d_out.to(dtype)).sum(-1, keepdim=True)
    # Exponentials are divided by their sums here, where there are fewer numbers. Those of filler
    # will be 0, so that it adds nothing to the gradients of keys.
    factors = log_sums.neg().exp_() if has_small_scores else torch.ones_like(log_sums)
    d_q = _new_results(len(packing.queries), dim, q)
    # In strips.
    d_k, d_v = (_new_results(len(packing.keys), dim, q) for _ in range(2))
    for part in packing.parts:
        shape, layout = part.shape, _workspace.layout(part.shape, dim, dtype)
        indices, key_indices = packing.queries[part.rows], packing.keys[part.keys]
        part_q = _gather(q, indices, layout.q)
        part_k = _gather(k, key_indices, layout.k)
        part_factors = _select(factors, indices).masked_fill_(packing.is_filler[part.rows], 0)
        layout.load(
            _gather(v, key_indices, layout.v),
            _gather(d_out, indices, layout.d_out),
            _select(delta, indices).view_as(layout.delta),
            part_factors.view_as(layout.delta),
        )
        rows = part.rows.start, shape.matrices, shape.rows
        part_log_sums = (
            None if has_small_scores else _select(log_sums, indices).view_as(layout.delta).mT
        )
        part_d_q = _matrices(d_q, *rows)
        for strip in layout.key_strips:
            seeing = strip.first_row, shape.rows - strip.first_row
            place = part.keys.start + shape.matrices * strip.start, shape.matrices, strip.keys
            strip.differentiate(
                part_q.narrow(1, *seeing),
                part_k.narrow(1, strip.start, strip.keys),
                None if part_log_sums is None else part_log_sums.narrow(2, *seeing),
                part_d_q.narrow(1, *seeing),
                _matrices(d_k, *place),
                _matrices(d_v, *place),
            )
    return (
        _select(d_q, packing.query_rows).view(q.shape).to(q.dtype),
        _key_gradients(d_k, packing, k),
        _key_gradients(d_v, packing, v),
    )


def _key_gradients(strips: Tensor, packing: Packing, like: Tensor) -> Tensor:
    """Return gradients like[B, T, K, d] of keys or values from those in strips."""
    gradients = _select(strips, packing.keys_in_strips).view(like.shape)
    for prefix in packing.prefixes:
        place = gradients[prefix.row, prefix.positions, prefix.heads]
        place.add_(_select(strips, prefix.in_strips).view(place.shape))
    return gradients.to(like.dtype)


class _QueryStrip(NamedTuple):
    """Successive rows of queries, n of each of M matrices, and all s keys that they see."""

    start: int
    rows: int  # n
    keys: int  # s
    scores: Tensor  # [M, n, s]
    own_scores: tuple[Tensor, ...]  # G times [M, p, p], those of the keys at their own positions

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, maxima: Tensor | None
    ) -> None:
        """Compute `sums`[M, n, 1], and out[M, n, d], not divided by them yet.

        q is [M, n, d], k and v [M, s, d]. With maxima[M, n, 1] exponentials are relative to those.
        """
        self.scores.baddbmm_(q, k.mT, beta=0, alpha=q.shape[2] ** -0.5)
        if maxima is not None:
            for own in self.own_scores:
                is_later = torch.ones_like(own[0], dtype=torch.bool).triu_(1)
                own.masked_fill_(is_later, -torch.inf)
            torch.amax(self.scores, -1, keepdim=True, out=maxima)
            self.scores.sub_(maxima).clamp_min_(_MIN_EXPONENT)
        self.scores.exp_()
        # They are masked now, because an exponential of -inf is slow.
        for own in self.own_scores:
            own.tril_()
        torch.sum(self.scores, -1, keepdim=True, out=sums)
        torch.bmm(self.scores, v, out=out)


class _KeyStrip(NamedTuple):
    """Successive keys, n of each of M matrices, and all s rows of queries that see them."""

    start: int
    keys: int  # n
    first_row: int
    v_minus_1: Tensor  # [M, n, d + 1]
    d_out: Tensor  # [M, s, d]
    d_out_delta: Tensor  # [M, d + 1, s]
    scores: Tensor  # [M, n, s]
    d_scores: Tensor  # [M, n, s]
    own_scores: tuple[Tensor, ...]  # G times [M, n, n], those of the queries at their own positions
    is_seen: Tensor  # [n, n], 1 where a query sees a key, else 0
    query_product: Tensor | None  # [M, s, d]

    def differentiate(
        self,
        q: Tensor,
        k: Tensor,
        log_sums: Tensor | None,
        d_q: Tensor,
        d_k: Tensor,
        d_v: Tensor,
    ) -> None:
        """Compute d_k and d_v[M, n, d] of q[M, s, d] and k[M, n, d], and add to d_q[M, s, d].

        With log_sums[M, 1, s] exponentials are divided by their sums.
        """
        scale = q.shape[2] ** -0.5
        self.scores.baddbmm_(k, q.mT, beta=0, alpha=scale)
        if log_sums is not None:
            self.scores.sub_(log_sums).clamp_(_MIN_EXPONENT, 0.0)
        self.scores.exp_()
        for own in self.own_scores:
            own.mul_(self.is_seen)  # triu_ takes three times as long
        torch.bmm(self.scores, self.d_out, out=d_v)
        torch.bmm(self.v_minus_1, self.d_out_delta, out=self.d_scores)
        self.d_scores.mul_(self.scores)
        d_k.baddbmm_(self.d_scores, q, beta=0, alpha=scale)
        if self.query_product is None:
            d_q.baddbmm_(self.d_scores.mT, k, beta=0, alpha=scale)
        else:
            self.query_product.baddbmm_(self.d_scores.mT, k, beta=0, alpha=scale)
            d_q.add_(self.query_product)


class _Layout:
    """The buffers of a shape, and the views of them that each strip needs, which are made once."""

    def __init__(self, shape: PartShape, dim: int, storage: Tensor) -> None:
        """Divide a storage. `size` is what is needed of it; a storage on "meta" has any size."""
        self.size = 0
        self._storage = storage
        matrices = shape.matrices
        num_scores = matrices * shape.group * min(STRIP, shape.keys) * shape.keys
        self._scores, self._d_scores = self._take(num_scores), self._take(num_scores)
        self.q = self._take(matrices, shape.rows, dim)
        self.k, self.v = (self._take(matrices, shape.keys, dim) for _ in range(2))
        self._product = self._take(matrices * shape.rows * dim)
        # Before there is a product, its memory holds gradients of results.
        self.d_out = self._product.view(matrices, shape.rows, dim)
        # With a column more, the product of the two is that of gradients and values, minus delta.
        # Vectors begin at multiples of 64 bytes.
        width = -(-(dim + 1) // 16) * 16
        self._d_out_delta = self._take(matrices, shape.rows, width)[..., : dim + 1]
        self.delta = self._d_out_delta[..., dim:]
        self._v_minus_1 = self._take(matrices, shape.keys, width)[..., : dim + 1]
        self._is_seen = torch.ones(STRIP, STRIP, dtype=storage.dtype).triu_()
        self._shape, self._dim = shape, dim
        self.query_strips = [self._query_strip(*bounds) for bounds in shape.query_strips]
        self.key_strips = [self._key_strip(*bounds) for bounds in shape.key_strips]

    def load(self, v: Tensor, d_out: Tensor, delta: Tensor, factors: Tensor) -> None:
        """Prepare a backward pass with v[M, S, d], and with d_out[M, N, d] and delta[M, N, 1].

        The last two are multiplied by factors[M, N, 1].
        """
        self._v_minus_1[..., :-1] = v
        self._v_minus_1[..., -1:] = -1
        torch.mul(d_out, factors, out=self._d_out_delta[..., :-1])
        torch.mul(delta, factors, out=self.delta)

    def _take(self, *shape: int) -> Tensor:
        """Return the next part of the storage, aligned to 64 bytes."""
        start, self.size = self.size, self.size + -(-prod(shape) // 16) * 16
        return self._storage[start : start + prod(shape)].view(shape)

    def _query_product(self, rows: int) -> Tensor:
        return _first(self._product, self._shape.matrices, rows, self._dim)

    def _query_strip(self, start: int, stop: int) -> _QueryStrip:
        """Return the strip of some rows of queries."""
        shape = self._shape
        position = start // shape.group
        num_keys = shape.prefix + stop // shape.group
        scores = _first(self._scores, shape.matrices, stop - start, num_keys)
        own_scores = scores[:, :, shape.prefix + position :].unflatten(1, (-1, shape.group))
        return _QueryStrip(
            start=start,
            rows=stop - start,
            keys=num_keys,
            scores=scores,
            own_scores=own_scores.unbind(2),
        )

    def _key_strip(self, start: int, stop: int) -> _KeyStrip:
        """Return the strip of some keys."""
        shape, num_keys = self._shape, stop - start
        first_row = max(0, start - shape.prefix) * shape.group
        scores = _first(self._scores, shape.matrices, num_keys, shape.rows - first_row)
        own_scores = scores[:, :, : num_keys * shape.group].unflatten(2, (-1, shape.group))
        d_out_delta = self._d_out_delta[:, first_row:]
        return _KeyStrip(
            start=start,
            keys=num_keys,
            first_row=first_row,
            v_minus_1=self._v_minus_1[:, start:stop],
            d_out=d_out_delta[..., :-1],
            d_out_delta=d_out_delta.mT,
            scores=scores,
            d_scores=_first(self._d_scores, *scores.shape),
            # All queries see a prefix.
            own_scores=own_scores.unbind(3) if start >= shape.prefix else (),
            is_seen=self._is_seen[:num_keys, :num_keys],
            # The first keys are seen by all queries, so theirs is the first part of all gradients.
            query_product=self._query_product(shape.rows - first_row) if start else None,
        )


def _first(buffer: Tensor, *shape: int) -> Tensor:
    """Return the beginning of a flat buffer in another shape."""
    return buffer[: prod(shape)].view(shape)


class _Workspace(threading.local):
    """The buffers of a thread, used again and again: fresh memory costs a page fault every 4 KB."""

    def __init__(self) -> None:
        self._storages: dict[torch.dtype, Tensor] = {}
        self._layouts: dict[tuple[PartShape, int, torch.dtype], _Layout] = {}

    def layout(self, shape: PartShape, dim: int, dtype: torch.dtype) -> _Layout:
        """Return the buffers of a shape; those of all shapes share their memory."""
        key = shape, dim, dtype
        if key not in self._layouts:
            size = _Layout(shape, dim, torch.empty(1 << 50, dtype=dtype, device="meta")).size
            storage = self._storages.get(dtype)
            if storage is None or len(storage) < size:
                storage = self._storages[dtype] = torch.empty(size, dtype=dtype)
                self._layouts.clear()
            if len(self._layouts) == _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = _Layout(shape, dim, storage)
        return self._layouts[key]


_workspace = _Workspace()
