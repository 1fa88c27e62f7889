"""Normalisation and matrix products arranged for few rows, callable as they are or bound to fixed memory.

A bound function takes nothing: where its numbers come from and go to is settled when it is made, which leaves the call of
one kernel. For one row a CPU's library multiplies on one thread, however large the matrix; the matrix is therefore given to
it as a batch of blocks, one for each thread.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.llama import RMSNorm
from model.quantize import Int8Linear, capture_int8_linear, int8_linear, is_plain_linear

Op = Callable[[], object]


class BufferPool:
    """Tensors to work in, made when first asked for: all layers work in the same."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """What goes by this name, shape and type."""
        key = name, tuple(shape), dtype
        if key not in self._buffers:
            self._buffers[key] = torch.empty(shape, dtype=dtype)
        return self._buffers[key]


class InferenceRMSNorm:
    """RMSNorm of x[N, D] in few small operations, in fp32: x is brought to the length 1, and √D is in the weight."""

    def __init__(self, norm: RMSNorm) -> None:
        size = len(norm.weight)
        self.weight = norm.weight.detach().float() * math.sqrt(size)
        # As one more column of x it adds to the square of its length what eps adds to its mean square.
        self.eps_column = math.sqrt(size * norm.eps)
        self._scaled_eps = torch.full((1, 1, 1), size * norm.eps, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.normalize(x) * self.weight).to(x.dtype)

    def normalize(self, x: Tensor) -> Tensor:
        """x[N, D] of length 1, fp32, before the weight is applied."""
        wide = x.float()
        return wide * torch.baddbmm(
            self._scaled_eps, wide.unsqueeze(1), wide.unsqueeze(2)
        ).rsqrt_().squeeze(1)


def capture_row_norms(x: Tensor, out: Tensor) -> Op:
    """A function that puts into `out`[N, 1] that of each row of the `x`[N, D + 1] of then, the norm's floor last."""
    return partial(torch.linalg.vector_norm, x, dim=1, keepdim=True, out=out)


class RMSNormLinear:
    """x[N, D] → several projections of the normalised x side by side, [N, M], in one product.

    `order`[M] rearranges the outputs. The weight of the norm is multiplied into the matrix of plain projections once.
    Projections that are neither plain nor int8, such as adapted ones, are called as they are, and cannot be bound.
    """

    def __init__(
        self, norm: RMSNorm, projections: Sequence[nn.Module], output_order: Tensor | None = None
    ) -> None:
        projection_modules: Any = projections
        self._norm, self._projections, self._output_order = (
            InferenceRMSNorm(norm),
            projections,
            output_order,
        )
        self._transposed_weight: Tensor | None = None
        self._int8_weight: tuple[Tensor, Tensor] | None = None
        if all(map(is_plain_linear, projections)):
            matrix = torch.cat([each.weight.detach() for each in projection_modules])
            matrix = (matrix.float() * self._norm.weight).to(matrix.dtype)
            matrix = matrix if output_order is None else matrix[output_order]
            # Transposed, a product of few rows runs along memory. On a GPU the layout makes no difference.
            self._transposed_weight = (
                matrix.t().contiguous() if matrix.device.type == "cpu" else matrix.t()
            )
        elif all(type(each) is Int8Linear for each in projections):
            values, scale = (
                torch.cat([each.values for each in projection_modules]),
                torch.cat([each.scale for each in projection_modules]),
            )
            self._int8_weight = (
                (values, scale)
                if output_order is None
                else (values[output_order], scale[output_order])
            )
        self.is_capturable = self._transposed_weight is not None or self._int8_weight is not None

    def __call__(self, x: Tensor) -> Tensor:
        if self._transposed_weight is not None:
            return self._norm.normalize(x).to(x.dtype) @ self._transposed_weight
        normalized = self._norm(x)
        if self._int8_weight is not None:
            return int8_linear(normalized, *self._int8_weight)
        out = torch.cat([each(normalized) for each in self._projections], -1)
        return out if self._output_order is None else out[..., self._output_order]

    def capture(self, x: Tensor, buffers: BufferPool) -> tuple[list[Op], Tensor]:
        """Functions that do it with the `x`[N, D + 1] of then (fp32, on a CPU, the norm's floor last); and its place."""
        row_norms = buffers.get("length", (len(x), 1))
        ops, x = [capture_row_norms(x, row_norms)], x[:, :-1]
        normalized = buffers.get("normed", x.shape)
        if self._int8_weight is not None:
            values, scale = self._int8_weight
            out, x_bf16 = (
                buffers.get("out", (len(x), len(values))),
                buffers.get("narrow", x.shape, torch.bfloat16),
            )
            product = capture_int8_linear(x_bf16, values, scale)
            # The rounding to bf16 is relative, so the length of the whole row may as well come last. Types are changed by
            # copies: an operation on two types takes longer than a copy and an operation on one.
            return [
                *ops,
                partial(torch.mul, x, self._norm.weight, out=normalized),
                partial(x_bf16.copy_, normalized),
                lambda: out.copy_(product()),
                partial(out.div_, row_norms),
            ], out
        assert self._transposed_weight is not None, "not bindable"
        out = buffers.get("out", (len(x), self._transposed_weight.shape[1]))
        blocks = _num_blocks(self._transposed_weight, x)
        copies, columns = (
            normalized.expand(blocks, *normalized.shape),
            _split_columns(self._transposed_weight, blocks),
        )
        return [
            *ops,
            partial(torch.div, x, row_norms, out=normalized),
            partial(torch.bmm, copies, columns, out=_split_columns(out, blocks)),
        ], out


class LinearAdd:
    """(x, h) → x[N, M] with a projection of h[N, D] added, in place."""

    def __init__(self, projection: nn.Module) -> None:
        self._projection: Any = projection
        weight: Any = projection.weight
        self._transposed_weight: Tensor | None = (
            weight.detach().t() if is_plain_linear(projection) else None
        )
        self.is_capturable = type(projection) is Int8Linear or self._transposed_weight is not None

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        return (
            x.addmm_(h, self._transposed_weight)
            if self._transposed_weight is not None
            else x.add_(self._projection(h))
        )

    def capture(self, x: Tensor, h: Tensor, buffers: BufferPool) -> list[Op]:
        """Functions that add the projection of the `h` of then to `x` (fp32, on a CPU)."""
        if self._transposed_weight is not None:
            blocks = _num_blocks(self._transposed_weight, h)
            return [
                partial(
                    _split_columns(x, blocks).baddbmm_,
                    h.expand(blocks, *h.shape),
                    _split_columns(self._transposed_weight, blocks),
                )
            ]
        h_bf16, wide = buffers.get("narrow", h.shape, torch.bfloat16), buffers.get("wide", x.shape)
        product = capture_int8_linear(h_bf16, self._projection.values, self._projection.scale)
        return [partial(h_bf16.copy_, h), lambda: wide.copy_(product()), partial(x.add_, wide)]


def _num_blocks(transposed_weight: Tensor, x: Tensor) -> int:
    """Into how many blocks of columns a matrix [D, M] is cut for its product with x[N, D]."""
    threads = torch.get_num_threads()
    return threads if len(x) == 1 and transposed_weight.shape[1] % threads == 0 else 1


def _split_columns(matrix: Tensor, num_blocks: int) -> Tensor:
    """[N, M] → [blocks, N, M / blocks], a view."""
    return matrix.unflatten(1, (num_blocks, -1)).transpose(0, 1)
