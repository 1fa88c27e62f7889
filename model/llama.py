"""The Llama architecture: embedding, transformer blocks, final norm, LM head.

Names and shapes of parameters are those of transformers' `LlamaForCausalLM`, so the state dict of
one loads in the other. Shapes in docstrings: B rows, T positions, S positions including those in a
KV cache, D hidden_size, H query heads, K key-value heads, d head_dim, V vocab_size, N targets.
"""

import math
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import autograd_ops
from model.attention.attend import attend
from model.attention.segments import Segments
from model.config import LlamaConfig
from model.decode.kv_cache import KVCache, LayerKVCache
from model.lora import Adapter
from model.loss import LossPath, linear_cross_entropy, token_log_probs
from model.narrow_weights import NarrowableLinear, computes_narrow
from model.recomputation import Checkpointing, run_in_tiles, run_layer
from model.rope_scaling import BETA_FAST, BETA_SLOW, attention_factor


def _use_custom_autograd(x: Tensor) -> bool:
    """Return whether to compute `x` with `model.autograd_ops` instead of the plain formula."""
    # Under torch.compile the plain formulas are fused, and custom functions would prevent that.
    return x.device.type == "cpu" and x.requires_grad and not torch.compiler.is_compiling()


class UninitializedLinear(NarrowableLinear):
    """A bias-free `nn.Linear` that skips the default initialization.

    Its weight is undefined until `Llama.init_weights` or a checkpoint fills it.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Do nothing."""


class UninitializedEmbedding(nn.Embedding):
    """An `nn.Embedding` that skips the default initialization, as `UninitializedLinear` does."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class RMSNorm(nn.Module):
    """Root mean square normalization with a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x[..., D] -> [..., D]; the mean square is computed in fp32."""
        if computes_narrow(x):
            return autograd_ops.NarrowRMSNormFunction.apply(x.bfloat16(), self.weight, self.eps)
        # The custom function computes in the dtype of `x`, so it is right for fp32 only.
        if _use_custom_autograd(x) and x.dtype == torch.float32:
            return autograd_ops.RMSNormFunction.apply(x, self.weight, self.eps)
        x_fp32 = x.float()
        inverse_rms = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + self.eps)
        # Rounded before it is multiplied by the weight, as in transformers.
        return (x_fp32 * inverse_rms).to(x.dtype) * self.weight


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """Return the RoPE angle per position of each pair of dimensions, in radians, fp32[d / 2].

    The angles are theta^(-2i / d) (Su et al. 2021), then scaled by `config.rope_scaling`: `linear`
    divides all of them by a factor; `llama3` and `yarn` divide those with long wavelengths, leave
    those with short ones, and interpolate between, `llama3` by the wavelength, `yarn` by the index
    of the pair. Operations are in the order of transformers', so that the bits are the same.
    """
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    wavelengths = config.rope_theta**exponents
    frequencies = 1.0 / wavelengths
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return frequencies / factor
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        # The number of full turns of a pair within the original context. From `high` turns on the
        # frequency is unchanged (blend 1), below `low` it is divided by the factor (blend 0).
        turns = scaling["original_max_position_embeddings"] / (2 * math.pi / frequencies)
        blend = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - blend) * frequencies / factor + blend * frequencies
    first, last = _yarn_bounds(config, scaling)
    ramp = ((torch.arange(config.head_dim // 2) - first) / (last - first)).clamp(0, 1)
    blend = 1 - ramp
    return 1.0 / (factor * wavelengths) * (1 - blend) + frequencies * blend


def _yarn_bounds(config: LlamaConfig, scaling: dict[str, Any]) -> tuple[float, float]:
    """Return the pairs of dimensions between which YaRN interpolates frequencies.

    They turn `beta_fast` and `beta_slow` times within the original context. Unless `truncate` is
    false, they are whole numbers.
    """
    bounds = []
    for turns in (scaling.get("beta_fast", BETA_FAST), scaling.get("beta_slow", BETA_SLOW)):
        # The inverse of turns = original / (2 pi theta^(2i / d)).
        wavelength = scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)
        bounds.append(config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta)))
    first, last = bounds
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    return first, last if last != first else last + 0.001  # no division by zero


class RotaryEmbedding(nn.Module):
    """Table of cosines and sines for every position, computed once in fp32.

    YaRN multiplies both by a factor, so that attention scores grow by its square.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        positions = torch.arange(config.max_position_embeddings).float()
        angles = torch.outer(positions, inverse_frequencies(config))
        self.cos_sin: Tensor  # [2, max_position_embeddings, d / 2]
        cos_sin = torch.stack([angles.cos(), angles.sin()])
        cos_sin *= attention_factor(config.rope_scaling)
        # Not persistent: checkpoints do not store what the config determines.
        self.register_buffer("cos_sin", cos_sin, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin of positions[T] or [B, T], both [T, 1, d / 2] or [B, T, 1, d / 2]."""
        # The dimension of size 1 broadcasts over the heads.
        cos, sin = self.cos_sin[:, positions].to(dtype).unsqueeze(-2)
        return cos, sin


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding (RoPE, Su et al. 2021) to x[B, T, H, d], in the dtype of `x`.

    `cos` and `sin`[T, 1, d / 2] or [B, T, 1, d / 2] are those of `RotaryEmbedding`. Dimension i is
    paired with i + d / 2, as in transformers.
    """
    if _use_custom_autograd(x):
        return autograd_ops.RotaryFunction.apply(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    # Under autocast cos and sin are fp32, and so is the result. V, which is not rotated, stays in
    # bf16 or fp16, and attention needs Q, K and V in one dtype.
    return rotated.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with RoPE; grouped-query attention (Ainslie et al. 2023) if K < H."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        hidden_size, head_dim = config.hidden_size, config.head_dim
        num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = head_dim
        self.q_proj = UninitializedLinear(hidden_size, num_heads * head_dim)
        self.k_proj = UninitializedLinear(hidden_size, num_kv_heads * head_dim)
        self.v_proj = UninitializedLinear(hidden_size, num_kv_heads * head_dim)
        self.o_proj = UninitializedLinear(num_heads * head_dim, hidden_size)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | Segments | None,
        cache: LayerKVCache | None,
    ) -> Tensor:
        """Attend from x[B, T, D] to itself and the positions in the cache -> [B, T, D].

        `cos` and `sin` are those of `RotaryEmbedding`; see `attend` for the mask.
        """
        batch_size, length, _ = x.shape
        q = apply_rotary(self.q_proj(x).view(batch_size, length, -1, self.head_dim), cos, sin)
        k = apply_rotary(self.k_proj(x).view(batch_size, length, -1, self.head_dim), cos, sin)
        v = self.v_proj(x).view(batch_size, length, -1, self.head_dim)
        if cache is not None:
            keys, values = cache.append(k.transpose(1, 2), v.transpose(1, 2))
            k, v = keys.transpose(1, 2), values.transpose(1, 2)
        out = attend(q, k, v, mask)
        return self.o_proj(out.reshape(batch_size, length, -1))


class FeedForward(nn.Module):
    """SwiGLU feed-forward network (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = UninitializedLinear(config.hidden_size, config.intermediate_size)
        self.up_proj = UninitializedLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = UninitializedLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x[B, T, D] -> [B, T, D]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if _use_custom_autograd(gate):
            return self.down_proj(autograd_ops.SwiGLUFunction.apply(gate, up))
        return self.down_proj(F.silu(gate) * up)


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, then feed-forward, each with a residual connection."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)
        # Whether training may compute the feed-forward network of long rows a second time.
        self.recomputes = False

    def forward(self, x: Tensor, *attention_args: Any) -> Tensor:
        """Transform x[B, T, D] -> [B, T, D]; `attention_args` go to `Attention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), *attention_args)
        if self.recomputes or not torch.is_grad_enabled():
            return run_in_tiles((self.post_attention_layernorm, self.mlp), self._feed_forward, x)
        return self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """Normalize and transform x[B, T, D], and add it."""
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """The backbone: everything below the LM head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = UninitializedEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        self._checkpointing: Checkpointing | None = None

    def set_checkpointing(self, checkpointing: Checkpointing | None) -> None:
        """Set what training keeps of each layer to compute it again; None: keep everything."""
        self._checkpointing = checkpointing
        for layer in self.layers:
            cast(TransformerBlock, layer).recomputes = checkpointing is not None

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | Segments | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the hidden states after the final norm, [B, T, D], of ids[B, T].

        `positions`[T] or [B, T] default to 0, 1, 2 … or, with a cache, to counting from the cache's
        length. A mask (see `attend`) replaces the causal one. Keys and values are written into the
        cache; the caller advances its length.
        """
        x = self.embed_tokens(ids)
        if computes_narrow(x):
            x = x.bfloat16()
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        cos, sin = self.rotary(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            layer_cache = cache.layer(index) if cache is not None else None
            arguments = cos, sin, mask, layer_cache
            if self._checkpointing is not None and self.training:
                x = run_layer(layer, x, *arguments, checkpointing=self._checkpointing)
            else:
                x = layer(x, *arguments)
        return self.norm(x)


class Llama(nn.Module):
    """A causal language model, equal to transformers' `LlamaForCausalLM`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        # Length in tokens of the rows of training, which may be shorter than
        # max_position_embeddings: a prompt and its answer together should not exceed it. Loading a
        # checkpoint may lower it.
        self.trained_context = config.max_position_embeddings
        # Ids of the vocabulary that stand for no token of the tokenizer, set when a checkpoint is
        # loaded. Decoding never chooses them.
        self.unused_ids: tuple[int, ...] = ()
        # Number format of keys and values in decoding; None: that of the weights.
        self.kv_cache_dtype: torch.dtype | None = None
        # The LoRA adapter that is trained while the weights are frozen, or None.
        self.adapter: Adapter | None = None
        # (key, model), stored here by `model.decode.inference_model`; the key identifies the
        # weights that the inference model was built from.
        self.cached_inference_model: Any = None
        self.model = LlamaModel(config)
        self.lm_head = UninitializedLinear(config.hidden_size, config.vocab_size)
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
        per_target: bool = False,
        positions: Tensor | None = None,
        mask: Tensor | Segments | None = None,
    ) -> Tensor:
        """Return logits[B, T, V] of ids[B, T] or, with `targets`, the loss summed and scaled.

        With `per_target` the result is the log-probability of each target instead, fp32[N].

        Args:
            ids: int64[B, T].
            targets: the id to predict at each of the target positions, [N] or, without
                `target_positions`, [B, T]. The loss is the sum of their cross-entropies in nats.
            target_positions: indices[N] into the flattened B * T positions. Only their hidden
                states are passed through the head.
            scale: factor of the loss, usually one over the number of targets of the whole batch.
            loss_path: the implementation of the loss, see `model.loss`.
            num_correct: a scalar on the model's device, to which the number of targets that are
                the most likely id is added.
            per_target: return log-probabilities; `scale`, `loss_path` and `num_correct` are not
                used.
            positions: [T] or [B, T]; default: 0, 1, 2 …
            mask: what replaces the causal mask, as the segments of packed rows; see `attend`.
        """
        hidden = self.model(ids, positions, mask)
        if targets is None:
            return self.lm_head(hidden)
        hidden = hidden.flatten(0, 1)
        if target_positions is not None:
            hidden = hidden[target_positions]
        if per_target:
            return token_log_probs(
                hidden, self.lm_head.weight, targets.flatten(), self.lm_head.narrow_weight
            )
        return linear_cross_entropy(
            hidden,
            self.lm_head.weight,
            targets.flatten(),
            scale=scale,
            path=loss_path,
            num_correct=num_correct,
            narrow_weight=self.lm_head.narrow_weight,
        )

    def set_context(self, config: LlamaConfig) -> None:
        """Take over the positions and their frequencies from another config of this shape.

        These are its `max_position_embeddings` and `rope_scaling`, and also `reading_heads`, which
        depend on them. No weight changes.
        """
        old = self.config
        self.config = replace(
            old,
            max_position_embeddings=config.max_position_embeddings,
            rope_scaling=config.rope_scaling,
            reading_heads=config.reading_heads,
        )
        if self.config == replace(old, reading_heads=config.reading_heads):
            return
        with self.model.rotary.cos_sin.device:
            self.model.rotary = RotaryEmbedding(self.config)
        self.cached_inference_model = None

    def new_cache(self, num_rows: int, capacity: int) -> KVCache:
        """Return an empty KV cache for `num_rows` rows of `capacity` positions."""
        weight = self.model.norm.weight
        dtype = self.kv_cache_dtype or weight.dtype
        return KVCache(self.config, num_rows, capacity, weight.device, dtype)

    def train(self, mode: bool = True) -> "Llama":
        """Set training or evaluation mode, and drop the cached inference model."""
        # `model.decode.inference_model` detects new weights by PyTorch's version counters, which
        # fused optimizers do not raise.
        self.cached_inference_model = None
        return super().train(mode)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Llama":
        """Initialize all weights: normal with std `initializer_range`, norms with ones.

        The std of the two projections of a layer that write into the residual stream is divided by
        sqrt(2 * layers), so that the variance of the stream does not grow with the depth (Radford
        et al. 2019).
        """
        # Drawn on the CPU, so that a seed gives equal weights on every device.
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (residual_std if writes_residual else std))
        return self
