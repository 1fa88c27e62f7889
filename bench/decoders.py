"""Greedy decoding of each contender, with the same weights and prompts.

A contender is a function from a `DecodeTask` to a `DecodeFunction`: `decode(prompts, new)` returns
`new` ids for each prompt, ignoring `<eos>`, with the seconds until the first ids (prefill) and for
the others (decode). Each is written in the usual way of its library. Peers are imported inside
their function, so that a process loads no other contender.
"""

import logging
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
    """Return a function that decodes with llama.cpp, from a GGUF file with f32 or q8_0 weights.

    Every prompt is a sequence of its own; all of them advance together, one id at a step.
    """
    import llama_cpp
    import numpy as np

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
    # llama-cpp-python prints what llama.cpp logs by the level of this logger.
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), model_params)
    if not model:
        raise UserError(f"llama-cpp: llama.cpp cannot load {file}")
    vocabulary_size = task.config.vocab_size

    def open_context(num_rows: int, num_prompt_ids: int, row_capacity: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = num_rows
        params.n_ctx = num_rows * row_capacity
        params.n_batch = max(num_prompt_ids, num_rows)
        params.n_threads = params.n_threads_batch = task.threads
        # The KV cache of llama.cpp is f16 by default; the others use fp32.
        params.type_k = params.type_v = _GGML_TYPE_F32
        # It rounds to f16 inside: logits would differ by 0.1 % of their spread.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # Sequences that share no prefix are faster apart, as llama.h says.
        params.kv_unified = False
        context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            raise UserError(f"llama-cpp: llama.cpp makes no context for {num_rows} rows")
        return context

    def advance(context: Any, batch: Any, ids: list[list[int]], starts: list[int]) -> list[int]:
        """Process ids of each row, from position starts[row] on; return the next id of each."""
        index = 0
        ends = []
        for row, row_ids in enumerate(ids):
            for position, token_id in enumerate(row_ids, starts[row]):
                batch.token[index], batch.pos[index] = token_id, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = False
                index += 1
            batch.logits[index - 1] = True
            ends.append(index - 1)
        batch.n_tokens = index
        if code := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        # Views of llama.cpp's own memory: the logits of the last position of each row.
        return [
            int(
                np.ctypeslib.as_array(
                    llama_cpp.llama_get_logits_ith(context, end), (vocabulary_size,)
                ).argmax()
            )
            for end in ends
        ]

    def run(prompts: list[list[int]], new: int) -> DecodeTiming:
        lengths = [len(prompt) for prompt in prompts]
        context = open_context(len(prompts), sum(lengths), max(lengths) + new)
        batch = llama_cpp.llama_batch_init(sum(lengths), 0, 1)
        start_time = time.perf_counter()
        answers = [[token_id] for token_id in advance(context, batch, prompts, [0] * len(prompts))]
        first_id_time = time.perf_counter()
        for step in range(new - 1):
            last_ids = [answer[-1:] for answer in answers]
            next_ids = advance(context, batch, last_ids, [length + step for length in lengths])
            for answer, token_id in zip(answers, next_ids, strict=True):
                answer.append(token_id)
        end_time = time.perf_counter()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return DecodeTiming(answers, first_id_time - start_time, end_time - first_id_time)

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
