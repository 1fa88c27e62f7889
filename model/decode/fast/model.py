"""The fast path's model: `Llama` for inference, in fewer and larger operations.

At 43M parameters launching the operations of a token takes as long as reading the weights, so there
are few operations:

- q, k and v projections are one matmul, gate and up another (`fused_linear.RMSNormLinear`);
- linear layers before a residual connection add to x in place (`fused_linear.LinearAdd`);
- on a CPU the matrices are stored transposed: a matmul of few rows then reads memory in order;
- a decode step attends with two batched matmuls, without a mask unless rows are padded;
- a decode step on a CPU in fp32 runs on preallocated buffers (`cpu_decode_step`).

No operation here waits for a GPU. Shapes: R rows, T new positions, S positions in the cache after
the call, D hidden size, K key-value heads, d head_dim.
"""

import threading
from dataclasses import fields

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.decode.fast.cpu_decode_step import PreparedDecodeStep
from model.decode.fast.fused_linear import InferenceRMSNorm
from model.decode.fast.layer import InferenceLayer
from model.decode.kv_cache import KVCache
from model.decode.lm_head import LMHead
from model.decode.prefill_chunks import prefill_in_chunks
from model.llama import Llama

# The fields of `LlamaConfig` that this package implements. A field that is added to the config
# later is not in this list, so a model that uses it runs through `Llama`. Add it here only with an
# implementation in layer.py and fused_linear.py, in int8 too.
_IMPLEMENTED_FIELDS = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "tie_word_embeddings",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "more_stop_ids",
        # Says how the weights began, which changes nothing here.
        "reading_heads",
    }
)


def is_supported(config: LlamaConfig) -> bool:
    """Return whether the fast path computes the same function as `Llama` for this config.

    It does if every field outside `_IMPLEMENTED_FIELDS` has its default value.
    """
    other_fields = [field for field in fields(config) if field.name not in _IMPLEMENTED_FIELDS]
    return all(getattr(config, field.name) == field.default for field in other_fields)


class FastModel:
    """An `InferenceModel` of copies of some weights of a model, rearranged, and views of others.

    The copies of the large matrices need as much memory as those of the model; on a CPU this
    includes the head (see `model.decode.lm_head`). Several threads may use an instance at once,
    with separate caches.
    """

    def __init__(self, model: Llama) -> None:
        config, body = model.config, model.model
        head_sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self._num_kv_heads = config.num_key_value_heads
        self._heads_per_group = config.num_attention_heads // config.num_key_value_heads
        self._embed = body.embed_tokens
        self._norm = InferenceRMSNorm(body.norm)
        self._layers = [
            InferenceLayer(layer, *head_sizes)  # type: ignore[arg-type]
            for layer in body.layers
        ]
        self._dtype = body.norm.weight.dtype
        # Converted to the dtype of the weights and back, so that they are rounded as in `Llama`.
        cos, sin = body.rotary.cos_sin.to(self._dtype).float()
        # complex[max_position_embeddings, 1, d / 2]
        self._rotations = torch.complex(cos, sin).unsqueeze(1)
        # A prepared step per thread: its buffers hold the state of the step that is running.
        self._thread_local = threading.local()
        self._can_prepare_step = (
            self._rotations.device.type == "cpu"
            and self._dtype == torch.float32
            and all(layer.can_prepare for layer in self._layers)
        )
        self.head = LMHead(model.lm_head, model.unused_ids)

    @torch.inference_mode()
    def prefill(
        self,
        ids: Tensor,
        cache: KVCache,
        last: Tensor | None = None,
    ) -> Tensor:
        """See `model.decode.inference_model.InferenceModel.prefill`."""
        # Prompts of one id are a decode step, which has its own attention.
        if ids.shape[1] == 1:
            return self.decode_step(ids[:, 0], cache)
        return self._norm(prefill_in_chunks(lambda part: self._process(part, cache), ids, last))

    def _process(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Process ids[R, T] after those in the cache; return x[R, T, D] before the final norm."""
        rows, length = ids.shape
        rotation = self._rotations[cache.length : cache.length + length]
        x = self._embed(ids.flatten())
        for index, layer in enumerate(self._layers):
            x = layer.prefill(x, rows, rotation, cache.layer(index))
        cache.length += length
        return x.view(rows, length, -1)

    @torch.inference_mode()
    def decode_step(
        self,
        ids: Tensor,
        cache: KVCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `model.decode.inference_model.InferenceModel.decode_step`."""
        rows = len(ids)
        if positions is None:
            rotation = self._rotations[cache.length : cache.length + 1]
        else:
            rotation = self._rotations[positions]
        rotation = rotation.unsqueeze(1)
        is_narrow = cache.storage.dtype != self._dtype
        bias = mask if mask is None or is_narrow else self._attention_bias(mask, rows)
        x = self._embed(ids)
        if self._can_prepare_step and not is_narrow:
            hidden = self._prepared_step(rows, 1).run(x, rotation, bias, cache)
        else:
            for index, layer in enumerate(self._layers):
                x = layer.decode_step(x, rotation, bias, cache.layer(index))
            hidden = self._norm(x)
        cache.length += 1
        return hidden

    @torch.inference_mode()
    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """See `model.decode.inference_model.InferenceModel.extend`."""
        start, length = cache.length, len(ids)
        if length == 1:
            return self.decode_step(ids, cache)
        if not self._can_prepare_step or cache.storage.dtype != self._dtype:
            return self._norm(self._process(ids[None], cache)[0])
        rotation = self._rotations[start : start + length].view(1, 1, length, -1)
        step, bias = self._prepared_step(1, length), self._causal_bias(start, length)
        hidden = step.run(self._embed(ids), rotation, bias, cache)
        cache.length += length
        return hidden

    def _attention_bias(self, mask: Tensor, rows: int) -> Tensor:
        """Return a bool mask[R or 1, 1, 1, S] as an addend of scores, 0 or -inf, [R * K, 1, S]."""
        bias = torch.zeros_like(mask, dtype=self._dtype).masked_fill_(~mask, -torch.inf)
        length = mask.shape[-1]
        return bias[:, 0].expand(rows, self._num_kv_heads, length).reshape(-1, 1, length)

    def _causal_bias(self, start: int, length: int) -> Tensor:
        """Return the addend of the scores of T = `length` positions after `start` others.

        It is 0 or -inf, [1, T * H / K, S], for the query heads that share a key-value head.
        """
        bias = torch.full((length, start + length), -torch.inf).triu_(start + 1)
        return bias[:, None].expand(-1, self._heads_per_group, -1).reshape(1, -1, start + length)

    def _prepared_step(self, rows: int, num_positions: int) -> PreparedDecodeStep:
        """Return this thread's prepared step for these numbers; prepare it if there is none.

        Those for another number of rows are dropped.
        """
        steps: dict[int, PreparedDecodeStep] = getattr(self._thread_local, "steps", {})
        if not steps or self._thread_local.rows != rows:
            steps = self._thread_local.steps = {}
            self._thread_local.rows = rows
        if num_positions not in steps:
            steps[num_positions] = PreparedDecodeStep(self._layers, self._norm, rows, num_positions)
        return steps[num_positions]
