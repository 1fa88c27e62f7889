"""The model that decoding runs: the fast path if it supports the architecture, else `Llama`.

An `InferenceModel` has the operations of generation; the model's weights may not change meanwhile:

    prefill       process whole prompts and fill the KV cache
    decode_step   process one more id of every row
    extend        process several more ids of a single row

They return final hidden states, of the last position or of all that `extend` processed, from which
`head` computes logits or the most likely ids. Shapes: R rows, T new positions, S positions in the
cache after the call, D hidden size, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor

from model.decode.fast.model import FastModel, is_supported
from model.decode.kv_cache import KVCache
from model.decode.lm_head import LMHead
from model.decode.prefill_chunks import prefill_in_chunks
from model.llama import Llama


class InferenceModel(Protocol):
    """A forward pass over a KV cache, without gradients."""

    head: LMHead

    def prefill(
        self,
        ids: Tensor,
        cache: KVCache,
        last: Tensor | None = None,
    ) -> Tensor:
        """Process ids[R, T] after those in the cache; return hidden[R, D] of the last position.

        With `last`, int64[R], it is the position last[r] of the T in row r instead. Advances the
        cache's length by T. Besides the cache it takes the memory of a chunk; on a CPU with fewer
        key-value heads than query heads, also that of one layer's cache for all query heads.
        """

    def decode_step(
        self,
        ids: Tensor,
        cache: KVCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Process one id per row, ids[R]; return hidden[R, D].

        `positions`[R] default to the cache's length. `mask`[R or 1, 1, 1, S] (True: may attend)
        defaults to all positions in the cache. Advances the cache's length by one.
        """

    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Process ids[T] after those in a cache of one row; return hidden[T, D] of all of them.

        Equal to T calls of `decode_step`, up to rounding. Advances the cache's length by T.
        """


class CachedLlama:
    """`Llama`'s own forward pass over its KV cache, for architectures outside the fast path."""

    def __init__(self, model: Llama) -> None:
        self._body = model.model
        self.head = LMHead(model.lm_head, model.unused_ids)

    @torch.inference_mode()
    def prefill(
        self,
        ids: Tensor,
        cache: KVCache,
        last: Tensor | None = None,
    ) -> Tensor:
        """See `InferenceModel.prefill`."""
        return prefill_in_chunks(lambda part: self._process(part, cache), ids, last)

    @torch.inference_mode()
    def decode_step(
        self,
        ids: Tensor,
        cache: KVCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `InferenceModel.decode_step`."""
        if positions is not None:
            positions = positions[:, None]
        return self._process(ids[:, None], cache, positions, mask)[:, 0]

    @torch.inference_mode()
    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """See `InferenceModel.extend`."""
        return self._process(ids[None], cache)[0]

    def _process(
        self,
        ids: Tensor,
        cache: KVCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Process ids[R, T] after those in the cache; return hidden[R, T, D]."""
        hidden: Tensor = self._body(ids, positions, mask, cache)
        cache.length += ids.shape[1]
        return hidden


def inference_model(model: Llama) -> InferenceModel:
    """Return the fastest inference model with the current weights of `model`.

    In evaluation mode it is stored in `model` and used again until a weight is written or a module
    is replaced.
    """
    # Fused optimizers change weights without raising PyTorch's version counters, so a stored model
    # could be outdated without notice.
    if model.training:
        return _build(model)
    weight_versions = []
    for parameter in model.parameters():
        # Tensors made in inference mode have no version counter; they cannot be written to outside
        # of that mode.
        version = None if parameter.is_inference() else parameter._version
        weight_versions.append((parameter.data_ptr(), version))
    key = (weight_versions, [id(module) for module in model.modules()], model.unused_ids)
    if model.cached_inference_model is None or model.cached_inference_model[0] != key:
        model.cached_inference_model = (key, _build(model))
    return model.cached_inference_model[1]


def _build(model: Llama) -> InferenceModel:
    """Return an inference model with the weights of `model`: the fast one if it is supported."""
    return FastModel(model) if is_supported(model.config) else CachedLlama(model)
