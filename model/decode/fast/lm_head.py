"""The vocabulary matrix when decoding: at 43M two thirds of all bytes that are read for a token.

On a CPU, in fp32, two things make it faster than a plain linear layer. For all logits the matrix is kept a second time,
transposed: for few rows the product then runs along memory instead of summing over it. For the likeliest id alone most of
the matrix need not be read in fp32 at all: an int8 copy says, with a bound on its error, which few ids can be the likeliest,
and only those are computed. The answer is that of the full product.
"""

import math
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

# Where more ids than this a row pass the screen, it is no gain.
_MAX_CANDIDATES_PER_ROW = 2048
_BF16_ROUNDING_ERROR = (
    2.0**-8 * 1.01
)  # bf16 is off by 2^-8 at most, relative to the exact number; a little more, to the rounded one
# The sums of either product are taken in fp32: D terms, each step off by 2^-24, D up to some thousands.
_FP32_SUM_ERROR = 1e-4


class Int8ArgmaxFilter:
    """Which ids can be the likeliest, from an int8 copy of the head.

    By Cauchy-Schwarz the error of a logit is at most |x| · |w - w'| from weights w' in int8, and |x - x'| · |w'| from
    activations x' in bf16; the result is rounded to bf16 once more. Whatever lies below the highest logit by more than
    twice the largest error cannot be the likeliest.
    """

    def __init__(self, head: nn.Linear | Int8Linear) -> None:
        self._head = head
        self._values, self._scale = (
            (head.values, head.scale)
            if isinstance(head, Int8Linear)
            else quantize_rows(head.weight)
        )
        max_error = torch.zeros(())
        for start in range(
            0, len(self._values), 8192
        ):  # a part at a time: fp32 copies of all would be large
            rows = slice(start, start + 8192)
            approximate = dequantize(self._values[rows], self._scale[rows], torch.float32)
            weight_error = (
                torch.zeros(())
                if isinstance(head, Int8Linear)
                else (head.weight.detach()[rows] - approximate).norm(dim=1)
            )
            max_error = torch.maximum(
                max_error,
                (
                    weight_error
                    + (_BF16_ROUNDING_ERROR + _FP32_SUM_ERROR) * approximate.norm(dim=1)
                ).max(),
            )
        self._max_error = float(max_error)
        self._block = next(size for size in range(256, 0, -1) if len(self._values) % size == 0)

    def argmax(self, hidden: Tensor) -> Tensor | None:
        """hidden[R, D] → int64[R]; None where the screen lets too many pass (numbers that are not finite: all or none)."""
        approximate_logits = torch._weight_int8pack_mm(
            hidden.bfloat16(), self._values, self._scale
        ).float()
        # All logits are looked at once; which may be the likeliest is searched for in few blocks.
        blocks = approximate_logits.unflatten(1, (-1, self._block))
        block_maxima = blocks.amax(2)
        max_logit, hidden_norm = block_maxima.amax(1), torch.linalg.vector_norm(hidden, dim=1)
        # The likeliest is no less than this; and what may reach it lies no further below than the error and its rounding.
        threshold = max_logit.sub_(max_logit.abs(), alpha=_BF16_ROUNDING_ERROR).sub_(
            hidden_norm, alpha=2 * self._max_error
        )
        if not math.isfinite(float(threshold.sum())):
            return None
        threshold = threshold.sub_(threshold.abs(), alpha=_BF16_ROUNDING_ERROR)[:, None]
        row, block = (block_maxima >= threshold).nonzero(as_tuple=True)
        candidate, offset = (blocks[row, block] >= threshold[row]).nonzero(as_tuple=True)
        rows, ids = row[candidate], offset.add_(block[candidate], alpha=self._block)
        if len(ids) == len(hidden):
            return ids  # one each
        if len(ids) > _MAX_CANDIDATES_PER_ROW * len(hidden):
            return None
        logits = torch.linalg.vecdot(self._weight_rows(ids), hidden[rows])
        best_logits = logits.new_full((len(hidden),), -torch.inf).scatter_reduce_(
            0, rows, logits, "amax"
        )
        is_best = logits == best_logits[rows]
        # Of equal ones the first, as argmax has it.
        answer = ids.new_full((len(hidden),), len(self._values))
        return answer.scatter_reduce_(0, rows[is_best], ids[is_best], "amin")

    def _weight_rows(self, ids: Tensor) -> Tensor:
        if isinstance(self._head, Int8Linear):
            return dequantize(self._values[ids], self._scale[ids], torch.float32)
        return self._head.weight[ids]


class LMHead:
    """A model's head for a few positions at a time; what it keeps besides is made when first used."""

    def __init__(self, linear: nn.Module) -> None:
        self._linear = linear
        self._transposed_weight: Tensor | None = None
        self._argmax_filter: Int8ArgmaxFilter | None = None

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden[R, D] → logits[R, V], fp32."""
        if (
            not is_plain_linear(self._linear)
            or hidden.device.type != "cpu"
            or hidden.dtype != torch.float32
        ):
            return self._linear(hidden).float()
        if self._transposed_weight is None:
            weight: Any = self._linear.weight
            self._transposed_weight = weight.detach().t().contiguous()
        return hidden @ self._transposed_weight

    @torch.no_grad()
    def argmax(self, hidden: Tensor) -> Tensor:
        """hidden[R, D] → the ids with the highest logits, int64[R]."""
        head = self._linear
        if (
            can_use_int8_kernel(hidden)
            and hidden.dtype == torch.float32
            and (is_plain_linear(head) or isinstance(head, Int8Linear))
        ):
            self._argmax_filter = self._argmax_filter or Int8ArgmaxFilter(head)
            ids = self._argmax_filter.argmax(hidden)
            if ids is not None:
                return ids
        return self.logits(hidden).argmax(-1)
