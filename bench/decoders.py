"""Greedy decoding of each contender, with the same weights and prompts.

A contender is a function from a `DecodeTask` to a `DecodeFunction`: `decode(prompts, new)` returns
`new` ids for each prompt, ignoring `<eos>`, with the seconds until the first ids (prefill) and for
the others (decode). Each is written in the usual way of its library. Peers are imported inside
their function, so that a turn loads no other contender.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from model.config import LlamaConfig

_GGML_TYPE_F32 = 0
WeightPrecision = Literal["fp32", "int8"]


@dataclass(frozen=True)
class DecodeTask:
    """The task of a contender."""

    config: LlamaConfig
    weights: Path
    """A safetensors file in Hugging Face names."""
    tokenizer: Path
    """Folder of the tokenizer of the model."""
    precision: WeightPrecision
    threads: int


@dataclass(frozen=True)
class DecodeTiming:
    """New ids of each prompt, seconds until the first of them, and seconds for the others."""

    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float


DecodeFunction = Callable[[list[list[int]], int], DecodeTiming]


def _load_babyllama(task: DecodeTask) -> Any:
    from safetensors.torch import load_file

    from model.llama import Llama

    model = Llama(task.config)
    model.load_state_dict(load_file(task.weights))
    return model.eval()


def build_babyllama_decoder(task: DecodeTask) -> DecodeFunction:
    """Decode with this project's `InferenceBatch` as `generate_batch` does, but ignore `<eos>`."""
    import torch

    from model.decode.batched_inference import InferenceBatch
    from model.quantize import quantize_int8

    model = _load_babyllama(task)
    if task.precision == "int8":
        quantize_int8(model)

    @torch.inference_mode()
    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        start = time.perf_counter()
        batch = InferenceBatch(model, prompts, max_new_tokens=new)
        ids = [batch.head.argmax(batch.prefill())]
        ids[0].tolist()  # wait for the device
        first = time.perf_counter()
        for _ in range(new - 1):
            ids.append(batch.head.argmax(batch.decode_step(ids[-1])))
        answers = torch.stack(ids, 1).tolist()
        return DecodeTiming(answers, first - start, time.perf_counter() - first)

    return run


def build_transformers_decoder(task: DecodeTask) -> DecodeFunction:
    """Decode with `LlamaForCausalLM.generate` and sdpa attention; prefill is a call for one id."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    config = TheirConfig(**task.config.to_hf())
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.load_state_dict(load_file(task.weights))

    def generate(prompts: list[list[int]], new: int) -> tuple[list[list[int]], float]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
        start = time.perf_counter()
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return output[:, longest:].tolist(), time.perf_counter() - start

    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        _, prefill = generate(prompts, 1)
        output, whole = generate(prompts, new)
        return DecodeTiming(output, prefill, whole - prefill)

    return run


def build_llama_cpp_decoder(task: DecodeTask) -> DecodeFunction:
    """Decode the exported file (f32 or q8_0) with llama.cpp, one prompt at a time."""
    import numpy as np
    from llama_cpp import Llama as Theirs
    from llama_cpp import llama_get_logits_ith

    from model.interop.gguf.export import write_gguf
    from model.tokenizer import load_tokenizer

    # q8_0 is the format of llama.cpp that is closest to int8 weights.
    dtype: Any = {"fp32": "f32", "int8": "q8_0"}[task.precision]
    file = task.weights.parent / f"model-{dtype}.gguf"
    if not file.exists():
        write_gguf(
            _load_babyllama(task),
            load_tokenizer(task.tokenizer),
            None,
            file,
            dtype=dtype,
            name="bench",
        )
    # The KV cache of llama.cpp is f16 by default; the others use fp32.
    model = Theirs(
        str(file),
        n_ctx=1024,
        n_threads=task.threads,
        n_threads_batch=task.threads,
        verbose=False,
        type_k=_GGML_TYPE_F32,
        type_v=_GGML_TYPE_F32,
    )
    vocabulary_size = model.n_vocab()

    def greedy_id() -> int:
        logits = np.ctypeslib.as_array(llama_get_logits_ith(model.ctx, -1), (vocabulary_size,))
        return int(logits.argmax())

    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        if len(prompts) > 1:
            raise UserError("llama-cpp: only one prompt at a time is measured")
        model.reset()
        start = time.perf_counter()
        model.eval(prompts[0])
        ids = [greedy_id()]
        first = time.perf_counter()
        for _ in range(new - 1):
            model.eval(ids[-1:])
            ids.append(greedy_id())
        return DecodeTiming([ids], first - start, time.perf_counter() - first)

    return run


DECODERS: dict[str, Callable[[DecodeTask], DecodeFunction]] = {
    "babyllama": build_babyllama_decoder,
    "transformers": build_transformers_decoder,
    "llama-cpp": build_llama_cpp_decoder,
}
# The package of a contender, and the command that installs it.
REQUIRED_PACKAGES = {
    "transformers": ("transformers", "pip install --no-deps -r requirements-bench.txt"),
    "llama-cpp": ("llama_cpp", "pip install llama-cpp-python==0.3.36"),
}
