"""Small models in GGUF files, read back by `gguf` or run by llama.cpp.

llama.cpp comes with llama-cpp-python (requirements-llama-cpp.txt), which pip compiles.
"""

from pathlib import Path
from typing import Any

import torch

from model.config import LlamaConfig
from model.interop.gguf.export import write_gguf
from model.llama import Llama
from model.tokenizer.base import Tokenizer

JINJA_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "人类：{{ message.content }}{{ '\\n\\n' }}助手：{% else %}{{ message.content }}{{ eos_token }}"
    "{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
LINEAR_ROPE_SCALING = {"rope_type": "linear", "factor": 4.0}
LLAMA3_ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE_SCALING = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def random_llama(tokenizer: Tokenizer, seed: int = 0, **config_overrides: Any) -> Llama:
    """Return a small model with random norms, and weights so large that logits differ clearly.

    The norms are random because an export that drops them would go unnoticed if they were 1.
    """
    config: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
    }
    model = Llama(
        LlamaConfig(vocab_size=tokenizer.vocab_size, **{**config, **config_overrides})
    ).init_weights(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def export_to_file(
    model: Llama,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: Any = "f32",
    chat_template: str | None = JINJA_CHAT_TEMPLATE,
) -> Path:
    """Write a model into a GGUF file in a folder and return the file."""
    file = folder / f"model-{dtype}.gguf"
    write_gguf(model, tokenizer, chat_template, file, dtype=dtype, name="测试")
    return file


def read_gguf_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a file as `gguf` reads them."""
    import gguf

    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def read_gguf_metadata(file: Path) -> dict[str, Any]:
    """Return the metadata of a file as `gguf` reads it."""
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def load_in_llama_cpp(file: Path, **options: Any) -> Any:
    """Load a file in llama.cpp."""
    import llama_cpp

    # llama.cpp's KV cache is f16 by default, which would round differently from this project's.
    f32_cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(
        str(file), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, **f32_cache, **options
    )


PROMPTS = ["从前，", "问：今天 天气怎么样？\n\n答：", "The quick brown fox", "1 + 1 = "]


def llama_cpp_greedy(llama_cpp_model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Return llama.cpp's greedy ids after a prompt, without the eos."""
    llama_cpp_model.reset()
    ids: list[int] = []
    for token_id in llama_cpp_model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if token_id == llama_cpp_model.token_eos() or len(ids) == max_new_tokens:
            break
        ids.append(token_id)
    return ids
