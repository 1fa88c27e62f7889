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
from model.quantize import Int8Linear, bind_int8_product, int8_product, is_plain

Bound = Callable[[], object]


class Memory:
    """Tensors to work in, made when first asked for: all layers work in the same."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """What goes by this name, shape and type."""
        key = name, tuple(shape), dtype
        if key not in self._held:
            self._held[key] = torch.empty(shape, dtype=dtype)
        return self._held[key]


class Norm:
    """RMSNorm of x[N, D] in few small operations, in fp32: x is brought to the length 1, and √D is in the weight."""

    def __init__(self, norm: RMSNorm) -> None:
        size = len(norm.weight)
        self.weight = norm.weight.detach().float() * math.sqrt(size)
        # As one more column of x it adds to the square of its length what eps adds to its mean square.
        self.floor = math.sqrt(size * norm.eps)
        self._eps = torch.full((1, 1, 1), size * norm.eps, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.unit(x) * self.weight).to(x.dtype)

    def unit(self, x: Tensor) -> Tensor:
        """x[N, D] of length 1, fp32, before the weight is applied."""
        wide = x.float()
        return wide * torch.baddbmm(self._eps, wide.unsqueeze(1), wide.unsqueeze(2)).rsqrt_().squeeze(1)


def bind_length(x: Tensor, length: Tensor) -> Bound:
    """A function that puts into `length`[N, 1] that of each row of the `x`[N, D + 1] of then, the norm's floor last."""
    return partial(torch.linalg.vector_norm, x, dim=1, keepdim=True, out=length)


class NormedProduct:
    """x[N, D] → several projections of the normalised x side by side, [N, M], in one product.

    `order`[M] rearranges the outputs. The weight of the norm is multiplied into the matrix of plain projections once.
    Projections that are neither plain nor int8, such as adapted ones, are called as they are, and cannot be bound.
    """

    def __init__(self, norm: RMSNorm, projections: Sequence[nn.Module], order: Tensor | None = None) -> None:
        parts: Any = projections
        self._norm, self._projections, self._order = Norm(norm), projections, order
        self._columns: Tensor | None = None
        self._int8: tuple[Tensor, Tensor] | None = None
        if all(map(is_plain, projections)):
            matrix = torch.cat([each.weight.detach() for each in parts])
            matrix = (matrix.float() * self._norm.weight).to(matrix.dtype)
            matrix = matrix if order is None else matrix[order]
            # Transposed, a product of few rows runs along memory. On a GPU the layout makes no difference.
            self._columns = matrix.t().contiguous() if matrix.device.type == "cpu" else matrix.t()
        elif all(type(each) is Int8Linear for each in projections):
            values, scale = torch.cat([each.values for each in parts]), torch.cat([each.scale for each in parts])
            self._int8 = (values, scale) if order is None else (values[order], scale[order])
        self.bindable = self._columns is not None or self._int8 is not None

    def __call__(self, x: Tensor) -> Tensor:
        if self._columns is not None:
            return self._norm.unit(x).to(x.dtype) @ self._columns
        normed = self._norm(x)
        if self._int8 is not None:
            return int8_product(normed, *self._int8)
        out = torch.cat([each(normed) for each in self._projections], -1)
        return out if self._order is None else out[..., self._order]

    def bind(self, x: Tensor, memory: Memory) -> tuple[list[Bound], Tensor]:
        """Functions that do it with the `x`[N, D + 1] of then (fp32, on a CPU, the norm's floor last); and its place."""
        length = memory.take("length", (len(x), 1))
        todo, x = [bind_length(x, length)], x[:, :-1]
        normed = memory.take("normed", x.shape)
        if self._int8 is not None:
            values, steps = self._int8
            out, narrow = memory.take("out", (len(x), len(values))), memory.take("narrow", x.shape, torch.bfloat16)
            product = bind_int8_product(narrow, values, steps)
            # The rounding to bf16 is relative, so the length of the whole row may as well come last. Types are changed by
            # copies: an operation on two types takes longer than a copy and an operation on one.
            return [*todo, partial(torch.mul, x, self._norm.weight, out=normed), partial(narrow.copy_, normed),
                    lambda: out.copy_(product()), partial(out.div_, length)], out
        assert self._columns is not None, "not bindable"
        out = memory.take("out", (len(x), self._columns.shape[1]))
        blocks = _blocks(self._columns, x)
        copies, columns = normed.expand(blocks, *normed.shape), _cut(self._columns, blocks)
        return [*todo, partial(torch.div, x, length, out=normed),
                partial(torch.bmm, copies, columns, out=_cut(out, blocks))], out


class AddedProduct:
    """(x, h) → x[N, M] with a projection of h[N, D] added, in place."""

    def __init__(self, projection: nn.Module) -> None:
        self._projection: Any = projection
        weight: Any = projection.weight
        self._columns: Tensor | None = weight.detach().t() if is_plain(projection) else None
        self.bindable = type(projection) is Int8Linear or self._columns is not None

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        return x.addmm_(h, self._columns) if self._columns is not None else x.add_(self._projection(h))

    def bind(self, x: Tensor, h: Tensor, memory: Memory) -> list[Bound]:
        """Functions that add the projection of the `h` of then to `x` (fp32, on a CPU)."""
        if self._columns is not None:
            blocks = _blocks(self._columns, h)
            return [partial(_cut(x, blocks).baddbmm_, h.expand(blocks, *h.shape), _cut(self._columns, blocks))]
        narrow, wide = memory.take("narrow", h.shape, torch.bfloat16), memory.take("wide", x.shape)
        product = bind_int8_product(narrow, self._projection.values, self._projection.scale)
        return [partial(narrow.copy_, h), lambda: wide.copy_(product()), partial(x.add_, wide)]


def _blocks(columns: Tensor, x: Tensor) -> int:
    """Into how many blocks of columns a matrix [D, M] is cut for its product with x[N, D]."""
    threads = torch.get_num_threads()
    return threads if len(x) == 1 and columns.shape[1] % threads == 0 else 1


def _cut(matrix: Tensor, blocks: int) -> Tensor:
    """[N, M] → [blocks, N, M / blocks], a view."""
    return matrix.unflatten(1, (blocks, -1)).transpose(0, 1)
