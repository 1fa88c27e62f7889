"""What training keeps of a layer for the backward pass, and what it computes again.

Two things save memory here, and change gradients by rounding at most. A layer keeps its input
alone, or also the result of its attention, and is computed again in the backward pass (Chen et al.
2016, arXiv:1604.06174). And the feed-forward network takes a tile of a long row at a time, in both
passes, so that its wide activations never exist for the whole row (Bekman et al. 2025,
arXiv:2506.13996). What is kept can wait in the memory of the host.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from model.lora import continued_dropout

# Positions of a tile: enough that a GPU multiplies at full speed, and that adding up the gradients
# of the weights takes a few percent of the time.
TILE_POSITIONS = 4096
# The operations behind PyTorch's attention. By name: the last one exists once it was imported.
_ATTENTION_OPERATIONS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
}


@dataclass(frozen=True)
class Checkpointing:
    """What training keeps of each layer besides its input, and where."""

    keeps_attention: bool = False
    """Keep the result of attention, too, so that attention is not computed twice."""
    offloads: bool = False
    """Keep all of it in the memory of the host."""


def run_layer(layer: nn.Module, x: Tensor, *arguments: Any, checkpointing: Checkpointing) -> Tensor:
    """Return layer(x, *arguments), and compute the layer again in the backward pass.

    Gradients flow to `x` and to the weights, not to tensors among the arguments; these stay where
    they are, because all layers share them.
    """
    kept: list[_KeptResult] = []

    def contexts() -> tuple[Any, Any]:
        """Return the contexts of the forward pass and of the second computation."""
        if not checkpointing.keeps_attention:
            return contextlib.nullcontext(), _Recomputation(contextlib.nullcontext())
        keep = _AttentionKeeper(kept, offloads=checkpointing.offloads)
        return keep, _Recomputation(_AttentionReplayer(kept))

    def run(x: Tensor) -> Tensor:
        output: Tensor = layer(x, *arguments)
        return output

    offload = saved_tensors_hooks(_to_host, _from_host)
    with offload if checkpointing.offloads else contextlib.nullcontext():
        output: Tensor = checkpoint(run, x, use_reentrant=False, context_fn=contexts)
    return output


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    """Return the device of a tensor, and a copy of it in the memory of the host."""
    # Copies between a GPU and page-locked memory wait for no kernel but those before them.
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return tensor.device, host.copy_(tensor, non_blocking=True)


def _from_host(packed: tuple[torch.device, Tensor]) -> Tensor:
    """Return what `_to_host` was called with."""
    device, host = packed
    return host.to(device, non_blocking=True)


# What attention returned in one call: for each result a function that returns it. Some results of
# PyTorch's operations are numbers.
_KeptResult = tuple[Callable[[], Any], ...]
_attention_keeper: ContextVar["_AttentionKeeper | None"] = ContextVar("keeper", default=None)
_is_recomputing: ContextVar[bool] = ContextVar("is_recomputing", default=False)


class _Recomputation(contextlib.AbstractContextManager[None]):
    """Marks the second computation of a layer, within another context."""

    def __init__(self, replay: contextlib.AbstractContextManager[Any]) -> None:
        self._replay = replay

    def __enter__(self) -> None:
        self._token = _is_recomputing.set(True)
        self._replay.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._replay.__exit__(*error)
        _is_recomputing.reset(self._token)


class _AttentionKeeper(TorchDispatchMode):
    """Keeps the results of the attention of a layer."""

    def __init__(self, kept: list[_KeptResult], *, offloads: bool) -> None:
        """Append the results to `kept`."""
        super().__init__()
        self._kept = kept
        self._offloads = offloads

    def __enter__(self) -> "_AttentionKeeper":
        self._token = _attention_keeper.set(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _attention_keeper.reset(self._token)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = functools.partial(func, *args, **(kwargs or {}))
        return self.result(call) if func.name() in _ATTENTION_OPERATIONS else call()

    def result(self, attend: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return attend(), and keep it."""
        result = attend()
        self._kept.append(tuple(self._keep(each) for each in result))
        return result

    def _keep(self, value: Any) -> Callable[[], Any]:
        """Return a function that returns a result."""
        if not isinstance(value, Tensor):
            return lambda: value
        # Detached both times, because autograd makes what it gets a part of the graph.
        if self._offloads:
            packed = _to_host(value)
            return lambda: _from_host(packed).detach()
        kept = value.detach()
        return lambda: kept.detach()


class _AttentionReplayer(_AttentionKeeper):
    """Returns what was kept instead of computing attention."""

    def __init__(self, kept: list[_KeptResult]) -> None:
        super().__init__(kept, offloads=False)

    def __enter__(self) -> "_AttentionReplayer":
        self._remaining = iter(self._kept)
        super().__enter__()
        return self

    def result(self, attend: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return what was kept of the same call."""
        return tuple(restore() for restore in next(self._remaining))


def keep_attention(attend: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return attend() or, when a layer is computed again and kept it, what it returned before.

    The autograd function of an attention that is not PyTorch's calls this in its forward method.
    """
    keeper = _attention_keeper.get()
    if keeper is None:
        return attend()
    with no_dispatch():
        output, log_sums = keeper.result(attend)
    return output, log_sums


def run_in_tiles(
    modules: Sequence[nn.Module], run: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Return run(x) of x[B, T, D]; if T is large, a tile at a time, in the backward pass as well.

    `run` treats each position by itself, returns [B, T, D] in the dtype of `x`, and has no weights
    but those of `modules`. Tiles keep `x` alone. They belong to the end of a layer that is computed
    again: there their result is not needed the second time, and not computed.
    """
    if x.shape[1] <= TILE_POSITIONS or torch.compiler.is_compiling():
        return run(x)
    if not torch.is_grad_enabled():
        return _run_tiles(modules, run, x)
    weights = [
        weight for module in modules for weight in module.parameters() if weight.requires_grad
    ]
    output: Tensor = _InTiles.apply(x, modules, run, *weights)
    return output


def _run_tiles(modules: Sequence[nn.Module], run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return run(x), computed a tile at a time."""
    output = torch.empty_like(x)
    with continued_dropout(modules, x.device):
        for start in range(0, x.shape[1], TILE_POSITIONS):
            tile = slice(start, start + TILE_POSITIONS)
            output[:, tile] = run(x[:, tile])
    return output


class _InTiles(torch.autograd.Function):
    """`run_in_tiles` with gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        modules: Sequence[nn.Module],
        run: Callable[[Tensor], Tensor],
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.modules, ctx.run, ctx.weights = modules, run, weights
        device = x.device.type
        # The backward pass runs outside of the context of autocast.
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
            # Weights that are converted again for each tile are freed with it.
            "cache_enabled": False,
        }
        if _is_recomputing.get():
            return torch.empty_like(x)
        return _run_tiles(modules, run, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        (d_out,) = gradients
        needs_x = ctx.needs_input_grad[0]
        d_x = torch.empty_like(x) if needs_x else None
        d_weights: list[Tensor] = []
        dropout = continued_dropout(ctx.modules, x.device)
        with torch.enable_grad(), torch.autocast(**ctx.autocast), dropout:
            for start in range(0, x.shape[1], TILE_POSITIONS):
                tile = slice(start, start + TILE_POSITIONS)
                part = x[:, tile].detach().requires_grad_(needs_x)
                inputs = [part, *ctx.weights] if needs_x else list(ctx.weights)
                results = list(torch.autograd.grad(ctx.run(part), inputs, d_out[:, tile]))
                if d_x is not None:
                    d_x[:, tile] = results.pop(0)
                if not d_weights:
                    d_weights = results
                else:
                    for total, gradient in zip(d_weights, results, strict=True):
                        total.add_(gradient)
        return d_x, None, None, *d_weights
