"""Weights in int8: a quarter of the memory of fp32, and a quarter of the bytes that decoding reads for every token.

Each row of a matrix (what makes one output) is divided by a scale of its own, its largest weight over 127, and rounded;
embeddings and the head as well, norms never. Activations stay as they are: they are not quantised, only rounded to bf16
where a CPU multiplies them with int8, and sums are taken in fp32 (LLM.int8() calls this vector-wise, Dettmers et al. 2022).
"""

from collections.abc import Callable
from functools import partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.llama import Llama

# Up to so many rows a CPU unpacks int8 inside the product; for more, a matrix unpacked once and multiplied by the machine's
# own kernel is faster.
_MAX_INT8_KERNEL_ROWS = 16
# The product reads as many numbers of a row at once, beyond its end if need be, where other memory or none at all is.
_INT8_KERNEL_WIDTH = 16
_INT8_MAX = 127


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a bias-free linear layer that does nothing else; an adapted one does."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and module.bias is None
    )


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight[N, D] → int8[N, D] and the bf16[N] scales that they are to be multiplied with; a row of zeros stays one."""
    largest = weight.detach().float().abs().amax(1)
    scale = (largest / _INT8_MAX).bfloat16()
    # Rounded before it is used, so that the product with the stored scale is off by half a step and no more. Rounding is by
    # 2^-8 at most, which keeps the largest weight below 127.5 steps.
    steps = weight.detach().float() / torch.where(scale > 0, scale, 1).float()[:, None]
    return steps.round_().to(torch.int8), scale


def can_use_int8_kernel(x: Tensor) -> bool:
    """Whether x[N, D] may and should be multiplied by `torch._weight_int8pack_mm`."""
    return (
        x.device.type == "cpu"
        and len(x) <= _MAX_INT8_KERNEL_ROWS
        and x.shape[1] % _INT8_KERNEL_WIDTH == 0
    )


def int8_linear(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """x[N, D] times int8[M, D] with their bf16[M] scales → [N, M] in the type of x."""
    if can_use_int8_kernel(x):
        return torch._weight_int8pack_mm(x.bfloat16(), values, scale).to(x.dtype)
    if x.device.type == "cpu":
        # The same sums: int8 is exact in bf16. A CPU without bf16 of its own multiplies fp32 faster.
        dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        return (F.linear(x.to(dtype), values.to(dtype)).float() * scale.float()).to(x.dtype)
    return F.linear(x, dequantize(values, scale, x.dtype))


def capture_int8_linear(x: Tensor, values: Tensor, scale: Tensor) -> Callable[[], Tensor]:
    """`int8_product` of the bf16 `x` of then, on a CPU. Asking again and again how to multiply would cost a quarter of it."""
    if can_use_int8_kernel(x):
        return partial(torch._weight_int8pack_mm, x, values, scale)
    return partial(int8_linear, x, values, scale)


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8[..., D] and bf16[...] → the weights they stand for, in `dtype`, multiplied in fp32."""
    return (values.float() * scale.float().unsqueeze(-1)).to(dtype)


class Int8Linear(nn.Module):
    """A bias-free linear layer whose weight is held as int8 rows and their scales."""

    values: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """`dtype`: that of the activations."""
        super().__init__()
        self.dtype = dtype
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """The whole matrix [out, in] in the type of the activations, made anew: for what multiplies many rows at once."""
        return dequantize(self.values, self.scale, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in] → [..., out]."""
        return int8_linear(x.reshape(-1, x.shape[-1]), self.values, self.scale).view(
            *x.shape[:-1], -1
        )


class Int8Embedding(Int8Linear):
    """A table of embeddings held as int8 rows and their scales."""

    def forward(self, x: Tensor) -> Tensor:
        """ids[...] → [..., D]."""
        return dequantize(self.values[x], self.scale[x], self.dtype)


def quantize_int8(model: Llama) -> Llama:
    """Replace the matrices of a model, in place, by int8 ones; for inference only. Returns the model.

    Logits move by some hundredths of their spread. A head tied to the embeddings stays tied. Quantise last: a model that
    is moved to another type afterwards would lose digits of its scales. ValueError for a model with an unmerged adapter.
    """
    if model.adapter is not None:
        raise ValueError(
            "an adapted model is quantised after its adapter was merged into its weights"
        )
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child is not model.lm_head:
                setattr(module, name, Int8Linear(*quantize_rows(child.weight), child.weight.dtype))
    table = model.model.embed_tokens
    dtype = model.lm_head.weight.dtype
    head = Int8Linear(*quantize_rows(model.lm_head.weight), dtype)
    tied = table.weight is model.lm_head.weight
    values, scale = (head.values, head.scale) if tied else quantize_rows(table.weight)
    model.model.embed_tokens = Int8Embedding(values, scale, dtype)  # type: ignore[assignment]
    model.lm_head = head  # type: ignore[assignment]
    return model.eval()


def weight_bytes(model: Llama) -> int:
    """Memory that the weights take, what is shared counted once."""
    bytes_by_address = {
        each.data_ptr(): each.numel() * each.element_size() for each in model.state_dict().values()
    }
    return sum(bytes_by_address.values())
