"""The LM head for decoding: logits of a few positions, or the most likely id alone.

At 43M parameters the head is two thirds of the bytes that are read for a token. On a CPU in fp32
two things make it faster than a plain linear layer:

- For all logits, a transposed copy of the matrix is used, so that the matmul of a few rows reads
  memory in order instead of summing along it.
- For the most likely id, most of the matrix need not be read in fp32. An int8 copy gives
  approximate logits with a bound on their error, which rules out all ids except a few; only their
  logits are computed in fp32. The result is the argmax of the full matmul.

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
# bf16 rounds by at most 2^-8 relative to the exact number, and slightly more relative to the
# rounded one.
_BF16_ROUNDING_ERROR = 2.0**-8 * 1.01
# Both matmuls sum in fp32: D terms with a relative error of 2^-24 each, for D up to some thousands.
_FP32_SUM_ERROR = 1e-4
# Rows of the matrix for which the error bound is computed at a time, because an fp32 copy of all
# rows would be large.
_ERROR_BOUND_ROWS = 8192


class Int8ArgmaxFilter:
    """Exact argmax of a linear layer, with int8 weights as a prefilter.

    For int8 weights w' and activations x' in bf16, the error of a logit is by Cauchy-Schwarz at
    most |x| |w - w'| + |x - x'| |w'|, and the approximate logit is then rounded to bf16. An id
    whose approximate logit is below the highest one by more than twice the largest error cannot be
    the argmax. Usually fewer than ten ids remain.
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
        self._max_error = self._error_bound()
        # The approximate logits are searched in blocks of this size, the largest up to 256 that
        # divides the vocabulary.
        sizes = range(256, 0, -1)
        self._block_size = next(size for size in sizes if len(self._int8_weight) % size == 0)

    def _error_bound(self) -> float:
        """Return the largest error of an approximate logit, as a multiple of the norm of x."""
        bound = torch.zeros(())
        for start in range(0, len(self._int8_weight), _ERROR_BOUND_ROWS):
            rows = slice(start, start + _ERROR_BOUND_ROWS)
            approximate = dequantize(self._int8_weight[rows], self._scale[rows], torch.float32)
            # The weights of an int8 head are not approximate; only activations are rounded.
            weight_error = torch.zeros(())
            if not isinstance(self._head, Int8Linear):
                weight_error = (self._head.weight.detach()[rows] - approximate).norm(dim=1)
            activation_error = _BF16_ROUNDING_ERROR + _FP32_SUM_ERROR
            errors = weight_error + activation_error * approximate.norm(dim=1)
            bound = torch.maximum(bound, errors.max())
        return float(bound)

    def argmax(self, hidden: Tensor, margin: float = 0.0) -> tuple[Tensor, Tensor] | None:
        """Return the argmax of the logits of hidden[R, D], int64[R], and whether it is clear.

        It is clear, bool[R], if all other logits are lower by more than `margin`. Returns None if
        too many candidates pass the filter or the logits are not finite.
        """
        packed_logits = torch._weight_int8pack_mm(hidden.bfloat16(), self._int8_weight, self._scale)
        _exclude(packed_logits, self._unused_ids)
        # One pass over all logits finds the maximum of each block; then few blocks are searched.
        blocks = packed_logits.float().unflatten(1, (-1, self._block_size))
        block_maxima = blocks.amax(2)
        max_logit = block_maxima.amax(1)
        hidden_norm = torch.linalg.vector_norm(hidden, dim=1)
        # The exact maximum is at least max_logit - rounding - error. A logit that is lower by
        # `margin` at most has an approximate value of at least
        # max_logit - rounding - 2 * error - margin - rounding.
        threshold = max_logit.sub_(max_logit.abs(), alpha=_BF16_ROUNDING_ERROR)
        threshold.sub_(hidden_norm, alpha=2 * self._max_error).sub_(margin)
        # The sum is not finite if any term is not.
        if not math.isfinite(float(threshold.sum())):
            return None
        threshold = threshold.sub_(threshold.abs(), alpha=_BF16_ROUNDING_ERROR)[:, None]
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
        if not is_filterable or hidden.dtype != torch.float32 or not can_use_int8_kernel(hidden):
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
