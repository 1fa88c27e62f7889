"""Weights in int8: a quarter of the memory of fp32, and a quarter of the bytes read per token.

Every row of a matrix (the weights of one output) is divided by its own scale, its largest absolute
weight over 127, and rounded ("vector-wise quantization" in LLM.int8(), Dettmers et al. 2022). The
embedding and the head are quantized as well, norms are not. Activations are not quantized, only
rounded to bf16 where a CPU multiplies them with int8; sums are in fp32.

Shapes: N rows, D inputs, M outputs.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.llama import Llama
from model.narrow_weights import NarrowableLinear

# Up to this many rows of activations the CPU kernel that unpacks int8 inside the matmul is faster.
# For more it is faster to unpack the matrix once and use the ordinary matmul.
_MAX_INT8_KERNEL_ROWS = 16
# The kernel reads this many numbers of a row at once. If the row length is not a multiple, it reads
# beyond the end of the row, and of the allocation.
_INT8_KERNEL_WIDTH = 16
_INT8_MAX = 127


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a bias-free `nn.Linear` whose forward is not overridden.

    The weight of such a module is the whole function, which is not so for LoRA and int8 layers. In
    training a `NarrowableLinear` may compute in bf16; without autocast it is a plain layer.
    """
    plain_forwards = (nn.Linear.forward, NarrowableLinear.forward)
    return (
        isinstance(module, nn.Linear)
        and type(module).forward in plain_forwards
        and module.bias is None
    )


def is_plain_int8_linear(module: nn.Module) -> TypeGuard["Int8Linear"]:
    """Return whether a module is a bias-free `Int8Linear`."""
    return type(module) is Int8Linear and module.bias is None


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize weight[M, D] to int8[M, D] and bf16 scales[M]; rows of zeros stay zero."""
    weight_fp32 = weight.detach().float()
    # The scale, which is the size of a step, is rounded to bf16 before it divides the weights, so
    # that dequantized weights are off by at most half a step. This rounding changes it by at most
    # 2^-8 of its size, so the largest weight stays below 127.5 steps.
    scale = (weight_fp32.abs().amax(1) / _INT8_MAX).bfloat16()
    # Rows of zeros have scale 0; divide them by 1 instead.
    steps = weight_fp32 / torch.where(scale > 0, scale, 1).float()[:, None]
    return steps.round_().to(torch.int8), scale


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values[..., D] (int8) times scale[...] (bf16), computed in fp32, as `dtype`."""
    return (values.float() * scale.float().unsqueeze(-1)).to(dtype)


def can_use_int8_kernel(x: Tensor) -> bool:
    """Return whether `torch._weight_int8pack_mm` is safe and the fastest choice for x[N, D]."""
    return (
        x.device.type == "cpu"
        and len(x) <= _MAX_INT8_KERNEL_ROWS
        and x.shape[1] % _INT8_KERNEL_WIDTH == 0
    )


def int8_linear(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Apply a linear layer of int8 values[M, D] and bf16 scale[M] to x[N, D] -> [N, M].

    The result has the dtype of `x`.
    """
    if can_use_int8_kernel(x):
        return torch._weight_int8pack_mm(x.bfloat16(), values, scale).to(x.dtype)
    if x.device.type == "cpu":
        # int8 is exact in bf16 and in fp32, so this is the kernel's result up to the rounding of
        # activations and sums. A CPU without bf16 instructions multiplies fp32 faster.
        dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        return (F.linear(x.to(dtype), values.to(dtype)).float() * scale.float()).to(x.dtype)
    return F.linear(x, dequantize(values, scale, x.dtype))


def prepare_int8_linear(x: Tensor, values: Tensor, scale: Tensor) -> Callable[[], Tensor]:
    """Return a callable that computes `int8_linear` of the contents of `x`, a bf16 buffer on a CPU.

    The kernel is chosen once; to choose it anew takes about 25 % of the time of a call.
    """
    if can_use_int8_kernel(x):
        return partial(torch._weight_int8pack_mm, x, values, scale)
    return partial(int8_linear, x, values, scale)


class _Int8Weight(nn.Module):
    """A matrix stored as int8 rows and their scales."""

    values: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """Store int8 values[M, D] and bf16 scale[M]; `dtype` is that of the activations."""
        super().__init__()
        self.dtype = dtype
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """Return the dequantized matrix[M, D], which is computed at every access."""
        return dequantize(self.values, self.scale, self.dtype)


class Int8Linear(_Int8Weight):
    """A linear layer with an int8 weight, and the bias of the layer that it replaces, if any."""

    bias: Tensor | None

    def __init__(
        self, values: Tensor, scale: Tensor, dtype: torch.dtype, bias: Tensor | None = None
    ) -> None:
        """See `_Int8Weight`; `bias`[M] has the dtype of the activations."""
        super().__init__(values, scale, dtype)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Transform x[..., D] -> [..., M]."""
        out = int8_linear(x.reshape(-1, x.shape[-1]), self.values, self.scale)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Int8Embedding(_Int8Weight):
    """An embedding with an int8 weight."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids[...] -> [..., D]."""
        return dequantize(self.values[ids], self.scale[ids], self.dtype)


def quantize_int8(model: Llama) -> Llama:
    """Replace the matrices of a model by int8 ones, in place, for inference; return the model.

    Logits change by some hundredths of their standard deviation. A head that is tied to the
    embedding stays tied. Convert the model to another dtype before this call: afterwards the
    conversion would round the scales, too. Raises ValueError if the model has an adapter that is
    not merged into its weights.
    """
    if model.adapter is not None:
        raise ValueError("merge the adapter into the weights before quantizing the model")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child is not model.lm_head:
                values, scale = quantize_rows(child.weight)
                int8_linear_layer = Int8Linear(values, scale, child.weight.dtype, child.bias)
                setattr(module, name, int8_linear_layer)
    # The head and the embedding share one matrix if they are tied, so it is quantized only once.
    embedding = model.model.embed_tokens
    dtype = model.lm_head.weight.dtype
    is_tied = embedding.weight is model.lm_head.weight
    values, scale = quantize_rows(model.lm_head.weight)
    head = Int8Linear(values, scale, dtype)
    if not is_tied:
        values, scale = quantize_rows(embedding.weight)
    model.model.embed_tokens = Int8Embedding(values, scale, dtype)  # type: ignore[assignment]
    model.lm_head = head  # type: ignore[assignment]
    return model.eval()
