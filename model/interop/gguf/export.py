"""A model in one GGUF file, which llama.cpp and what is built on it read, and Ollama's `Modelfile` beside it.

Metadata and tensors are those that llama.cpp's own converter writes for a `LlamaForCausalLM`, by llama.cpp's own `gguf`
package; the vocabulary is that of `model.interop.gguf.vocab`. llama.cpp rotates neighbouring dimensions of a head, this model
dimension i with i + d / 2: the rows of the query and key projections change places accordingly.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from common.errors import UserError
from common.files import atomic_file
from model.chat_template.template import Template
from model.config import LlamaConfig
from model.interop.gguf.ollama import is_modelfile_of, modelfile_path, write_modelfile
from model.interop.gguf.vocab import build_vocabulary, write_vocabulary
from model.llama import Llama, inverse_frequencies
from model.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

GGUFType = Literal["f32", "f16", "q8_0"]
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
_Q8_0_BLOCK = 32
_MAGIC = b"GGUF"


def export_gguf(
    model: Llama,
    tokenizer: Tokenizer,
    chat_template: str | None,
    file: Path,
    *,
    dtype: GGUFType,
    name: str,
    template: Template | None = None,
) -> None:
    """Write `file` and, beside it, its Ollama `Modelfile` (`modelfile_of`).

    `dtype` is that of the matrices; norms stay f32, and in q8_0 (blocks of 32 numbers and a scale) a matrix whose width
    is no multiple of 32 is f16, which a line on stderr says. `name` is what tools show. `chat_template` is Jinja;
    without one the model continues text. `template` holds the words of the same dialogue for Ollama, which knows no
    Jinja (default: the project's). Tensors are converted one at a time. UserError for a vocabulary that llama.cpp would
    split otherwise, for weights that f16 cannot hold, and if another file would be lost (`check_out`).
    """
    import gguf

    check_output_file(file)
    vocabulary = build_vocabulary(tokenizer, model.config.vocab_size)
    tensors = _named_tensors(model)
    types = {key: _quantization_type(value, dtype) for key, value in tensors.items()}
    ollama_template = None if chat_template is None else template or Template()
    with atomic_file(file) as temporary:
        with _open_writer(temporary) as writer:
            _write_metadata(writer, model, dtype, name)
            extra_stop_ids = write_vocabulary(writer, vocabulary, tokenizer, model.config.stop_ids)
            if chat_template is not None:
                writer.add_chat_template(vocabulary.rename_special_tokens(chat_template))
            for key, value in tensors.items():
                size = prod(gguf.quant_shape_to_byte_shape(value.shape, types[key]))
                writer.add_tensor_info(key, value.shape, np.dtype(np.float32), size, types[key])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key, value in tensors.items():
                writer.write_tensor_data(
                    _quantize(_interleave_rope_rows(key, value, model.config), types[key], key)
                )
        # Before the file has its name: where there is no room for the one, the other is not left either.
        end = vocabulary.pieces[tokenizer.eos_id].text
        write_modelfile(
            file,
            ollama_template,
            eos_text=end,
            rename_special_tokens=vocabulary.rename_special_tokens,
            context_length=model.trained_context,
        )
    if dtype == "q8_0" and (wide := [key for key, kind in types.items() if kind.name == "F16"]):
        print(
            f"note: {len(wide)} of {len(tensors)} tensors are f16, as their width is no multiple of {_Q8_0_BLOCK}",
            file=sys.stderr,
        )
    if extra_stop_ids:
        print(
            f"note: a GGUF file names three ids at which to stop; llama.cpp stops at {', '.join(map(str, extra_stop_ids))} too only "
            "where it knows their names",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _open_writer(file: Path) -> Iterator["GGUFWriter"]:
    """A writer whose file is closed, whatever happens: what it could not write it would try again as it is collected."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    try:
        yield writer
        writer.close()
    except BaseException:
        for opened in writer.fout or ():
            with contextlib.suppress(OSError):
                opened.close()
        raise


def check_output_file(file: Path) -> None:
    """UserError if `file` or its `Modelfile` is there and is none: an export replaces an earlier one, nothing else."""
    if file.is_dir():
        raise UserError(f"--out {file} is a folder: name a file, such as {file / 'model.gguf'}")
    if file.exists():
        with file.open("rb") as there:
            if there.read(len(_MAGIC)) != _MAGIC:
                raise UserError(f"--out {file} exists and is no GGUF file: name another file")
    if modelfile_path(file).exists() and not is_modelfile_of(file):
        raise UserError(
            f"{modelfile_path(file)} exists and is no Modelfile of {file.name}: name another --out"
        )


def _named_tensors(model: Llama) -> dict[str, Tensor]:
    """All tensors of the file under llama.cpp's names; a tied head is left out, as llama.cpp expects."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tensors = {
        _require_tensor_name(names.get_name(key, (".weight",)), key): value.detach()
        for key, value in model.named_parameters()
    }
    if model.config.rope_scaling and model.config.rope_scaling["rope_type"] == "llama3":
        # What llama.cpp divides each plain frequency by.
        plain = inverse_frequencies(replace(model.config, rope_scaling=None))
        tensors["rope_freqs.weight"] = plain / inverse_frequencies(model.config)
    return tensors


def _require_tensor_name(name: str | None, key: str) -> str:
    if name is None:
        raise ValueError(f"{key} is no weight of a Llama: merge adapters before export")
    return name


def _quantization_type(tensor: Tensor, dtype: GGUFType) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    if tensor.dim() < 2 or dtype == "f32":
        return GGMLQuantizationType.F32
    blocks = dtype == "q8_0" and tensor.shape[-1] % _Q8_0_BLOCK == 0
    return GGMLQuantizationType.Q8_0 if blocks else GGMLQuantizationType.F16


def _interleave_rope_rows(key: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    """The rows of query and key projections in llama.cpp's order: (first half, second half) of a head, interleaved."""
    if not key.endswith(("attn_q.weight", "attn_k.weight")):
        return tensor
    halves = tensor.view(-1, 2, config.head_dim // 2, tensor.shape[1])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _quantize(tensor: Tensor, quantization_type: "GGMLQuantizationType", key: str) -> np.ndarray:
    from gguf import quants

    values = tensor.float().cpu().contiguous().numpy()
    if quantization_type.name == "F16" and np.abs(values).max() > np.finfo(np.float16).max:
        raise UserError(f"{key} holds numbers that are too large for f16: export as f32")
    return quants.quantize(values, quantization_type)


def _write_metadata(writer: "GGUFWriter", model: Llama, dtype: GGUFType, name: str) -> None:
    import gguf

    config = model.config
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    # llama.cpp and Ollama size a conversation by this: positions the model was trained on, not all it has angles for.
    writer.add_context_length(model.trained_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling and config.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])
