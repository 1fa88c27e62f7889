"""Greedy decoding of each contender, with the same weights and prompts.

A contender is a function from a `DecodeTask` to a `DecodeFunction`: `decode(prompts, new)` returns
`new` ids for each prompt, ignoring `<eos>`, with the seconds until the first ids (prefill) and for
the others (decode). Each is written in the usual way of its library. Peers are imported inside
their function, so that a process loads no other contender.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from model.config import LlamaConfig

_GGML_TYPE_F32 = 0  # of the enum `ggml_type` in llama.cpp's ggml.h
# Of the weights; `kv-bf16` is fp32 with keys and values in bf16.
WeightPrecision = Literal["fp32", "kv-bf16", "bf16", "int8"]


@dataclass(frozen=True)
class DecodeTask:
    """What every contender decodes with: the model, the precision of its weights, the threads."""

    config: LlamaConfig
    weights: Path
    """A safetensors file with the tensor names of Hugging Face's Llama."""
    tokenizer: Path
    """Folder of a tokenizer; a GGUF file cannot be written without one."""
    precision: WeightPrecision
    threads: int


@dataclass(frozen=True)
class DecodeTiming:
    """The new ids of each prompt, and how long they took."""

    ids: list[list[int]]
    prefill_seconds: float
    """Seconds until the first new id of every prompt is known."""
    decode_seconds: float
    """Seconds for all other new ids."""


DecodeFunction = Callable[[list[list[int]], int], DecodeTiming]


def _load_babyllama(task: DecodeTask) -> Any:
    """Return the model of the task, in fp32 and evaluation mode."""
    from safetensors.torch import load_file

    from model.llama import Llama

    model = Llama(task.config)
    model.load_state_dict(load_file(task.weights))
    return model.eval()


def build_babyllama_decoder(task: DecodeTask) -> DecodeFunction:
    """Return a function that decodes with this project's `InferenceBatch`.

    It does the same as `generate_batch`, except that it ignores `<eos>`.
    """
    import torch

    from model.decode.batched_inference import start_batch
    from model.quantize import quantize_int8

    model = _load_babyllama(task)
    if task.precision == "int8":
        quantize_int8(model)
    elif task.precision == "bf16":
        model.bfloat16()
    elif task.precision == "kv-bf16":
        model.kv_cache_dtype = torch.bfloat16

    @torch.inference_mode()
    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        start_time = time.perf_counter()
        batch, hidden = start_batch(model, prompts, max_new_tokens=new)
        step_ids = [batch.head.argmax(hidden)]  # int64[rows] of each step
        step_ids[0].tolist()  # wait for the device
        first_id_time = time.perf_counter()
        for _ in range(new - 1):
            step_ids.append(batch.head.argmax(batch.decode_step(step_ids[-1])))
        answers = torch.stack(step_ids, 1).tolist()
        end_time = time.perf_counter()
        return DecodeTiming(answers, first_id_time - start_time, end_time - first_id_time)

    return run


def build_transformers_decoder(task: DecodeTask) -> DecodeFunction:
    """Return a function that decodes with `LlamaForCausalLM.generate` and sdpa attention.

    `generate` does not report when the first id is ready, so the prefill is timed by a separate
    call for one id, and its time is subtracted from that of the whole call.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as HFLlamaConfig

    config = HFLlamaConfig(**task.config.to_hf())
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.load_state_dict(load_file(task.weights))
    if task.precision == "bf16":
        model.bfloat16()

    def generate(prompts: list[list[int]], new: int) -> tuple[list[list[int]], float]:
        # Padding on the left: new ids follow the prompts of all rows at the same position.
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        start_time = time.perf_counter()
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return output[:, longest:].tolist(), time.perf_counter() - start_time

    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        _, prefill_seconds = generate(prompts, 1)
        answers, total_seconds = generate(prompts, new)
        return DecodeTiming(answers, prefill_seconds, total_seconds - prefill_seconds)

    return run


def build_llama_cpp_decoder(task: DecodeTask) -> DecodeFunction:
    """Return a function that decodes a single prompt with llama.cpp, from a GGUF file.

    Its weights are f32 or q8_0. The function raises UserError for several prompts.
    """
    import numpy as np
    from llama_cpp import Llama as LlamaCpp
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
            jinja_template=None,
            file=file,
            dtype=dtype,
            name="bench",
        )
    # The KV cache of llama.cpp is f16 by default; the others use fp32.
    model = LlamaCpp(
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
        # A view of llama.cpp's own memory: the logits of the last position.
        logits = np.ctypeslib.as_array(llama_get_logits_ith(model.ctx, -1), (vocabulary_size,))
        return int(logits.argmax())

    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        if len(prompts) > 1:
            raise UserError("llama-cpp: only one prompt at a time is measured")
        model.reset()
        start_time = time.perf_counter()
        model.eval(prompts[0])
        ids = [greedy_id()]
        first_id_time = time.perf_counter()
        for _ in range(new - 1):
            model.eval(ids[-1:])
            ids.append(greedy_id())
        end_time = time.perf_counter()
        return DecodeTiming([ids], first_id_time - start_time, end_time - first_id_time)

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
