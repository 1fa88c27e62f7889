"""Normalisation and matrix products arranged for few rows, callable as they are or bound to fixed memory.

A bound function takes nothing: where its numbers come from and go to is settled when it is made, which leaves the call of
one kernel. For one row a CPU's library multiplies on one thread, however large the matrix; the matrix is therefore given to
it as a batch of blocks, one for each thread.
"""

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
    """RMSNorm of x[N, D] in few small operations; the mean square is a product of each row with itself, in fp32."""

    def __init__(self, norm: RMSNorm) -> None:
        self.weight = norm.weight.detach()
        self._eps = torch.full((1, 1, 1), norm.eps, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        return self.scaled(x).mul_(self.weight)

    def scaled(self, x: Tensor) -> Tensor:
        """x[N, D] normalised, before the weight is applied."""
        wide = x.float()
        scale = torch.baddbmm(self._eps, wide.unsqueeze(1), wide.unsqueeze(2), alpha=1 / x.shape[1]).rsqrt_()
        return (wide * scale.squeeze(1)).to(x.dtype)

    def bind_scale(self, x: Tensor, scale: Tensor) -> list[Bound]:
        """Functions that put into `scale`[N, 1] what normalises the `x`[N, D] of then, in fp32."""
        wide = scale.unsqueeze(2)
        return [partial(torch.baddbmm, self._eps, x.unsqueeze(1), x.unsqueeze(2), alpha=1 / x.shape[1], out=wide), wide.rsqrt_]


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
            matrix = torch.cat([each.weight.detach() for each in parts]) * self._norm.weight
            matrix = matrix if order is None else matrix[order]
            # Transposed, a product of few rows runs along memory. On a GPU the layout makes no difference.
            self._columns = matrix.t().contiguous() if matrix.device.type == "cpu" else matrix.t()
        elif all(type(each) is Int8Linear for each in projections):
            values, scale = torch.cat([each.values for each in parts]), torch.cat([each.scale for each in parts])
            self._int8 = (values, scale) if order is None else (values[order], scale[order])
        self.bindable = self._columns is not None or self._int8 is not None

    def __call__(self, x: Tensor) -> Tensor:
        if self._columns is not None:
            return self._norm.scaled(x) @ self._columns
        normed = self._norm(x)
        if self._int8 is not None:
            return int8_product(normed, *self._int8)
        out = torch.cat([each(normed) for each in self._projections], -1)
        return out if self._order is None else out[..., self._order]

    def bind(self, x: Tensor, memory: Memory) -> tuple[list[Bound], Tensor]:
        """Functions that do it with the `x`[N, D] (fp32, on a CPU) of then, and where they put the result."""
        scale = memory.take("scale", (len(x), 1))
        todo = self._norm.bind_scale(x, scale)
        if self._int8 is not None:
            values, steps = self._int8
            out = memory.take("out", (len(x), len(values)))
            narrow = memory.take("narrow", x.shape, torch.bfloat16)
            product = bind_int8_product(narrow, values, steps)
            # The rounding to bf16 is relative, so the scale of the whole row may as well come last.
            return [*todo, partial(torch.mul, x, self._norm.weight, out=narrow),
                    lambda: torch.mul(product(), scale, out=out)], out
        assert self._columns is not None, "not bindable"
        out, normed = memory.take("out", (len(x), self._columns.shape[1])), memory.take("normed", x.shape)
        blocks = _blocks(self._columns, x)
        return [*todo, partial(torch.mul, x, scale, out=normed),
                partial(torch.bmm, normed.expand(blocks, *x.shape), _cut(self._columns, blocks), out=_cut(out, blocks))], out


class AddedProduct:
    """(x, h) → x[N, M] with a projection of h[N, D] added, in place."""

    def __init__(self, projection: nn.Module) -> None:
        self._projection: Any = projection
        weight: Any = projection.weight
        self._columns: Tensor | None = weight.detach().t() if is_plain(projection) else None
        int8 = type(projection) is Int8Linear
        self.bindable = int8 or self._columns is not None
        # What a bound product reads must have this type.
        self.input = torch.bfloat16 if int8 else torch.float32

    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        return x.addmm_(h, self._columns) if self._columns is not None else x.add_(self._projection(h))

    def bind(self, x: Tensor, h: Tensor) -> Bound:
        """A function that adds the projection of the `h` of then to `x` (fp32, on a CPU)."""
        if self._columns is not None:
            blocks = _blocks(self._columns, h)
            return partial(_cut(x, blocks).baddbmm_, h.expand(blocks, *h.shape), _cut(self._columns, blocks))
        product = bind_int8_product(h, self._projection.values, self._projection.scale)
        return lambda: x.add_(product())


def _blocks(columns: Tensor, x: Tensor) -> int:
    """Into how many blocks of columns a matrix [D, M] is cut for its product with x[N, D]."""
    threads = torch.get_num_threads()
    return threads if len(x) == 1 and columns.shape[1] % threads == 0 else 1


def _cut(matrix: Tensor, blocks: int) -> Tensor:
    """[N, M] → [blocks, N, M / blocks], a view."""
    return matrix.unflatten(1, (blocks, -1)).transpose(0, 1)
