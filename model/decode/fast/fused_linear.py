"""Fused linear layers of the fast path: RMSNorm + linear, linear + residual.

Each layer can be called, or prepared for a buffer of inputs: `prepare()` returns callables without
arguments over preallocated buffers. Each of them launches one kernel and allocates nothing.

Matrices are passed to the CPU's matrix library as a batch of column blocks, for two reasons. For a
single row of inputs it uses one thread, however large the matrix, but the matrices of a batch are
multiplied on all. And a few rows are multiplied by narrow blocks faster than by a wide matrix,
whose columns are far apart in memory.

Shapes: N rows, D inputs, M outputs. In prepared layers `x` has an additional last column, the
constant `InferenceRMSNorm.eps_column`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.decode.free_processors import most_threads
from model.llama import RMSNorm
from model.quantize import (
    int8_linear,
    is_plain_int8_linear,
    is_plain_linear,
    prepare_int8_linear,
)

# Columns of a block of a wide matrix: at most, and at least if there is a block for each thread.
_MAX_BLOCK_WIDTH = 384
_MIN_BLOCK_WIDTH = 64

# A prepared operation: reads and writes buffers that were fixed when it was prepared.
Op = Callable[[], object]


class BufferPool:
    """Work buffers by name, shape and dtype, allocated on first use and shared by all layers."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the buffer of this name, shape and dtype; its contents are undefined."""
        key = name, tuple(shape), dtype
        if key not in self._buffers:
            self._buffers[key] = torch.empty(shape, dtype=dtype)
        return self._buffers[key]


class InferenceRMSNorm:
    """RMSNorm of x[N, D] as a division by the row's L2 norm, in fp32.

    x / sqrt(mean(x^2) + eps) * w  =  x / sqrt(sum(x^2) + D * eps) * (sqrt(D) * w), so sqrt(D) is
    multiplied into `weight` once. If x has an additional column sqrt(D * eps), `eps_column`, the L2
    norm of the row is the whole denominator, which one kernel computes.
    """

    def __init__(self, norm: RMSNorm) -> None:
        size = len(norm.weight)
        self.weight = norm.weight.detach().float() * math.sqrt(size)
        self.eps_column = math.sqrt(size * norm.eps)
        self._scaled_eps = torch.full((1, 1, 1), size * norm.eps, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the RMSNorm of x[N, D], in the dtype of `x`."""
        return (self.normalize(x) * self.weight).to(x.dtype)

    def normalize(self, x: Tensor) -> Tensor:
        """Return x[N, D] divided by its denominator, in fp32, before the weight is applied."""
        x_fp32 = x.float()
        # The dot product of each row with itself, plus D * eps: one kernel instead of three.
        sums = torch.baddbmm(self._scaled_eps, x_fp32.unsqueeze(1), x_fp32.unsqueeze(2))
        return x_fp32 * sums.rsqrt_().squeeze(1)


def prepare_row_norms(x: Tensor, out: Tensor) -> Op:
    """Return an op that writes the L2 norm of every row of x[N, D + 1] into out[N, 1]."""
    return partial(torch.linalg.vector_norm, x, dim=1, keepdim=True, out=out)


class RMSNormLinear:
    """RMSNorm of x[N, D], then several linear layers ("projections") in one matmul -> [N, M].

    M is the sum of their outputs; `output_order`[M] permutes it: output i is that of row
    output_order[i] of their matrices. The norm's weight is multiplied into the matrix of plain
    linear layers once. Other layers, with an adapter or a bias, are called one by one; then
    `can_prepare` is False.
    """

    def __init__(
        self, norm: RMSNorm, projections: Sequence[nn.Module], output_order: Tensor | None = None
    ) -> None:
        modules: Any = projections
        self._norm = InferenceRMSNorm(norm)
        self._projections = projections
        self._output_order = output_order
        order = slice(None) if output_order is None else output_order
        # Column blocks of the transposed matrix, [num_blocks, D, M / num_blocks].
        self._weight_blocks: Tensor | None = None
        self._int8_weight: tuple[Tensor, Tensor] | None = None
        if all(map(is_plain_linear, projections)):
            matrix = torch.cat([module.weight.detach() for module in modules])
            matrix = (matrix.float() * self._norm.weight).to(matrix.dtype)[order].t()
            # With transposed copies, a matmul of few rows reads memory in order. On a GPU the
            # layout makes no difference to the speed, so nothing is copied.
            if matrix.device.type == "cpu":
                # In bf16 and fp16 another library multiplies.
                num_blocks = _num_wide_blocks(matrix) if matrix.dtype == torch.float32 else 1
                self._weight_blocks = _split_columns(matrix, num_blocks).contiguous()
            else:
                self._weight_blocks = matrix[None]
        elif all(map(is_plain_int8_linear, projections)):
            values = torch.cat([module.values for module in modules])
            scale = torch.cat([module.scale for module in modules])
            self._int8_weight = values[order], scale[order]
        self.can_prepare = self._weight_blocks is not None or self._int8_weight is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs [N, M] of x[N, D], in the dtype of `x`."""
        # This matrix includes the weight of the norm.
        if self._weight_blocks is not None:
            return _multiply_blocks(self._norm.normalize(x).to(x.dtype), self._weight_blocks)
        normalized = self._norm(x)
        if self._int8_weight is not None:
            return int8_linear(normalized, *self._int8_weight)
        # Layers with an adapter or a bias.
        out = torch.cat([project(normalized) for project in self._projections], -1)
        return out if self._output_order is None else out[..., self._output_order]

    def prepare(self, x: Tensor, buffers: BufferPool) -> tuple[list[Op], Tensor]:
        """Return (ops, out): operations that read `x` when called, and the buffer they write.

        `x` is fp32[N, D + 1] on a CPU; its last column is `InferenceRMSNorm.eps_column`, which
        makes the L2 norm of a row the denominator of RMSNorm. `out` is fp32[N, M].
        """
        row_norms = buffers.get("row_norms", (len(x), 1))
        norm_op = prepare_row_norms(x, row_norms)
        x = x[:, :-1]
        normalized = buffers.get("normalized", x.shape)
        if self._int8_weight is not None:
            values, scale = self._int8_weight
            out = buffers.get("out", (len(x), len(values)))
            x_bf16 = buffers.get("x_bf16", x.shape, torch.bfloat16)
            int8_matmul = prepare_int8_linear(x_bf16, values, scale)
            # The weight of the norm is not part of the int8 matrix. The division by the row's norm
            # comes last; bf16 rounds relative to the size of a number, so the order does not change
            # the accuracy. Dtypes are converted by separate copies: an operation with operands of
            # two dtypes takes longer than a copy and an operation on one dtype together.
            return [
                norm_op,
                partial(torch.mul, x, self._norm.weight, out=normalized),
                partial(x_bf16.copy_, normalized),
                lambda: out.copy_(int8_matmul()),
                partial(out.div_, row_norms),
            ], out
        assert self._weight_blocks is not None, "only plain and int8 projections are prepared"
        # This matrix includes the weight of the norm.
        num_blocks, _, width = self._weight_blocks.shape
        out = buffers.get("out", (len(x), num_blocks * width))
        repeated = normalized.expand(num_blocks, *normalized.shape)
        return [
            norm_op,
            partial(torch.div, x, row_norms, out=normalized),
            partial(torch.bmm, repeated, self._weight_blocks, out=_split_columns(out, num_blocks)),
        ], out


class LinearAdd:
    """A linear layer of h[N, D] and its residual connection: the output is added to x[N, M].

    Plain and int8 layers can be prepared. Others, with an adapter or a bias, are only called; then
    `can_prepare` is False.
    """

    def __init__(self, projection: nn.Module) -> None:
        self._projection: Any = projection
        self._transposed_weight: Tensor | None = None
        if is_plain_linear(projection):
            # A view of the weight, [D, M], for addmm and baddbmm.
            self._transposed_weight = projection.weight.detach().t()
        # Made on first use.
        self._transposed_copy: Tensor | None = None
        self.can_prepare = is_plain_int8_linear(projection) or self._transposed_weight is not None

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        """Add the output for h[N, D] to x[N, M] in place; return `x`."""
        if self._transposed_weight is not None:
            return x.addmm_(h, self._transposed_weight)
        return x.add_(self._projection(h))

    def prepare(self, x: Tensor, h: Tensor, buffers: BufferPool) -> list[Op]:
        """Return operations that add the output for the contents of h[N, D] to x[N, M].

        Both are fp32 buffers on a CPU, which the operations read when they are called.
        """
        weight = self._transposed_weight
        if weight is not None:
            if len(h) > 1:
                # Several rows are multiplied faster by a transposed copy, one row is not.
                if self._transposed_copy is None:
                    self._transposed_copy = weight.contiguous()
                weight = self._transposed_copy
            num_blocks = _num_blocks(weight, h)
            repeated = h.expand(num_blocks, *h.shape)
            weight_blocks = _split_columns(weight, num_blocks)
            return [partial(_split_columns(x, num_blocks).baddbmm_, repeated, weight_blocks)]
        h_bf16 = buffers.get("x_bf16", h.shape, torch.bfloat16)
        projected = buffers.get("projected", x.shape)
        int8_matmul = prepare_int8_linear(h_bf16, self._projection.values, self._projection.scale)
        return [
            partial(h_bf16.copy_, h),
            lambda: projected.copy_(int8_matmul()),
            partial(x.add_, projected),
        ]


def _num_wide_blocks(transposed_weight: Tensor) -> int:
    """Return the number of column blocks in which a matrix [D, M] on a CPU is stored.

    They have the same width, and there is at least one for each thread.
    """
    num_columns = transposed_weight.shape[1]
    for num_blocks in range(most_threads(), num_columns // _MIN_BLOCK_WIDTH + 1):
        if num_columns % num_blocks == 0 and num_columns // num_blocks <= _MAX_BLOCK_WIDTH:
            return num_blocks
    return 1


def _multiply_blocks(x: Tensor, weight_blocks: Tensor) -> Tensor:
    """Return the product of x[N, D] and a matrix in column blocks [num_blocks, D, width]."""
    num_blocks, _, width = weight_blocks.shape
    if num_blocks == 1:
        return x @ weight_blocks[0]
    out = x.new_empty(len(x), num_blocks * width)
    torch.bmm(x.expand(num_blocks, *x.shape), weight_blocks, out=_split_columns(out, num_blocks))
    return out


def _num_blocks(transposed_weight: Tensor, x: Tensor) -> int:
    """Return the number of column blocks of a matrix [D, M] for its matmul with x[N, D].

    A single row is multiplied in one block per thread, if M is a multiple of the number of threads.
    For more rows the library uses all threads by itself, with one block.
    """
    num_threads = most_threads()
    is_divisible = transposed_weight.shape[1] % num_threads == 0
    return num_threads if len(x) == 1 and is_divisible else 1


def _split_columns(matrix: Tensor, num_blocks: int) -> Tensor:
    """Return a view of [N, M] as [num_blocks, N, M / num_blocks]."""
    return matrix.unflatten(1, (num_blocks, -1)).transpose(0, 1)
