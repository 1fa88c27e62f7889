"""Head and cross-entropy in one, so that the logits of a batch never exist.

At 65,000 pieces and 256 dimensions the head is most of a small model's arithmetic, and the logits of one batch would
be most of its memory. All paths compute the same sum; `full` is the plain formula they are tested against.

    full      logits of everything at once; fastest for few positions or a small vocabulary. Not in fp16, whose range
              is too small for the gradients that autograd makes of it
    chunked   logits of a few hundred positions at a time, gradients computed on the way forward
    torch     `F.linear_cross_entropy` (torch >= 2.13) with a fixed chunk; its automatic options are far slower on a CPU.
              In fp32 only: below that it returns the sum itself in the narrow type
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossPath = Literal["full", "chunked", "torch"]

# Below this a probability's logarithm loses the digits of the loss, so the logsumexp is taken from the logits.
_MIN_PROBABILITY = 1e-30
# fp16 ends at 65,504 and counts in steps of 6e-8 near zero, where most of 65,000 probabilities lie. Stored gradients, none
# of them above one, are multiplied by this; a power of two, so that nothing else of them changes.
_GRADIENT_SCALE = 2.0**15


def loss_chunk_size(device: torch.device) -> int:
    """Positions per chunk: on a CPU as many as keep the matmul efficient, on a GPU as many as keep it full."""
    return 512 if device.type == "cpu" else 4096


def available_loss_paths(dtype: torch.dtype = torch.float32) -> list[LossPath]:
    """The paths that are exact, in this version of torch, for a head computed in `dtype`."""
    if dtype == torch.float16:
        return ["chunked"]
    paths: list[LossPath] = ["full", "chunked"]
    return (
        [*paths, "torch"]
        if dtype == torch.float32 and hasattr(F, "linear_cross_entropy")
        else paths
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    path: LossPath = "chunked",
    num_correct: Tensor | None = None,
) -> Tensor:
    """Sum of `cross_entropy(hidden @ weight.T, targets)` times `scale`, a fp32 scalar.

    hidden[N, D], weight[V, D], targets[N]: only positions that have a loss. `scale` is usually one over the tokens of
    the whole batch: accumulated gradients are then those of the batch's mean. To `num_correct`, a number on the same device,
    is added at how many positions the likeliest id is the target. `full` and `chunked` read that off the logits they
    have; `torch` shows none, so there the head is computed once more.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        if path == "chunked":
            return _ChunkedCrossEntropy.apply(hidden, weight, targets, scale, dtype, num_correct)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        if path == "torch":
            if num_correct is not None:
                num_correct += score_tokens(hidden, weight, targets)[1].sum()
            options = torch.nn.LinearCrossEntropyOptions(
                batch_chunk_size=loss_chunk_size(hidden.device)
            )
            return (
                F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
                * scale
            )
        logits = hidden @ weight.T
        if num_correct is not None:
            num_correct += (logits.argmax(-1) == targets).sum()
        return F.cross_entropy(logits.float(), targets, reduction="sum") * scale


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made on the way forward, while a chunk's logits exist; backward only scales them."""

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
        # Sums over many positions are kept in the inputs' own type; only the products are in `dtype`.
        # Beside an adapter the head is frozen: a third of its work, and memory for a whole table, is not needed.
        d_hidden, d_weight = (
            torch.empty_like(hidden),
            torch.zeros_like(weight) if ctx.needs_input_grad[1] else None,
        )
        table = weight.to(dtype)
        loss = torch.zeros((), device=hidden.device, dtype=torch.float32)
        chunk_size, is_low_precision = loss_chunk_size(hidden.device), dtype.itemsize < 4
        # The gradient is written over the logits: memory that is new costs more than the arithmetic on it.
        logits_buffer = torch.empty(
            min(chunk_size, len(hidden)), len(weight), device=hidden.device, dtype=dtype
        )
        # `scale` goes into the products, which are D wide, not into the gradient of V columns.
        factor = scale / _GRADIENT_SCALE if is_low_precision else scale
        for wide, target, d_x in zip(
            hidden.split(chunk_size),
            targets.split(chunk_size),
            d_hidden.split(chunk_size),
            strict=True,
        ):
            x = wide.to(dtype)
            logits = gradient = logits_buffer[: len(x)]
            torch.mm(x, table.T, out=logits)
            if num_correct is not None:
                num_correct += (logits.argmax(-1) == target).sum()
            if is_low_precision:
                loss += _loss_and_scaled_gradient(logits, target)
                d_x.copy_(_matmul_without_overflow(gradient, table).mul_(factor))
                if d_weight is not None:
                    d_weight.add_(_matmul_without_overflow(gradient.T, x), alpha=factor)
            else:
                loss += _loss_and_gradient(logits, target, x, table)
                torch.mm(gradient, table, out=d_x).mul_(factor)
                if d_weight is not None:
                    d_weight.addmm_(gradient.T, x, alpha=factor)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss * scale

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        (factor,) = gradients
        # On a CPU the usual factor of one is worth not writing V x D numbers; on a GPU asking would stall the queue.
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return d_hidden, d_weight, None, None, None, None
        return (
            d_hidden * factor,
            None if d_weight is None else d_weight * factor,
            None,
            None,
            None,
            None,
        )


def _loss_and_gradient(logits: Tensor, targets: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """Overwrite `logits`[n, V] = x @ table.T with softmax(logits) - onehot(targets); return the sum of the losses."""
    index = targets.unsqueeze(1)
    torch.softmax(logits, dim=-1, out=logits)
    target_probabilities = logits.gather(1, index)
    # -log of the probability is exact until it underflows, which only a broken model's does: its logits are made again.
    if logits.device.type == "cpu" and bool((target_probabilities < _MIN_PROBABILITY).any()):
        loss = F.cross_entropy(x @ table.T, targets, reduction="sum")
    else:
        loss = -target_probabilities.clamp_min(_MIN_PROBABILITY).log().sum()
    logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=logits.dtype))
    return loss


def _loss_and_scaled_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite `logits`[n, V] with softmax(logits) - onehot(targets) times _STORED; return the sum of the losses, fp32."""
    index = targets.unsqueeze(1)
    wide = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    loss = -wide.gather(1, index).sum()
    # Subtracted before it is rounded: what is left of a probability near one is most of what a good model still learns.
    wide.exp_().scatter_add_(1, index, torch.full_like(index, -1, dtype=wide.dtype))
    torch.mul(wide, _GRADIENT_SCALE, out=logits)
    return loss


def _matmul_without_overflow(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of narrow factors, not rounded to their type where that would cost range: fp16 cannot hold the sums."""
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    # bf16 has the range of fp32, and CPUs multiply it faster; fp16 they do not.
    return a @ b if a.dtype == torch.bfloat16 else a.float() @ b.float()


@torch.no_grad()
def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, fp32[N], and whether the likeliest id was the target, bool[N], a chunk at a time.

    hidden[N, D], weight[V, D], targets[N].
    """
    losses, correct = [], []
    for x, target in zip(
        hidden.split(loss_chunk_size(hidden.device)),
        targets.split(loss_chunk_size(hidden.device)),
        strict=True,
    ):
        logits = (x @ weight.to(x.dtype).T).float()
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        correct.append(logits.argmax(-1) == target)
    return torch.cat(losses), torch.cat(correct)
