"""Head and cross-entropy in one, so that the logits of a batch never exist.

At 65,000 pieces and 256 dimensions the head is most of a small model's arithmetic, and the logits of one batch would
be most of its memory. All paths compute the same sum; `full` is the plain formula they are tested against.

    full      logits of everything at once; fastest for few positions or a small vocabulary
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
_TINY = 1e-30


def chunk_rows(device: torch.device) -> int:
    """Positions per chunk: on a CPU as many as keep the matmul efficient, on a GPU as many as keep it full."""
    return 512 if device.type == "cpu" else 4096


def available_paths(dtype: torch.dtype = torch.float32) -> list[LossPath]:
    """The paths that this version of torch has for a head computed in `dtype`."""
    paths: list[LossPath] = ["full", "chunked"]
    return [*paths, "torch"] if dtype == torch.float32 and hasattr(F, "linear_cross_entropy") else paths


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: float = 1.0, path: LossPath = "chunked"
) -> Tensor:
    """Sum of `cross_entropy(hidden @ weight.T, targets)` times `scale`, a fp32 scalar.

    hidden[N, D], weight[V, D], targets[N]: only positions that have a loss. `scale` is usually one over the tokens of
    the whole batch: accumulated gradients are then those of the batch's mean.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        if path == "chunked":
            return _Chunked.apply(hidden, weight, targets, scale, dtype)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        if path == "torch":
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_rows(hidden.device))
            return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options) * scale
        return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum") * scale


class _Chunked(torch.autograd.Function):
    """The gradients are made on the way forward, while a chunk's logits exist; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        # Sums over many positions are kept in the inputs' own type; only the products are in `dtype`.
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        table = weight.to(dtype)
        loss = torch.zeros((), device=hidden.device, dtype=torch.float32)
        rows = chunk_rows(hidden.device)
        room = torch.empty(2, min(rows, len(hidden)), len(weight), device=hidden.device, dtype=dtype)
        for wide, target, d_x in zip(hidden.split(rows), targets.split(rows), d_hidden.split(rows), strict=True):
            x = wide.to(dtype)
            logits, gradient = room[:, : len(x)]
            torch.mm(x, table.T, out=logits)
            loss += _loss_and_gradient(logits, target, gradient)
            # `scale` goes into the products, which are narrow, not into the gradient of V columns.
            d_x.copy_(gradient @ table).mul_(scale)
            if dtype == d_weight.dtype:
                d_weight.addmm_(gradient.T, x, alpha=scale)
            else:
                d_weight.add_(gradient.T @ x, alpha=scale)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        (factor,) = gradients
        # On a CPU the usual factor of one is worth not writing V x D numbers; on a GPU asking would stall the queue.
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return d_hidden, d_weight, None, None, None
        return d_hidden * factor, d_weight * factor, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
    """Fill `gradient`[n, V] with softmax(logits) - onehot(targets); return the sum of the losses, fp32."""
    index = targets.unsqueeze(1)
    if logits.dtype == torch.float32:
        torch.softmax(logits, dim=-1, out=gradient)
        picked = gradient.gather(1, index)
        # -log of the probability is exact until it underflows, which only a broken model's does.
        if logits.device.type == "cpu" and bool((picked < _TINY).any()):
            loss = (torch.logsumexp(logits, dim=-1, keepdim=True) - logits.gather(1, index)).sum()
        else:
            loss = -picked.clamp_min(_TINY).log().sum()
    else:
        log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        loss = -log_probabilities.gather(1, index).sum()
        gradient.copy_(log_probabilities.exp_())
    gradient.scatter_add_(1, index, torch.full_like(index, -1, dtype=gradient.dtype))
    return loss


@torch.no_grad()
def score(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, fp32[N], and whether the likeliest id was the target, bool[N], a chunk at a time.

    hidden[N, D], weight[V, D], targets[N].
    """
    losses, hits = [], []
    for x, target in zip(hidden.split(chunk_rows(hidden.device)), targets.split(chunk_rows(hidden.device)), strict=True):
        logits = (x @ weight.to(x.dtype).T).float()
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        hits.append(logits.argmax(-1) == target)
    return torch.cat(losses), torch.cat(hits)
