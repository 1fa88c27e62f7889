"""The LM head for decoding: logits of a few positions, or the most likely id alone.

At 43M parameters the head is two thirds of the bytes that are read for a token. On a CPU in fp32
two things make it faster than a plain linear layer:

- For all logits, a transposed copy of the matrix is used, so that the matmul of a few rows reads
  memory in order instead of summing along it.
- For the most likely id, most of the matrix need not be read in fp32. An int8 copy gives
  approximate logits with a bound on their error, which rules out all ids except a few; only their
  logits are computed in fp32. The result is the argmax of the full matmul. For several rows the
  hidden states are int8 too, each row with its own scale, where the processor multiplies int8.

Ids that stand for no token of the tokenizer, as in a padded vocabulary, are never the most likely
ones: their logits are replaced by the lowest finite number. Without such ids this costs nothing.

Shapes: R rows, D hidden size, V vocabulary.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from model.quantize import (
    Int8Linear,
    can_use_int8_kernel,
    dequantize,
    is_plain_linear,
    quantize_rows,
)

# With more candidates per row than this, computing all logits is as fast.
_MAX_CANDIDATES_PER_ROW = 2048
# Each of fewer rows is multiplied as fast in bf16, which rounds less.
_MIN_INT8_ROWS = 4
# bf16 rounds by at most 2^-8 relative to the exact number, and slightly more relative to the
# rounded one.
_BF16_ROUNDING_ERROR = 2.0**-8 * 1.01
# Both matmuls sum in fp32: D terms with a relative error of 2^-24 each, for D up to some thousands.
_FP32_SUM_ERROR = 1e-4
# Rows of the matrix for which the error bound is computed at a time, because an fp32 copy of all
# rows would be large.
_ERROR_BOUND_ROWS = 8192


def multiplies_int8() -> bool:
    """Return whether this CPU multiplies int8 by int8 without saturation (VNNI, or AMX)."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


def _uses_int8_product(hidden: Tensor) -> bool:
    """Return whether hidden[R, D] are rounded to int8 for the filter."""
    return hidden.device.type == "cpu" and len(hidden) >= _MIN_INT8_ROWS and multiplies_int8()


class _Int8Product:
    """Approximate logits from int8 weights and hidden states in int8, a scale for each row."""

    # The hidden states are stored without sign: this stands for zero.
    _ZERO = 128

    def __init__(self, int8_weight: Tensor, scale: Tensor) -> None:
        """Copy int8_weight[V, D] into the layout of the kernel; scale[V] is that of its rows."""
        self._packed_weight = torch.ops.onednn.qlinear_prepack(int8_weight, None)
        self._scale = scale.float()
        self._zero_points = torch.zeros(len(scale), dtype=torch.int64)

    def __call__(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits[R, V] of scaled[R, D], numbers within -127 to 127, rounded to integers.

        The second result, [R], is the L2 norm of what the rounding changed.
        """
        rounded = scaled.round()
        logits = torch.ops.onednn.qlinear_pointwise(
            (rounded + self._ZERO).to(torch.uint8),
            1.0,
            self._ZERO,
            self._packed_weight,
            self._scale,
            self._zero_points,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return logits, torch.linalg.vector_norm(scaled - rounded, dim=1)


class Int8ArgmaxFilter:
    """Exact argmax of a linear layer, with int8 weights as a prefilter.

    For int8 weights w' and rounded hidden states x', the error of a logit is by Cauchy-Schwarz at
    most |x| |w - w'| + |x - x'| |w'|. An id whose approximate logit is below the highest one by
    more than twice the largest error cannot be the argmax. Usually fewer than ten ids remain.
    """

    def __init__(self, head: nn.Linear | Int8Linear, unused_ids: Tensor | None = None) -> None:
        """Quantize a plain head to int8, or use the matrix of an int8 head; compute the bound.

        `unused_ids`, int64[n], are never the argmax.
        """
        self._head, self._unused_ids = head, unused_ids
        if isinstance(head, Int8Linear):
            self._int8_weight, self._scale = head.values, head.scale
        else:
            self._int8_weight, self._scale = quantize_rows(head.weight)
        self._weight_error, self._weight_norm = self._error_bounds()
        # The approximate logits are searched in blocks of this size, the largest up to 256 that
        # divides the vocabulary.
        sizes = range(256, 0, -1)
        self._block_size = next(size for size in sizes if len(self._int8_weight) % size == 0)
        # Made on first use: the matrix in another layout.
        self._int8_product: _Int8Product | None = None

    def _error_bounds(self) -> tuple[float, float]:
        """Return the largest |w - w'| of a row, with the error of sums, and the largest |w'|."""
        largest_error, largest_norm = torch.zeros(()), torch.zeros(())
        for start in range(0, len(self._int8_weight), _ERROR_BOUND_ROWS):
            rows = slice(start, start + _ERROR_BOUND_ROWS)
            approximate = dequantize(self._int8_weight[rows], self._scale[rows], torch.float32)
            norms = approximate.norm(dim=1)
            errors = _FP32_SUM_ERROR * norms
            # The weights of an int8 head are not approximate; only hidden states are rounded.
            if not isinstance(self._head, Int8Linear):
                errors += (self._head.weight.detach()[rows] - approximate).norm(dim=1)
            largest_error = torch.maximum(largest_error, errors.max())
            largest_norm = torch.maximum(largest_norm, norms.max())
        return float(largest_error), float(largest_norm)

    def _approximate(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return approximate logits[R, V] of hidden[R, D], in fp32.

        Also returns the largest error in each row, [R]; the unit of both, which the logits have to
        be multiplied by, [R] or a scalar; and how much the logits were rounded afterwards, relative
        to their size.
        """
        norm = torch.linalg.vector_norm(hidden, dim=1)
        if _uses_int8_product(hidden):
            if self._int8_product is None:
                self._int8_product = _Int8Product(self._int8_weight, self._scale)
            # A row of zeros is divided by the smallest number instead of by zero.
            unit = (hidden.abs().amax(1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
            logits, rounding = self._int8_product(hidden / unit[:, None])
            error = norm / unit * self._weight_error + rounding * self._weight_norm
            return logits, error, unit, 0.0
        x = hidden.bfloat16()
        logits = torch._weight_int8pack_mm(x, self._int8_weight, self._scale).float()
        rounding = torch.linalg.vector_norm(hidden - x, dim=1)
        error = norm * self._weight_error + rounding * self._weight_norm
        return logits, error, norm.new_ones(()), _BF16_ROUNDING_ERROR

    def argmax(self, hidden: Tensor, margin: float = 0.0) -> tuple[Tensor, Tensor] | None:
        """Return the argmax of the logits of hidden[R, D], int64[R], and whether it is clear.

        It is clear, bool[R], if all other logits are lower by more than `margin`. Returns None if
        too many candidates pass the filter or the logits are not finite.
        """
        logits, error, unit, rounding = self._approximate(hidden)
        _exclude(logits, self._unused_ids)
        # One pass over all logits finds the maximum of each block; then few blocks are searched.
        blocks = logits.unflatten(1, (-1, self._block_size))
        block_maxima = blocks.amax(2)
        max_logit = block_maxima.amax(1)
        # The exact maximum is at least max_logit - rounding - error. A logit that is lower by
        # `margin` at most has an approximate value of at least
        # max_logit - rounding - 2 * error - margin - rounding.
        threshold = max_logit.sub_(max_logit.abs(), alpha=rounding)
        threshold.sub_(error, alpha=2).sub_(margin / unit)
        # The sum is not finite if any term is not.
        if not math.isfinite(float(threshold.sum())):
            return None
        threshold = threshold.sub_(threshold.abs(), alpha=rounding)[:, None]
        # First the blocks with a candidate, then the candidates inside these blocks.
        block_rows, block_numbers = (block_maxima >= threshold).nonzero(as_tuple=True)
        is_candidate = blocks[block_rows, block_numbers] >= threshold[block_rows]
        candidate_blocks, offsets = is_candidate.nonzero(as_tuple=True)
        rows = block_rows[candidate_blocks]
        ids = offsets.add_(block_numbers[candidate_blocks], alpha=self._block_size)
        if len(ids) == len(hidden):
            # One candidate per row, in the order of rows.
            return ids, torch.ones_like(ids, dtype=torch.bool)
        if len(ids) > _MAX_CANDIDATES_PER_ROW * len(hidden):
            return None
        return self._best_candidates(hidden, rows, ids, margin)

    def _best_candidates(
        self, hidden: Tensor, rows: Tensor, ids: Tensor, margin: float
    ) -> tuple[Tensor, Tensor]:
        """Return the candidate id with the highest exact logit per row, and whether it is clear.

        `hidden` is [R, D], and both results [R]. Candidate i of n is the id ids[i] for row rows[i],
        both int64[n]. Of equal logits the lowest id wins, as in `torch.argmax`.
        """
        logits = torch.linalg.vecdot(self._weight_rows(ids), hidden[rows])
        best_logits = logits.new_full((len(hidden),), -torch.inf)
        best_logits.scatter_reduce_(0, rows, logits, "amax")
        deficits = best_logits[rows] - logits
        is_best = deficits == 0
        # Start above every id, so that the minimum is that of the candidates.
        best_ids = ids.new_full((len(hidden),), len(self._int8_weight))
        best_ids.scatter_reduce_(0, rows[is_best], ids[is_best], "amin")
        num_close = rows[deficits <= margin].bincount(minlength=len(hidden))
        return best_ids, num_close == 1

    def _weight_rows(self, ids: Tensor) -> Tensor:
        """Return the rows of the head's matrix for ids[n], fp32[n, D]."""
        if isinstance(self._head, Int8Linear):
            return dequantize(self._int8_weight[ids], self._scale[ids], torch.float32)
        return self._head.weight[ids]


class LMHead:
    """The LM head of a model, for decoding. Copies of its matrix are made on first use."""

    def __init__(self, linear: nn.Module, unused_ids: Sequence[int] = ()) -> None:
        """`unused_ids` are ids of the vocabulary that stand for no token."""
        self._linear = linear
        self._unused_ids: Tensor | None = None
        if unused_ids:
            # An int8 head has buffers only.
            device = next(chain(linear.parameters(), linear.buffers())).device
            self._unused_ids = torch.tensor(unused_ids, device=device)
        self._transposed_weight: Tensor | None = None
        self._argmax_filter: Int8ArgmaxFilter | None = None

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits[R, V] of hidden[R, D], in fp32."""
        linear = self._linear
        is_cpu_fp32 = hidden.device.type == "cpu" and hidden.dtype == torch.float32
        # LoRA and int8 heads, GPUs and narrower dtypes run the layer itself.
        if not is_cpu_fp32 or not is_plain_linear(linear):
            return _exclude(linear(hidden).float(), self._unused_ids)
        # With a transposed copy, a matmul of few rows reads memory in order.
        if self._transposed_weight is None:
            self._transposed_weight = linear.weight.detach().t().contiguous()
        return _exclude(hidden @ self._transposed_weight, self._unused_ids)

    @torch.no_grad()
    def argmax(self, hidden: Tensor) -> Tensor:
        """Return the ids with the highest logits for hidden[R, D], int64[R]."""
        filtered = self._filter_argmax(hidden, margin=0.0)
        return self.logits(hidden).argmax(-1) if filtered is None else filtered[0]

    @torch.no_grad()
    def clear_argmax(self, hidden: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Return the ids with the highest logits, int64[R], and whether they are clear, bool[R].

        An id is clear if its logit is finite and all others are lower by more than `margin`; one
        that is not may be another than that of `argmax`.
        """
        filtered = self._filter_argmax(hidden, margin)
        return clear_argmax(self.logits(hidden), margin) if filtered is None else filtered

    def _filter_argmax(self, hidden: Tensor, margin: float) -> tuple[Tensor, Tensor] | None:
        """Return `Int8ArgmaxFilter.argmax`, or None if it gives no result or cannot be used."""
        linear: Any = self._linear
        is_filterable = is_plain_linear(linear) or isinstance(linear, Int8Linear)
        # The error bound holds for fp32 hidden states.
        if not is_filterable or hidden.dtype != torch.float32:
            return None
        if not _uses_int8_product(hidden) and not can_use_int8_kernel(hidden):
            return None
        if self._argmax_filter is None:
            self._argmax_filter = Int8ArgmaxFilter(linear, self._unused_ids)
        return self._argmax_filter.argmax(hidden, margin)


def clear_argmax(logits: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the ids of the highest of logits[R, V], int64[R], and whether they are clear, bool[R].

    An id is clear if its logit is finite and all others are lower by more than `margin`.
    """
    values, ids = logits.topk(2)
    is_clear = values[:, 0].isfinite() & (values[:, 0] - values[:, 1] > margin)
    return ids[:, 0], is_clear


def _exclude(logits: Tensor, unused_ids: Tensor | None) -> Tensor:
    """Replace the logits[R, V] of `unused_ids`, int64[n], in place; return the logits."""
    if unused_ids is None:
        return logits
    # Not -inf, because callers take a logit that is not finite for an overflow.
    return logits.index_fill_(1, unused_ids, torch.finfo(logits.dtype).min)
