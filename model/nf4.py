"""Linear layers with frozen 4-bit weights, NF4 (Dettmers et al. 2023, arXiv:2305.14314).

Every block of 64 weights is divided by its largest absolute value and rounded to one of 16 numbers,
the quantiles of a normal distribution. The largest values are quantized as well, to 8 bits in
blocks of 256 ("double quantization"): 4.127 bits per weight in all. The arithmetic is that of
bitsandbytes. Its layers are not used: in evaluation they compute with other roundings than in
training on some CPUs, they hold whole weights before they quantize them, and their weights are
wrong on CPUs with AVX-512 if rows are no multiple of a block (bitsandbytes 0.50.2).

Shapes: D inputs, M outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bitsandbytes import load_functional
from model.config import LlamaConfig

# Weights with one scale, and scales with one scale of theirs: the defaults of QLoRA.
BLOCK_SIZE = 64
SCALE_BLOCK_SIZE = 256


class Nf4Linear(nn.Module):
    """A bias-free linear layer with a frozen NF4 weight, computed in the dtype of its inputs.

    `Module.to` with a dtype would round the scales: build it in the right one.
    """

    packed: Tensor  # uint8[blocks * BLOCK_SIZE / 2, 1], two weights a byte
    scales: Tensor  # uint8, one per block
    scales_code: Tensor  # fp32[256], what the numbers in `scales` stand for
    scales_scale: Tensor  # fp32, one per block of scales
    scales_mean: Tensor  # fp32, subtracted from the scales before they were quantized
    code: Tensor  # fp32[16], the quantiles

    def __init__(self, weight: Tensor) -> None:
        """Quantize weight[M, D] on its device; the sums are in fp32, whatever its dtype."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        flat = weight.detach().float().flatten()
        # bitsandbytes gets whole blocks as rows, the only shape that all of its kernels read
        # rightly. Zeros at the end change no scale.
        flat = F.pad(flat, (0, -len(flat) % BLOCK_SIZE))
        packed, state = load_functional().quantize_4bit(
            flat.view(-1, BLOCK_SIZE),
            blocksize=BLOCK_SIZE,
            compress_statistics=True,
            quant_type="nf4",
        )
        # Not persistent: they are computed again from the weights of the base.
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales", state.absmax, persistent=False)
        self.register_buffer("scales_code", state.state2.code, persistent=False)
        self.register_buffer("scales_scale", state.state2.absmax, persistent=False)
        self.register_buffer("scales_mean", state.offset, persistent=False)
        self.register_buffer("code", state.code, persistent=False)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight[M, D] in `dtype`."""
        functional = load_functional()
        num_blocks = len(self.scales)
        scales_state = functional.QuantState(
            absmax=self.scales_scale,
            code=self.scales_code,
            blocksize=SCALE_BLOCK_SIZE,
            dtype=torch.float32,
        )
        state = functional.QuantState(
            absmax=self.scales,
            shape=torch.Size((num_blocks, BLOCK_SIZE)),
            code=self.code,
            blocksize=BLOCK_SIZE,
            quant_type="nf4",
            dtype=dtype,
            offset=self.scales_mean,
            state2=scales_state,
        )
        flat = functional.dequantize_4bit(self.packed, state).flatten()
        return flat[: self.out_features * self.in_features].view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x[..., D] -> [..., M]."""
        return _Nf4Matmul.apply(x, self)


class _Nf4Matmul(torch.autograd.Function):
    """x[..., D] @ weight.T, which dequantizes the weight in both passes instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (d_out,) = gradients
        return d_out @ ctx.layer.dequantize(d_out.dtype), None


def round_to_nf4(weight: Tensor) -> Tensor:
    """Return weight[M, D] quantized to NF4 and dequantized, in its dtype."""
    return Nf4Linear(weight).dequantize(weight.dtype)


def is_quantizable(name: str) -> bool:
    """Return whether the parameter of a model is quantized: the matrices of its layers are.

    The head is not: its errors are those of the logits themselves, with no layer after it, and it
    may be the embedding as well. QLoRA leaves it, too. Nor are the norms, which are small.
    """
    return ".layers." in name and name.endswith("_proj.weight")


def num_bytes(config: LlamaConfig, other_bytes: int) -> int:
    """Return the bytes of a model in NF4, whose other weights have `other_bytes` each."""
    head = config.hidden_size * config.vocab_size
    num_quantized = config.num_matmul_parameters - head
    # 4 bits, 8 bits per block, and 32 per block of blocks.
    bits = 4 + 8 / BLOCK_SIZE + 32 / (BLOCK_SIZE * SCALE_BLOCK_SIZE)
    return round(bits / 8 * num_quantized) + other_bytes * (config.num_parameters - num_quantized)
