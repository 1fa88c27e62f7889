"""Fused LM head and cross-entropy: the loss without the logits of a whole batch.

With a vocabulary of 65,000 and 256 dimensions the head is most of a small model's arithmetic, and
the logits of one batch would be most of its memory. Three implementations compute the same sum:

    full      computes the logits of all positions at once: the plain formula, the reference of the
              tests, and the fastest for few positions or a small vocabulary. Not for fp16, in which
              autograd's gradients underflow and overflow
    chunked   computes the logits of a few hundred positions at a time, and their gradients in the
              forward pass, while these logits exist
    torch     calls `F.linear_cross_entropy` (torch >= 2.13) with a fixed chunk, because its
              automatic options are far slower on a CPU. For fp32 only: with narrower inputs it
              returns the sum in their dtype, too, which rounds it

Shapes: N positions with a loss, n positions of a chunk, D hidden size, V vocabulary.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.bf16_loss import BF16CrossEntropy, BF16LogProbs, can_fuse

LossPath = Literal["full", "chunked", "torch"]

# Below this probability fp32 loses digits of the loss, so it is computed from the logits again.
_MIN_PROBABILITY = 1e-30
# Gradients of logits are stored in the dtype of the matmuls, multiplied by this. They are at most
# one in size, and most of 65,000 are near zero, where fp16 has steps of 6e-8; its largest number is
# 65,504. Multiplying by a power of two changes only the exponent, so nothing is rounded.
_GRADIENT_SCALE = 2.0**15


def loss_chunk_size(device: torch.device) -> int:
    """Return the number of positions per chunk that makes matmuls efficient on this device."""
    return 512 if device.type == "cpu" else 4096


def available_loss_paths(dtype: torch.dtype = torch.float32) -> list[LossPath]:
    """Return the implementations that are accurate if the logits are computed in `dtype`."""
    # Only `chunked` scales the gradients of logits, which would underflow in fp16.
    if dtype == torch.float16:
        return ["chunked"]
    paths: list[LossPath] = ["full", "chunked"]
    # `torch` would return the loss in `dtype`, too, and not every version of PyTorch has it.
    if dtype == torch.float32 and hasattr(F, "linear_cross_entropy"):
        paths.append("torch")
    return paths


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    path: LossPath = "chunked",
    num_correct: Tensor | None = None,
    narrow_weight: Tensor | None = None,
) -> Tensor:
    """Return the sum of `cross_entropy(hidden @ weight.T, targets)` times `scale`, in fp32.

    hidden[N, D], weight[V, D], targets[N]. `scale` is usually one over the number of targets of the
    whole batch, so that gradients accumulated over micro-batches are those of the batch's mean. The
    number of targets that are the most likely id is added to `num_correct`, a scalar on
    the same device. `full` and `chunked` have the logits for that; `torch` computes them a second
    time. `narrow_weight` is a copy of `weight` in the dtype of autocast, if there is one already.
    """
    device = hidden.device.type
    # Autocast would convert the inputs of single operations; here `dtype` is applied by hand, so
    # that sums stay in fp32.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        if path == "chunked" and can_fuse(hidden.device, dtype):
            if narrow_weight is None:
                narrow_weight = weight.detach().to(dtype)
            return BF16CrossEntropy.apply(
                hidden, weight, targets, scale, narrow_weight, num_correct
            )
        if path == "chunked":
            return _ChunkedCrossEntropy.apply(hidden, weight, targets, scale, dtype, num_correct)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        if path == "torch":
            if num_correct is not None:
                num_correct += score_tokens(hidden, weight, targets)[1].sum()
            options = torch.nn.LinearCrossEntropyOptions(
                batch_chunk_size=loss_chunk_size(hidden.device)
            )
            loss = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
            return loss * scale
        logits = hidden @ weight.T
        if num_correct is not None:
            num_correct += (logits.argmax(-1) == targets).sum()
        return F.cross_entropy(logits.float(), targets, reduction="sum") * scale


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The `chunked` path: forward computes loss and gradients, backward scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float,
        dtype: torch.dtype,
        num_correct: Tensor | None,
    ) -> Tensor:
        """Return the loss as `linear_cross_entropy` does; matmuls are in `dtype`."""
        # Only matmuls are in `dtype`; sums over many positions stay in the dtype of the inputs.
        d_hidden = torch.empty_like(hidden)
        # With an adapter the head is frozen. Its gradient would be a third of the work, and
        # another matrix of the head's size.
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        narrow_weight = weight.to(dtype)
        loss = torch.zeros((), device=hidden.device, dtype=torch.float32)
        chunk_size = loss_chunk_size(hidden.device)
        is_low_precision = dtype.itemsize < 4
        # All chunks use one buffer, and the gradient overwrites the logits in it: allocating this
        # much memory takes longer than the arithmetic.
        buffer = torch.empty(
            min(chunk_size, len(hidden)), len(weight), device=hidden.device, dtype=dtype
        )
        # `scale` is applied to the gradients of the inputs, which have D columns, and not to those
        # of the logits, which have V.
        factor = scale / _GRADIENT_SCALE if is_low_precision else scale
        chunks = [tensor.split(chunk_size) for tensor in (hidden, targets, d_hidden)]
        for hidden_chunk, target, d_x in zip(*chunks, strict=True):
            x = hidden_chunk.to(dtype)
            # Two names of one buffer: it holds logits[n, V] first, and their gradient afterwards.
            logits = gradient = buffer[: len(x)]
            torch.mm(x, narrow_weight.T, out=logits)
            if num_correct is not None:
                num_correct += (logits.argmax(-1) == target).sum()
            if is_low_precision:
                loss += _loss_and_scaled_gradient(logits, target)
                d_x.copy_(_matmul_without_overflow(gradient, narrow_weight).mul_(factor))
                if d_weight is not None:
                    d_weight.add_(_matmul_without_overflow(gradient.T, x), alpha=factor)
            else:
                loss += _loss_and_gradient(logits, target, x, narrow_weight)
                torch.mm(gradient, narrow_weight, out=d_x).mul_(factor)
                if d_weight is not None:
                    d_weight.addmm_(gradient.T, x, alpha=factor)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss * scale

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        (d_loss,) = gradients
        # d_loss is usually one, and skipping the multiplication saves writing V * D numbers on a
        # CPU. On a GPU the comparison would wait for the device.
        if d_loss.device.type != "cpu" or d_loss.item() != 1.0:
            d_hidden = d_hidden * d_loss
            d_weight = None if d_weight is None else d_weight * d_loss
        return d_hidden, d_weight, None, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Overwrite logits[n, V] = x @ weight.T with their gradient; return the sum of the losses.

    The gradient is softmax(logits) - onehot(targets). x[n, D], weight[V, D], targets[n]. All but
    the targets (int64) are fp32.
    """
    index = targets.unsqueeze(1)
    torch.softmax(logits, dim=-1, out=logits)
    probabilities = logits.gather(1, index)
    # The logarithm of a probability is accurate unless the probability underflows, as it does only
    # for a broken model. Then the loss needs the logits again, which are overwritten by now. On a
    # GPU that check would wait for the device: there the loss of a target is at most
    # -log(_MIN_PROBABILITY), 69 nats.
    if logits.device.type == "cpu" and bool((probabilities < _MIN_PROBABILITY).any()):
        loss = F.cross_entropy(x @ weight.T, targets, reduction="sum")
    else:
        loss = -probabilities.clamp_min(_MIN_PROBABILITY).log().sum()
    logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=logits.dtype))
    return loss


def _loss_and_scaled_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite logits[n, V] with their gradient times _GRADIENT_SCALE; return the sum of losses.

    For logits in bf16 or fp16; the sum is in fp32.
    """
    index = targets.unsqueeze(1)
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    loss = -log_probabilities.gather(1, index).sum()
    # One is subtracted in fp32, before rounding: the probability of a target that a good model
    # predicts would round to one, and its gradient to zero.
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, index, torch.full_like(index, -1, dtype=gradient.dtype))
    torch.mul(gradient, _GRADIENT_SCALE, out=logits)
    return loss


def _matmul_without_overflow(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of matrices in bf16 or fp16; in fp32, except for bf16 on a CPU."""
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    # bf16 has the range of fp32, so sums do not overflow, and CPUs multiply it fast. fp16 has
    # neither advantage.
    return a @ b if a.dtype == torch.bfloat16 else a.float() @ b.float()


def token_log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, narrow_weight: Tensor | None = None
) -> Tensor:
    """Return the log-probability of each target in nats, fp32[N], with a gradient.

    hidden[N, D], weight[V, D], targets[N]. The logits of a chunk of positions at a time exist, as
    in the `chunked` path. The gradient of each target is not known before the backward pass, which
    therefore computes the logits of each chunk a second time.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        if can_fuse(hidden.device, dtype):
            if narrow_weight is None:
                narrow_weight = weight.detach().to(dtype)
            return BF16LogProbs.apply(hidden, weight, targets, narrow_weight)
        return _ChunkedLogProbs.apply(hidden, weight, targets, dtype)


class _ChunkedLogProbs(torch.autograd.Function):
    """The log-probability of each target; the backward pass recomputes the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: Any) -> Tensor:
        """Return the result of `token_log_probs`; matmuls are in `dtype`."""
        narrow_weight = weight.to(dtype)
        chunk_size = loss_chunk_size(hidden.device)
        log_probs = []
        for x, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            logits = x.to(dtype) @ narrow_weight.T
            # In place where the dtype allows it: a chunk of logits is large.
            wide = logits if logits.dtype.itemsize >= 4 else logits.float()
            torch.log_softmax(wide, dim=-1, out=wide)
            log_probs.append(wide.gather(1, target.unsqueeze(1)).squeeze(1))
        ctx.save_for_backward(hidden, weight, targets)
        ctx.dtype = dtype
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        dtype = ctx.dtype
        is_low_precision = dtype.itemsize < 4
        # The helpers below compute the gradient of a loss, which is a negative log-probability.
        row_factor = -gradients[0].unsqueeze(1)
        # A factor near one for narrow dtypes, in which the product with `x` must not underflow.
        common_factor = row_factor.abs().max().clamp_min(torch.finfo(row_factor.dtype).tiny)
        row_factor = row_factor / common_factor
        if is_low_precision:
            common_factor = common_factor / _GRADIENT_SCALE
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        narrow_weight = weight.to(dtype)
        chunk_size = loss_chunk_size(hidden.device)
        # One buffer for all chunks, as in `_ChunkedCrossEntropy`.
        buffer = torch.empty(
            min(chunk_size, len(hidden)), len(weight), device=hidden.device, dtype=dtype
        )
        chunks = [tensor.split(chunk_size) for tensor in (hidden, targets, d_hidden, row_factor)]
        for hidden_chunk, target, d_x, factor in zip(*chunks, strict=True):
            x = hidden_chunk.to(dtype)
            logits = gradient = buffer[: len(x)]
            torch.mm(x, narrow_weight.T, out=logits)
            # The factor of a row is applied to its D columns, not to the V of its logits.
            scaled_x = (hidden_chunk * factor).to(dtype)
            if is_low_precision:
                _loss_and_scaled_gradient(logits, target)
                d_x.copy_(_matmul_without_overflow(gradient, narrow_weight).mul_(factor))
                if d_weight is not None:
                    d_weight.add_(_matmul_without_overflow(gradient.T, scaled_x))
            else:
                _loss_and_gradient(logits, target, x, narrow_weight)
                torch.mm(gradient, narrow_weight, out=d_x).mul_(factor)
                if d_weight is not None:
                    d_weight.addmm_(gradient.T, scaled_x)
        d_hidden.mul_(common_factor)
        if d_weight is not None:
            d_weight.mul_(common_factor)
        return d_hidden, d_weight, None, None


@torch.no_grad()
def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's cross-entropy in nats, fp32[N], and whether it is the argmax, bool[N].

    hidden[N, D], weight[V, D], targets[N]. Logits are computed a chunk at a time.
    """
    chunk_size = loss_chunk_size(hidden.device)
    weight = weight.to(hidden.dtype)
    # All chunks use the same buffers: glibc's heap would grow with every chunk (docs/memory.md).
    shape = min(chunk_size, len(hidden)), len(weight)
    logits_buffer = hidden.new_empty(shape)
    log_probabilities_buffer = hidden.new_empty(shape, dtype=torch.float32)
    losses, is_correct = [], []
    for x, target in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
        logits = torch.mm(x, weight.T, out=logits_buffer[: len(x)])
        log_probabilities = log_probabilities_buffer[: len(x)]
        torch.log_softmax(logits, dim=-1, dtype=torch.float32, out=log_probabilities)
        losses.append(-log_probabilities.gather(1, target.unsqueeze(1)).squeeze(1))
        is_correct.append(logits.argmax(-1) == target)
    return torch.cat(losses), torch.cat(is_correct)
