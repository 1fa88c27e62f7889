"""Export a checkpoint as a folder that transformers, and this project, load without custom code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, read_json, write_atomic, write_json
from model.chat_template.template import TEMPLATE_FILE, load_template
from model.chat_template.to_jinja import PRETRAINED_COMMENT, export_jinja_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.context_extension import extend_untrained
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING
from model.interop.model_card import build_model_card
from model.interop.output_path import check_replaceable
from model.lora_options import Merge
from model.rope_scaling import ContextExtension
from model.tokenizer import hf_json
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import ImportedTokenizer
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer

EXPORT_FORMAT = "babyllama-export-1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Dtype = Literal["float32", "float16", "bfloat16"]
# Sampling as in chat, except for the repetition penalties: those of transformers count the ids of
# the prompt, too, and an answer must be able to repeat names from its reference text.
_SAMPLING_DEFAULTS = {
    "do_sample": True,
    "temperature": DEFAULT_SAMPLING.temperature,
    "top_p": DEFAULT_SAMPLING.top_p,
    "top_k": DEFAULT_SAMPLING.top_k,
    "max_new_tokens": DEFAULT_MAX_NEW_TOKENS,
}


@dataclass(frozen=True)
class ExportResult:
    """The names of the weights files in an export, and the size of the model."""

    weights_files: tuple[str, ...]
    num_parameters: int
    num_bytes: int  # of all tensors


def export_hf(
    checkpoint: Path,
    out: Path,
    *,
    dtype: Dtype = "float32",
    max_shard_size: str = "5GB",
    merge: Merge | None = None,
    extension: ContextExtension | None = None,
) -> ExportResult:
    """Write the checkpoint that `checkpoint` resolves to into the folder `out`, atomically.

    `max_shard_size`, such as 200MB, is the maximum size of a weights file; `merge` is that of
    `weights.load_checkpoint`; `extension` is a longer context. Raises UserError if `out` exists and
    is not an earlier export, if weights are too large for `dtype`, or as `extend_untrained` does.
    """
    check_replaceable(out, expected="an earlier export", is_earlier_export=_is_empty_or_export)
    checkpoint_folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(checkpoint_folder, torch.device("cpu"), merge=merge)
    if extension is not None:
        extend_untrained(model, extension)
    tensors = weights.state_dict_to_save(model, DTYPES[dtype])
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"--dtype {dtype}: {name} has values that are too large for it; take bfloat16 or "
                "float32"
            )
    template = load_template(checkpoint_folder)
    jinja_template = export_jinja_template(template, tokenizer, checkpoint_folder)
    # Without a template file, as in runs that were only pretrained, `template` is the default one.
    is_conversational = (checkpoint_folder / TEMPLATE_FILE).is_file()
    if not is_conversational:
        jinja_template = PRETRAINED_COMMENT + jinja_template
    with atomic_folder(out, {"format": EXPORT_FORMAT, "exported_from": str(checkpoint)}) as folder:
        files = _save_weights(tensors, folder, max_shard_size)
        config_values = {
            **model.config.to_hf(),
            "torch_dtype": dtype,
            weights.TRAINED_LENGTH_KEY: model.trained_context,
        }
        write_json(folder / locate.CONFIG_FILE, config_values)
        write_json(folder / "generation_config.json", _build_generation_config(model.config))
        _export_tokenizer(tokenizer, folder, jinja_template, model.config.max_position_embeddings)
        # The project's own files, so that its commands load the export like any checkpoint.
        tokenizer.save(folder)
        if is_conversational:
            template.save(folder)
        card = build_model_card(
            checkpoint_folder,
            out.name,
            model,
            dtype,
            is_conversational=is_conversational,
            is_imported=isinstance(tokenizer, ImportedTokenizer),
            merge=merge,
        )
        write_atomic(folder / "README.md", card)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return ExportResult(files, model.config.num_parameters, num_bytes)


def is_export(folder: Path) -> bool:
    """Return whether a folder was written by `export_hf`."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    return isinstance(manifest, dict) and manifest.get("format") == EXPORT_FORMAT


def _is_empty_or_export(out: Path) -> bool:
    """Return whether a path is an empty folder, or one that `export_hf` wrote."""
    return out.is_dir() and (is_export(out) or not any(out.iterdir()))


def _export_tokenizer(
    tokenizer: Tokenizer, folder: Path, jinja_template: str, max_length: int
) -> None:
    """Write the tokenizer files of transformers; `max_length` is the model's, in tokens."""
    if isinstance(tokenizer, ImportedTokenizer):
        tokenizer.export(folder, jinja_template)
        return
    assert isinstance(tokenizer, SentencePieceTokenizer)
    hf_json.export_tokenizer(
        tokenizer, folder, chat_template=jinja_template, model_max_length=max_length
    )


def _save_weights(
    tensors: dict[str, torch.Tensor], folder: Path, max_shard_size: str
) -> tuple[str, ...]:
    """Write the tensors into files of at most `max_shard_size`, and return the names of the files.

    An index is added if there are several. Raises UserError if `max_shard_size` is not a size.
    """
    # Imported here because nothing else needs this module.
    from huggingface_hub import split_torch_state_dict_into_shards

    try:
        split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    except ValueError:
        raise UserError(
            f"--max_shard_size {max_shard_size}: expected a size such as 200MB or 5GB"
        ) from None
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes 0600; exports are for others to read
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / locate.WEIGHTS_INDEX_FILE, index)
    return tuple(split.filename_to_tensors)


def _build_generation_config(config: LlamaConfig) -> dict[str, Any]:
    """Return the contents of `generation_config.json`: special ids, and defaults of sampling."""
    # One id or a list of ids, as in config.json.
    hf_config = config.to_hf()
    return {
        "bos_token_id": hf_config["bos_token_id"],
        "eos_token_id": hf_config["eos_token_id"],
        # Llama has no padding token, and batched generation pads finished rows.
        "pad_token_id": config.eos_token_id,
        **_SAMPLING_DEFAULTS,
    }
