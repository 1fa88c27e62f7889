"""The LM head and its cross-entropy in bf16, for CPUs that multiply bf16.

Where products cost next to nothing the head is bound by its logits: in bf16 those of 4,096
positions and 65,000 ids are 0.5 GB, and each pass over them in fp32 moves 1 GB. Therefore no logits
are written at all. oneDNN applies a sigmoid to the sums of a product before it rounds and stores
them, and far below zero sigmoid(z) is exp(z), up to a factor of 1 + exp(z). One product writes

    E = sigmoid(logit - logit of the target - SHIFT) = exp(logit - logit of the target) * 2^-50

With the target's logit in the place of the largest one, nothing has to be known about a position
beforehand: bf16 has the range of fp32. The sum over the vocabulary is exp(loss) * 2^-50, and E
divided by it is the softmax, so the gradients are products of E with the head and with the hidden
states, in which rows of D numbers are divided instead of rows of V. The E of the target itself is
left out of these products and added in fp32: a rounded probability near one would lose the gradient
of a target that the model predicts well.

E is made in tiles that fit into the L2 cache, where the product for the gradient of the hidden
states finds them. Rows of ones below the transposed head make the sums over the vocabulary a part
of that product, because a pass of their own takes as long as half of it. The tiles of a chunk of
positions are kept for the gradient of the head, which needs the sums over the whole vocabulary.

Shapes: N positions with a loss, n positions of a chunk, D hidden size, V vocabulary, v ids of a
tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.precision import multiplies_bf16

# Positions of a chunk and ids of a tile: a tile has 1 MB, half of the L2 cache of a server's core.
CHUNK_SIZE = 1024
TILE_SIZE = 512
# Rows of ones below a transposed tile of the head: one would do, but a product of fewer rows is not
# faster.
SUM_ROWS = 8
# For z < -10 sigmoid(z) is exp(z) within 5e-5, a hundredth of the rounding of bf16, and bf16 holds
# it for z > -87. So this shift covers ids from 52 nats below to 24 above the target.
SHIFT_BITS = 50
SHIFT = SHIFT_BITS * math.log(2)
UNIT = 2.0**-SHIFT_BITS
# With a larger loss than this, in nats, the largest logit takes the place of the target's.
MAX_LOSS = 24.0
# Positions whose logits exist at once where the most likely ids are wanted.
ARGMAX_SIZE = 128


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this module computes heads in `dtype` on the device."""
    return device.type == "cpu" and dtype == torch.bfloat16 and multiplies_bf16(device)


class BF16CrossEntropy(torch.autograd.Function):
    """The sum of the losses times `scale`; forward computes the gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float,
        narrow_weight: Tensor,
        num_correct: Tensor | None,
    ) -> Tensor:
        """Return fp32 of hidden[N, D], weight[V, D], targets[N]; `narrow_weight` is bf16[V, D]."""
        d_hidden = torch.empty_like(hidden)
        has_d_weight = ctx.needs_input_grad[1]
        d_weight = torch.empty_like(weight) if has_d_weight else None
        loss = torch.zeros(())
        transposed = _transpose(narrow_weight)
        chunks = [tensor.split(CHUNK_SIZE) for tensor in (hidden, targets, d_hidden)]
        for index, (x, target, d_x) in enumerate(zip(*chunks, strict=True)):
            x = x.bfloat16()
            if num_correct is not None:
                num_correct += _count_correct(x, narrow_weight, target)
            chunk = _exponentiate(x, narrow_weight, transposed, target, keeps_tiles=has_d_weight)
            loss += chunk.losses.sum()
            factor = torch.full_like(chunk.losses, scale)
            d_x.copy_(chunk.gradient(factor))
            if d_weight is not None:
                chunk.add_weight_gradient(d_weight, factor, is_first=index == 0)
        if d_weight is not None and not len(hidden):
            d_weight.zero_()
        ctx.save_for_backward(d_hidden, d_weight)
        return loss * scale

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        (d_loss,) = gradients
        # It is usually one, and skipping the multiplication saves writing V * D numbers.
        if d_loss.item() != 1.0:
            d_hidden = d_hidden * d_loss
            d_weight = None if d_weight is None else d_weight * d_loss
        return d_hidden, d_weight, None, None, None, None


class BF16LogProbs(torch.autograd.Function):
    """The log-probability of each target; backward, which knows their gradients, makes E again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, narrow_weight: Tensor
    ) -> Tensor:
        """Return fp32[N]; the arguments are those of `BF16CrossEntropy`."""
        ctx.save_for_backward(hidden, weight, targets, narrow_weight)
        ones = [tile.new_ones(SUM_ROWS, len(tile)) for tile in narrow_weight.split(TILE_SIZE)]
        losses = [
            _exponentiate(x.bfloat16(), narrow_weight, ones, target, keeps_tiles=False).losses
            for x, target in zip(hidden.split(CHUNK_SIZE), targets.split(CHUNK_SIZE), strict=True)
        ]
        return -torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, targets, narrow_weight = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        has_d_weight = ctx.needs_input_grad[1]
        d_weight = torch.empty_like(weight) if has_d_weight else None
        # The gradient of a loss, which is a negative log-probability.
        factors = -gradients[0]
        transposed = _transpose(narrow_weight)
        chunks = [tensor.split(CHUNK_SIZE) for tensor in (hidden, targets, d_hidden, factors)]
        for index, (x, target, d_x, factor) in enumerate(zip(*chunks, strict=True)):
            chunk = _exponentiate(
                x.bfloat16(), narrow_weight, transposed, target, keeps_tiles=has_d_weight
            )
            d_x.copy_(chunk.gradient(factor))
            if d_weight is not None:
                chunk.add_weight_gradient(d_weight, factor, is_first=index == 0)
        return d_hidden, d_weight, None, None


@dataclass
class _Chunk:
    """What the gradients of a chunk of positions need."""

    x: Tensor  # hidden states, bf16[n, D]
    targets: Tensor
    target_weights: Tensor  # their rows of the head, bf16[n, D]
    losses: Tensor  # fp32[n]
    sums: Tensor  # of E over the vocabulary, divided by UNIT, fp32[n]
    others: Tensor  # 1 - probability of the target, fp32[n]
    weighted: Tensor  # the sum of E times the rows of the head, transposed, fp32[D, n]
    tiles: list[Tensor]  # E without the targets, transposed, bf16[v, n]

    def gradient(self, factor: Tensor) -> Tensor:
        """Return the gradient of the sum of `factor`[n] times the losses by `x`, fp32[n, D]."""
        row_factor = (factor / (self.sums * UNIT)).unsqueeze(1)
        target_factor = (factor * self.others).unsqueeze(1)
        return self.weighted.T * row_factor - self.target_weights.float() * target_factor

    def add_weight_gradient(self, d_weight: Tensor, factor: Tensor, *, is_first: bool) -> None:
        """Add the gradient by the head to d_weight[V, D]; if `is_first`, overwrite it."""
        wide = self.x.float()
        scaled_x = (wide * (factor / (self.sums * UNIT)).unsqueeze(1)).bfloat16()
        for rows, tile in zip(d_weight.split(TILE_SIZE), self.tiles, strict=True):
            product = tile @ scaled_x
            if is_first:
                rows.copy_(product)
            else:
                rows.add_(product)
        d_weight.index_add_(0, self.targets, wide * -(factor * self.others).unsqueeze(1))


def _transpose(weight: Tensor) -> list[Tensor]:
    """Return the tiles of weight[V, D], transposed, with rows of ones below: [D + SUM_ROWS, v]."""
    transposed = []
    for tile_weight in weight.split(TILE_SIZE):
        size, width = tile_weight.shape
        tile = weight.new_ones(width + SUM_ROWS, size)
        tile[:width] = tile_weight.T
        transposed.append(tile)
    return transposed


def _exponentiate(
    x: Tensor, weight: Tensor, transposed: list[Tensor], targets: Tensor, *, keeps_tiles: bool
) -> _Chunk:
    """Return the losses of bf16 x[n, D], weight[V, D], and what their gradients need.

    `transposed` is the result of `_transpose`, or its rows of ones alone: then the gradient of `x`
    cannot be computed.
    """
    target_weights = weight[targets]
    target_logits = (x.float() * target_weights.float()).sum(-1)
    chunk = _sweep(x, weight, transposed, targets, target_logits, target_logits, keeps_tiles)
    # A sigmoid is at most one, so the loss of such a row is finite, and too small. Only a broken
    # model has any.
    if bool((chunk.losses > MAX_LOSS).any()):
        largest = torch.stack([(x @ tile.T).amax(-1) for tile in weight.split(TILE_SIZE)]).amax(0)
        reference = torch.maximum(target_logits, largest.float())
        chunk = _sweep(x, weight, transposed, targets, target_logits, reference, keeps_tiles)
    return chunk


def _sweep(
    x: Tensor,
    weight: Tensor,
    transposed: list[Tensor],
    targets: Tensor,
    target_logits: Tensor,
    reference: Tensor,
    keeps_tiles: bool,
) -> _Chunk:
    """Make the tiles of a chunk with `reference`[n] in the place of the largest logits."""
    products = torch.zeros(len(transposed[0]), len(x))
    tiles = []
    for tile_weight, tile in zip(transposed, _tiles(x, weight, targets, reference), strict=True):
        products += tile_weight @ tile
        if keeps_tiles:
            tiles.append(tile)
    weighted, sums = products[:-SUM_ROWS], products[-1]
    # The exponential of the target itself, which is one unless `reference` is another logit.
    own = (target_logits - reference).exp()
    others = sums / UNIT
    sums = others + own
    losses = sums.log() - (target_logits - reference)
    return _Chunk(x, targets, weight[targets], losses, sums, others / sums, weighted, tiles)


def _tiles(x: Tensor, weight: Tensor, targets: Tensor, reference: Tensor) -> Iterator[Tensor]:
    """Yield the E of each tile, transposed, bf16[v, n], zero at the targets."""
    bias = -(reference + SHIFT)
    sorted_targets, order = targets.sort()
    starts = torch.arange(0, len(weight) + TILE_SIZE, TILE_SIZE)
    bounds = torch.searchsorted(sorted_targets, starts).tolist()
    for index, tile_weight in enumerate(weight.split(TILE_SIZE)):
        # A linear layer whose inputs are rows of the head, so that the bias, which is added in
        # fp32, is one number per position.
        tile = torch.ops.mkldnn._linear_pointwise(tile_weight, x, bias, "sigmoid", [], "")
        inside = slice(bounds[index], bounds[index + 1])
        if inside.start < inside.stop:
            tile[sorted_targets[inside] - index * TILE_SIZE, order[inside]] = 0.0
        yield tile


def _count_correct(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return how many of targets[n] are the most likely id."""
    parts = zip(x.split(ARGMAX_SIZE), targets.split(ARGMAX_SIZE), strict=True)
    return sum(
        (((part @ weight.T).argmax(-1) == target).sum() for part, target in parts),
        start=torch.zeros((), dtype=torch.int64),
    )
