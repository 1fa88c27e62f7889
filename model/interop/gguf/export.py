"""Export a checkpoint as one GGUF file for llama.cpp, with Ollama's `Modelfile` beside it.

Metadata and tensors are those that llama.cpp's converter writes for a `LlamaForCausalLM`, written
by its own `gguf` package. llama.cpp rotates adjacent dimensions (2i, 2i + 1) of a head and this
model dimensions i and i + d / 2, so the rows of query and key projections are interleaved.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import Tensor

from common.errors import UserError
from common.files import atomic_file
from model.chat_template.template import Template, load_template
from model.chat_template.to_jinja import export_jinja_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.context_extension import extend_untrained
from model.interop.gguf.imported_vocab import build_imported_vocabulary
from model.interop.gguf.ollama import is_modelfile_of, modelfile_path, write_modelfile
from model.interop.gguf.vocab import GGUFVocabulary, build_native_vocabulary, write_vocabulary
from model.interop.output_path import check_replaceable
from model.llama import Llama, inverse_frequencies
from model.lora_options import Merge
from model.rope_scaling import BETA_FAST, BETA_SLOW, ContextExtension, attention_factor
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import ImportedTokenizer

GGUFType = Literal["f32", "f16", "q8_0"]
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}  # of `gguf`
_Q8_0_BLOCK = 32  # numbers that share one scale
_MAGIC = b"GGUF"
_ROPE_SCALING_TYPES = {
    "linear": gguf.RopeScalingType.LINEAR,
    "yarn": gguf.RopeScalingType.YARN,
}
# Parameters of YaRN that not every version of llama.cpp reads from a file.
_FIXED_YARN_PARAMETERS = {"beta_fast": BETA_FAST, "beta_slow": BETA_SLOW, "truncate": True}


def export_gguf(
    checkpoint: Path,
    out: Path,
    *,
    dtype: GGUFType,
    merge: Merge | None = None,
    extension: ContextExtension | None = None,
) -> Llama:
    """Write the checkpoint that `checkpoint` resolves to as `out` and `NAME.Modelfile`.

    `merge` is that of `weights.load_checkpoint`, `extension` a longer context. Returns the exported
    model. Raises UserError as `write_gguf` and `extend_untrained` do.
    """
    folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(folder, torch.device("cpu"), merge=merge)
    if extension is not None:
        extend_untrained(model, extension)
    template = load_template(folder)
    jinja_template = export_jinja_template(template, tokenizer, folder)
    write_gguf(model, tokenizer, jinja_template, out, dtype=dtype, name=out.stem, template=template)
    return model


def write_gguf(
    model: Llama,
    tokenizer: Tokenizer,
    jinja_template: str | None,
    file: Path,
    *,
    dtype: GGUFType,
    name: str,
    template: Template | None = None,
) -> None:
    """Write a GGUF file and, beside it, Ollama's `Modelfile` (`modelfile_path`).

    Args:
        model: the model, with adapters merged.
        tokenizer: its tokenizer.
        jinja_template: the chat template for llama.cpp; without one the model continues text.
        file: the path of the GGUF file.
        dtype: the type of the matrices. Norms stay f32. In q8_0, matrices whose width is not a
            multiple of 32 become f16, about which a note is printed to stderr.
        name: the name of the model that tools show.
        template: the chat template of `jinja_template`, for Ollama, which cannot read Jinja.
            Default: the project's own.

    Prints another note if the file cannot name all stop ids. Raises UserError if llama.cpp would
    encode texts as other ids than `tokenizer` does, if f16 cannot hold the weights, or if `file` or
    the Modelfile exists and is not an earlier export.
    """
    check_output_file(file)
    template = template or Template()
    vocabulary = build_vocabulary(tokenizer, model.config.vocab_size)
    tensors = _named_tensors(model)
    types = {key: _quantization_type(tensor, dtype) for key, tensor in tensors.items()}
    with atomic_file(file) as temporary:
        with _open_writer(temporary) as writer:
            _write_metadata(writer, model, dtype, name)
            unnamed_stop_ids = write_vocabulary(
                writer,
                vocabulary,
                tokenizer,
                model.config.stop_ids,
                adds_bos=bool(template.bos_ids(tokenizer)),
            )
            if jinja_template is not None:
                writer.add_chat_template(vocabulary.rename_special_tokens(jinja_template))
            # The format has all descriptions of tensors first, and then their data.
            for key, tensor in tensors.items():
                num_bytes = prod(gguf.quant_shape_to_byte_shape(tensor.shape, types[key]))
                # The type stored is the last argument. float32 only says that the shape counts
                # numbers; with uint8 it would count bytes.
                shape_dtype = np.dtype(np.float32)
                writer.add_tensor_info(key, tensor.shape, shape_dtype, num_bytes, types[key])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            # One tensor at a time, so that only one converted copy is in memory.
            for key, tensor in tensors.items():
                interleaved = _interleave_rope_rows(key, tensor, model.config)
                writer.write_tensor_data(_quantize(interleaved, types[key], key))
        # Written before the GGUF file gets its name, so that on a full disk neither is left.
        write_modelfile(
            file,
            None if jinja_template is None else template,
            eos_text=vocabulary.pieces[tokenizer.eos_id].text,
            rename_special_tokens=vocabulary.rename_special_tokens,
            context_length=model.trained_context,
        )
    _print_notes(dtype, types, unnamed_stop_ids)


def _print_notes(
    dtype: GGUFType, types: dict[str, GGMLQuantizationType], unnamed_stop_ids: list[int]
) -> None:
    """Print notes to stderr about differences between the file and the checkpoint, if any."""
    f16_tensors = [key for key, quantization in types.items() if quantization.name == "F16"]
    if dtype == "q8_0" and f16_tensors:
        print(
            f"note: {len(f16_tensors)} of {len(types)} tensors are f16: their width is not a "
            f"multiple of {_Q8_0_BLOCK}",
            file=sys.stderr,
        )
    if unnamed_stop_ids:
        print(
            "note: a GGUF file has room for three stop ids; llama.cpp stops at "
            f"{', '.join(map(str, unnamed_stop_ids))} only if it knows their names",
            file=sys.stderr,
        )


def build_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> GGUFVocabulary:
    """Build the GGUF vocabulary of any tokenizer, padded to `vocab_size` with unused pieces.

    Raises UserError if llama.cpp cannot give the same ids.
    """
    if isinstance(tokenizer, ImportedTokenizer):
        return build_imported_vocabulary(tokenizer, vocab_size)
    return build_native_vocabulary(tokenizer, vocab_size)


@contextlib.contextmanager
def _open_writer(file: Path) -> Iterator[GGUFWriter]:
    """Yield a writer whose files are closed when the block ends or raises."""
    writer = GGUFWriter(file, "llama")
    try:
        yield writer
        writer.close()
    except BaseException:
        # A file left open would write its buffer when it is garbage-collected, and that could fail
        # like the first time.
        for open_file in writer.fout or ():
            with contextlib.suppress(OSError):
                open_file.close()
        raise


def check_output_file(file: Path) -> None:
    """Raise UserError if `file` or its Modelfile exists and is not an earlier export."""
    if file.is_dir():
        raise UserError(f"--out {file} is a folder: name a file, such as {file / 'model.gguf'}")
    check_replaceable(file, expected="a GGUF file", is_earlier_export=_is_gguf)
    check_replaceable(
        modelfile_path(file),
        expected=f"the Modelfile of {file.name}",
        is_earlier_export=lambda _: is_modelfile_of(file),
    )


def _is_gguf(path: Path) -> bool:
    """Return whether a file begins as a GGUF file does."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _named_tensors(model: Llama) -> dict[str, Tensor]:
    """Return all tensors by llama.cpp's names.

    A tied head is left out, as llama.cpp expects. Raises UserError for a tensor that llama.cpp's
    Llama does not have.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tensors = {}
    for key, parameter in model.named_parameters():
        name = names.get_name(key, (".weight",))
        if name is None:
            raise UserError(
                f"{key} is not a tensor of llama.cpp's Llama: this model cannot be exported as "
                "GGUF; use --format hf"
            )
        tensors[name] = parameter.detach()
    if model.config.rope_scaling and model.config.rope_scaling["rope_type"] == "llama3":
        # llama.cpp divides each unscaled frequency by its factor in this tensor, fp32[d / 2].
        unscaled = inverse_frequencies(replace(model.config, rope_scaling=None))
        tensors["rope_freqs.weight"] = unscaled / inverse_frequencies(model.config)
    return tensors


def _quantization_type(tensor: Tensor, dtype: GGUFType) -> GGMLQuantizationType:
    """Return the type in which a tensor is stored if the file is of type `dtype`."""
    # Vectors (norms and rope factors) are small.
    if tensor.dim() < 2 or dtype == "f32":
        return GGMLQuantizationType.F32
    if dtype == "q8_0" and tensor.shape[-1] % _Q8_0_BLOCK == 0:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16


def _interleave_rope_rows(key: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    """Return a tensor with the rows of query and key heads in llama.cpp's order.

    The two halves of the rows of each head are interleaved: see the docstring of the module. `key`
    is the name of the tensor in llama.cpp.
    """
    if not key.endswith(("attn_q.weight", "attn_k.weight")):
        return tensor
    halves = tensor.view(-1, 2, config.head_dim // 2, tensor.shape[1])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _quantize(tensor: Tensor, quantization_type: GGMLQuantizationType, key: str) -> np.ndarray:
    """Return the data of a tensor as the GGUF type. Raises UserError if f16 would overflow."""
    values = tensor.float().cpu().contiguous().numpy()
    if quantization_type.name == "F16" and np.abs(values).max() > np.finfo(np.float16).max:
        raise UserError(f"{key} holds numbers that are too large for f16: export as f32")
    return quants.quantize(values, quantization_type)


def _write_metadata(writer: GGUFWriter, model: Llama, dtype: GGUFType, name: str) -> None:
    """Write the name, the type and the config of the model."""
    config = model.config
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    # llama.cpp and Ollama size their KV cache by this number: the positions that the model was
    # trained on, not max_position_embeddings.
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
    _write_rope_scaling(writer, config.rope_scaling)


def _write_rope_scaling(writer: GGUFWriter, scaling: dict[str, Any] | None) -> None:
    """Write the scaling of rotary frequencies, except `llama3`, which is a tensor.

    Raises UserError if llama.cpp does not have its parameters.
    """
    if scaling is None or scaling["rope_type"] == "llama3":
        return
    writer.add_rope_scaling_type(_ROPE_SCALING_TYPES[scaling["rope_type"]])
    writer.add_rope_scaling_factor(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return
    for key, fixed_value in _FIXED_YARN_PARAMETERS.items():
        if scaling.get(key, fixed_value) != fixed_value:
            raise UserError(
                f"rope_scaling yarn: llama.cpp computes with {key} {fixed_value}, this model has "
                f"{scaling[key]}: it cannot be exported as GGUF; use --format hf"
            )
    writer.add_rope_scaling_orig_ctx_len(round(scaling["original_max_position_embeddings"]))
    # llama.cpp multiplies by the factor that follows from that of the context, and by this number.
    default = attention_factor({"rope_type": "yarn", "factor": scaling["factor"]})
    if attention_factor(scaling) != default:
        writer.add_rope_scaling_attn_factors(attention_factor(scaling) / default)
