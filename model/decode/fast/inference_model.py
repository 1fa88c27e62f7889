"""A model arranged for inference: the same function as `Llama`, in fewer and larger steps.

At 43M a token costs as much in reading weights as in starting operations, so both are kept few: queries, keys and values
are one product, gate and up another; on a CPU their matrices lie transposed, which is how a product of few rows runs along
memory; attention of one new position is two batched products without a mask where no row is padded; residuals are added by
the products themselves; one new position on a CPU works in memory that is kept (`model.step`). Nothing here waits for a GPU.
Shapes as in `model.llama`: R rows, T new positions.
"""

import threading

import torch
from torch import Tensor

from model.decode.fast.cpu_decode_step import CapturedDecodeStep
from model.decode.fast.fused_linear import InferenceRMSNorm
from model.decode.fast.layer import InferenceLayer
from model.decode.fast.lm_head import LMHead
from model.decode.kv_cache import KVCache
from model.llama import Llama


class InferenceModel:
    """Reads ids behind what a cache holds and says what follows. Made from a model's weights as they are now.

    Besides the model it keeps its wide matrices a second time, on a CPU also the head (see `model.head`). Threads may
    read with it at once, each with caches of its own.
    """

    def __init__(self, model: Llama) -> None:
        config, body = model.config, model.model
        shape = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self._num_kv_heads = config.num_key_value_heads
        self._embed, self._norm = body.embed_tokens, InferenceRMSNorm(body.norm)
        self._layers = [InferenceLayer(layer, *shape) for layer in body.layers]  # type: ignore[arg-type]
        self._dtype = body.norm.weight.dtype
        self._rotations = torch.complex(*body.rotary.table.to(self._dtype).float()).unsqueeze(1)
        # The kept memory of a step is a thread's own: two that shared it would mix their answers.
        self._thread_local = threading.local()
        self._can_capture_step = (
            self._rotations.device.type == "cpu"
            and self._dtype == torch.float32
            and all(each.is_capturable for each in self._layers)
        )
        self.head = LMHead(model.lm_head)

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        cache: KVCache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Put ids[R, T] into the cache; the normalised hidden[R, D] of the last of them.

        `positions`[R, T] default to counting up from the cache's length; `mask`[R or 1, 1, T, S] (True: may look)
        replaces plain causality. The caller advances the cache's length.
        """
        rows, length = ids.shape
        start, stop = cache.length, cache.length + length
        rotation = self._rotations[start:stop] if positions is None else self._rotations[positions]
        if length == 1 and mask is not None:
            mask = torch.zeros_like(mask, dtype=self._dtype).masked_fill_(~mask, -torch.inf)
            mask = mask[:, 0].expand(rows, self._num_kv_heads, stop).reshape(-1, 1, stop)
        x = self._embed(ids.flatten())
        if length == 1 and self._can_capture_step:
            step: CapturedDecodeStep | None = getattr(self._thread_local, "step", None)
            if step is None or step.batch_size != rows:
                step = self._thread_local.step = CapturedDecodeStep(self._layers, self._norm, rows)
            return step.run(x, rotation.flatten(0, -3), mask, cache)
        for index, layer in enumerate(self._layers):
            x = layer.forward(x, rows, rotation, mask, cache.layer(index))
        return self._norm(x.view(rows, length, -1)[:, -1])


def inference_model_for(model: Llama) -> InferenceModel:
    """A decoder for the model's present weights.

    One is kept with a model in evaluation mode, and used again until the model is put back into training mode or its
    weights are written to. (Fused optimizers write without a trace, hence the mode.)
    """
    if model.training:
        return InferenceModel(model)
    weight_versions = [
        (each.data_ptr(), None if each.is_inference() else each._version)
        for each in model.parameters()
    ]
    modules = [id(each) for each in model.modules()]
    if model.cached_inference_model is None or model.cached_inference_model[0] != (
        weight_versions,
        modules,
    ):
        model.cached_inference_model = ((weight_versions, modules), InferenceModel(model))
    return model.cached_inference_model[1]
