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
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import atomic_file
from model.chat_template.template import Template, load_template
from model.chat_template.to_jinja import export_jinja_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.interop.gguf.imported_vocab import build_imported_vocabulary
from model.interop.gguf.ollama import is_modelfile_of, modelfile_path, write_modelfile
from model.interop.gguf.vocab import GGUFVocabulary, build_native_vocabulary, write_vocabulary
from model.interop.output_path import check_replaceable
from model.llama import Llama, inverse_frequencies
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import ImportedTokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

GGUFType = Literal["f32", "f16", "q8_0"]
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
_Q8_0_BLOCK = 32  # numbers that share one scale
_MAGIC = b"GGUF"


def export_gguf(checkpoint: Path, out: Path, *, dtype: GGUFType) -> Llama:
    """Write the checkpoint that `checkpoint` resolves to as `out` and `NAME.Modelfile`.

    Returns the exported model. Raises UserError as `write_gguf` does.
    """
    folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(folder, torch.device("cpu"))
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
    """Write `file` and, beside it, Ollama's `Modelfile` (`modelfile_path`).

    `dtype` is that of the matrices; norms stay f32, and in q8_0 a matrix whose width is not a
    multiple of 32 becomes f16, which a note on stderr says. `name` is shown by tools. Without a
    `jinja_template` the model continues text. `template` is the same conversation format for
    Ollama, which cannot read Jinja (default: the project's own). Tensors are converted one at a
    time. Raises UserError if llama.cpp would give other ids, if f16 cannot hold the weights, or if
    `file` or the Modelfile exists and is not an earlier export.
    """
    import gguf

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
            for key, tensor in tensors.items():
                size = prod(gguf.quant_shape_to_byte_shape(tensor.shape, types[key]))
                writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), size, types[key])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key, tensor in tensors.items():
                rows = _interleave_rope_rows(key, tensor, model.config)
                writer.write_tensor_data(_quantize(rows, types[key], key))
        # Before the GGUF file is renamed: on a full disk neither of the two is left.
        write_modelfile(
            file,
            None if jinja_template is None else template,
            eos_text=vocabulary.pieces[tokenizer.eos_id].text,
            rename_special_tokens=vocabulary.rename_special_tokens,
            context_length=model.trained_context,
        )
    _print_notes(dtype, types, unnamed_stop_ids)


def _print_notes(
    dtype: GGUFType, types: dict[str, "GGMLQuantizationType"], unnamed_stop_ids: list[int]
) -> None:
    """Print on stderr what the file has differently from the checkpoint."""
    f16_tensors = [key for key, quantization in types.items() if quantization.name == "F16"]
    if dtype == "q8_0" and f16_tensors:
        print(
            f"note: {len(f16_tensors)} of {len(types)} tensors are f16: their width is not a "
            f"multiple of {_Q8_0_BLOCK}",
            file=sys.stderr,
        )
    if unnamed_stop_ids:
        print(
            "note: a GGUF file names three stop ids; llama.cpp stops at "
            f"{', '.join(map(str, unnamed_stop_ids))} only where it knows their names",
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
def _open_writer(file: Path) -> Iterator["GGUFWriter"]:
    """Yield a writer whose files are closed when the block ends or raises."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    try:
        yield writer
        writer.close()
    except BaseException:
        # A file left open would try to write its buffer again when it is collected.
        for opened in writer.fout or ():
            with contextlib.suppress(OSError):
                opened.close()
        raise


def check_output_file(file: Path) -> None:
    """Check that writing `file` and its Modelfile replaces nothing but an earlier export.

    Raises UserError otherwise.
    """
    if file.is_dir():
        raise UserError(f"--out {file} is a folder: name a file, such as {file / 'model.gguf'}")
    check_replaceable(file, "a GGUF file", _is_gguf)
    check_replaceable(
        modelfile_path(file), f"the Modelfile of {file.name}", lambda _: is_modelfile_of(file)
    )


def _is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _named_tensors(model: Llama) -> dict[str, Tensor]:
    """Return all tensors by llama.cpp's names; a tied head is left out, as llama.cpp expects."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tensors = {}
    for key, parameter in model.named_parameters():
        name = names.get_name(key, (".weight",))
        if name is None:
            raise ValueError(f"{key} is not a weight of a Llama: merge adapters before export")
        tensors[name] = parameter.detach()
    if model.config.rope_scaling and model.config.rope_scaling["rope_type"] == "llama3":
        # llama.cpp divides each unscaled frequency by its factor.
        unscaled = inverse_frequencies(replace(model.config, rope_scaling=None))
        tensors["rope_freqs.weight"] = unscaled / inverse_frequencies(model.config)
    return tensors


def _quantization_type(tensor: Tensor, dtype: GGUFType) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    if tensor.dim() < 2 or dtype == "f32":
        return GGMLQuantizationType.F32
    if dtype == "q8_0" and tensor.shape[-1] % _Q8_0_BLOCK == 0:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16


def _interleave_rope_rows(key: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    """Return query and key rows in llama.cpp's order: the two halves of a head, interleaved."""
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
    # llama.cpp and Ollama size their KV cache by this: the positions that the model was trained
    # on, not all that it has angles for.
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
