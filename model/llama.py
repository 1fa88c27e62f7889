"""A Llama, whole: embedding, layers of attention and feed-forward, a norm, a head.

Parameter names and shapes are those of transformers' `LlamaForCausalLM`, so the state dict of one loads in the other.
Shapes in comments: B rows, T positions, D hidden_size, H heads, K key-value heads, d head_dim, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import autograd_ops
from model.config import LlamaConfig
from model.decode.kv_cache import KVCache, LayerKVCache
from model.lora import Adapter
from model.loss import LossPath, linear_cross_entropy


def _use_custom_autograd(x: Tensor) -> bool:
    """Where the hand-written autograd functions pay; elsewhere the compiler fuses the plain formulas."""
    return x.device.type == "cpu" and x.requires_grad and not torch.compiler.is_compiling()


class Linear(nn.Linear):
    """A matrix without bias, its numbers undefined until `Llama.initialise` or a checkpoint fills them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Embedding(nn.Embedding):
    """A table of vectors, undefined like `Linear`."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x[..., D] → [..., D], the mean square taken in fp32 whatever the type of x."""
        if _use_custom_autograd(x) and x.dtype == torch.float32:
            return autograd_ops.RMSNormFunction.apply(x, self.weight, self.eps)
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """The rotation per position of each pair of dimensions, fp32[d / 2], with the config's scaling applied.

    `linear` divides all of them (Chen et al. 2023); `llama3` divides the slow ones, keeps the fast ones and blends
    between (the Llama 3.1 release).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = ((rotations - low) / (high - low)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / scaling["factor"])


class RotaryEmbedding(nn.Module):
    """Cosines and sines of every position, computed once in fp32."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        steps = torch.arange(config.max_position_embeddings).float()
        angles = torch.outer(steps, inverse_frequencies(config))
        self.table: Tensor
        self.register_buffer("table", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions[T] or [B, T] → cos and sin[(B,) T, 1, d / 2]."""
        cos, sin = self.table[:, positions].to(dtype).unsqueeze(-2)
        return cos, sin


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x[B, T, H, d] by its position, pairing dimension i with i + d / 2.

    Computed in the wider of the types of x and the angles, returned in that of x: under autocast the angles are fp32, and
    queries and keys that were too would no longer match the values.
    """
    if _use_custom_autograd(x):
        return autograd_ops.RotaryFunction.apply(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; K < H shares keys and values between heads (GQA)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size = config.hidden_size
        heads_size, kv_size = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.head_dim = config.head_dim
        self.is_grouped_query = config.num_key_value_heads != config.num_attention_heads
        self.q_proj = Linear(size, heads_size)
        self.k_proj = Linear(size, kv_size)
        self.v_proj = Linear(size, kv_size)
        self.o_proj = Linear(heads_size, size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerKVCache | None
    ) -> Tensor:
        """x[B, T, D] → [B, T, D]. `mask`[B or 1, 1, T, S] (True: may look) replaces plain causality when given."""
        batch_size, length, _ = x.shape
        q = apply_rotary(self.q_proj(x).view(batch_size, length, -1, self.head_dim), cos, sin)
        k = apply_rotary(self.k_proj(x).view(batch_size, length, -1, self.head_dim), cos, sin)
        v = self.v_proj(x).view(batch_size, length, -1, self.head_dim)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # [B, H or K, T, d]
        if cache is not None:
            k, v = cache.append(k, v)
        is_causal = mask is None and length > 1
        if is_causal and k.shape[2] != length:
            raise ValueError(
                "several new positions behind a filled cache need a mask: plain causality would misalign them"
            )
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped_query
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch_size, length, -1))


class FeedForward(nn.Module):
    """SwiGLU: a gated two-layer network."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x[B, T, D] → [B, T, D]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        hidden = (
            autograd_ops.SwiGLUFunction.apply(gate, up)
            if _use_custom_autograd(gate)
            else F.silu(gate) * up
        )
        return self.down_proj(hidden)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, *attention_args: Any) -> Tensor:
        """x[B, T, D] → [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), *attention_args)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Everything below the head: ids to hidden states."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)

    def forward(
        self, ids: Tensor, positions: Tensor | None, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """ids[B, T] → normalised hidden states[B, T, D]."""
        x = self.embed_tokens(ids)
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        cos, sin = self.rotary(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, cache.layer(index) if cache is not None else None)
        return self.norm(x)


class Llama(nn.Module):
    """A causal language model in the layout of `LlamaForCausalLM`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        # Positions that it was trained on: a prompt and its answer should not be longer together.
        self.trained_context = config.max_position_embeddings
        # What is trained while the weights are frozen; None where it is the weights.
        self.adapter: Adapter | None = None
        # What `model.decoder` keeps of the present weights.
        self.cached_inference_model: Any = None
        self.model = LlamaModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        target_positions: Tensor | None = None,
        scale: float = 1.0,
        loss_path: LossPath = "chunked",
        num_correct: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """ids[B, T] → logits[B, T, V], or with targets the sum of their cross-entropies times `scale`.

        targets[N] belong to the positions `target_positions`[N] of the flattened B · T, all of them when it is None; positions
        without loss never reach the head. To `num_correct`, a number on the model's device, is added at how many of them the
        likeliest id is the target. `positions`[T] or [B, T] default to counting up, from the cache's length where there
        is one; `mask`[B or 1, 1, T, S] replaces plain causality.
        """
        hidden = self.model(ids, positions, mask, cache)
        if targets is None:
            return self.lm_head(hidden)
        hidden = hidden.flatten(0, 1)
        hidden = hidden if target_positions is None else hidden[target_positions]
        return linear_cross_entropy(
            hidden,
            self.lm_head.weight,
            targets.flatten(),
            scale=scale,
            path=loss_path,
            num_correct=num_correct,
        )

    def train(self, mode: bool = True) -> "Llama":
        """As every module's; in training mode weights change, so nothing made of them is kept."""
        self.cached_inference_model = None
        return super().train(mode)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Llama":
        """Fill all weights from a seed: normal(initializer_range), the two projections that write into the residual
        stream scaled down by sqrt(2 · layers) (Radford et al. 2019), norms one. Drawn on the CPU, so that a seed means
        the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        deviation = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter_std = (
                deviation / math.sqrt(2 * self.config.num_hidden_layers) if residual else deviation
            )
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter_std)
        return self
