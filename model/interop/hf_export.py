"""A checkpoint as a folder that transformers loads without code of ours, and that this project loads again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, read_json, write_atomic, write_json
from model.chat_template.template import TEMPLATE_FILE as TEMPLATE_FILE
from model.chat_template.template import Template
from model.chat_template.to_jinja import build_jinja_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLING
from model.interop.model_card import build_model_card
from model.tokenizer import hf_json
from model.tokenizer.imported import ImportedTokenizer

EXPORT_FORMAT = "babyllama-export-1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Dtype = Literal["float32", "float16", "bfloat16"]
# How chat draws its answers. Its penalties are left out: elsewhere they would count the prompt too, and an answer may say
# what its reference says.
_SAMPLING_DEFAULTS = {
    "do_sample": True,
    "temperature": DEFAULT_SAMPLING.temperature,
    "top_p": DEFAULT_SAMPLING.top_p,
    "top_k": DEFAULT_SAMPLING.top_k,
    "max_new_tokens": DEFAULT_MAX_NEW_TOKENS,
}


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    weights_files: tuple[str, ...]
    """Of weights."""
    num_parameters: int
    num_bytes: int


def export_hf(
    checkpoint: Path, out: Path, *, dtype: Dtype = "float32", max_shard_size: str = "5GB"
) -> ExportResult:
    """Write the checkpoint that `checkpoint` stands for into the folder `out`, whole or not at all.

    `max_shard_size` is the most bytes of a file of weights, in words such as 200MB. UserError if `out` is there and no
    earlier export, or if `dtype` cannot hold the weights.
    """
    check_output_folder(out)
    checkpoint_folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(checkpoint_folder, torch.device("cpu"))
    tensors = weights.state_dict_to_save(model, DTYPES[dtype])
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"--dtype {dtype}: {name} has values that are too large for it; take bfloat16 or float32"
            )
    template, is_conversational = (
        Template.load(checkpoint_folder),
        (checkpoint_folder / TEMPLATE_FILE).is_file(),
    )
    with atomic_folder(out, {"format": EXPORT_FORMAT, "exported_from": str(checkpoint)}) as folder:
        files = _save_weights(tensors, folder, max_shard_size)
        write_json(
            folder / locate.CONFIG_FILE,
            {
                **model.config.to_hf(),
                "torch_dtype": dtype,
                weights.TRAINED_LENGTH_KEY: model.trained_context,
            },
        )
        write_json(folder / "generation_config.json", _build_generation_config(model.config))
        if isinstance(tokenizer, ImportedTokenizer):
            # Its own chat template, if there is one, says what the imported words say.
            tokenizer.export(
                folder, None if tokenizer.template_fields else build_jinja_template(template)
            )
        else:
            hf_json.export_tokenizer(
                tokenizer,
                folder,
                chat_template=build_jinja_template(template),
                model_max_length=model.config.max_position_embeddings,
            )
        weights.save_tokenizer(tokenizer, folder)
        if is_conversational:
            template.save(folder)
        write_atomic(
            folder / "README.md",
            build_model_card(
                checkpoint_folder,
                out.name,
                model,
                dtype,
                is_conversational=is_conversational,
                is_imported=isinstance(tokenizer, ImportedTokenizer),
            ),
        )
    return ExportResult(
        files, model.config.num_parameters, sum(tensor.nbytes for tensor in tensors.values())
    )


def check_output_folder(out: Path) -> None:
    """UserError if `out` is there and neither empty nor an earlier export."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_export(out))):
        raise UserError(f"--out {out} exists and is no earlier export: name another folder")


def is_export(folder: Path) -> bool:
    """Whether a folder was written by `export_hf`."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    return isinstance(manifest, dict) and manifest.get("format") == EXPORT_FORMAT


def _save_weights(
    weights: dict[str, torch.Tensor], folder: Path, max_shard_size: str
) -> tuple[str, ...]:
    from huggingface_hub import split_torch_state_dict_into_shards

    try:
        split = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    except ValueError:
        raise UserError(
            f"--max_shard_size {max_shard_size}: expected a size such as 200MB or 5GB"
        ) from None
    for file, names in split.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # what is exported is for others to read
    if split.is_sharded:
        write_json(
            folder / locate.WEIGHTS_INDEX_FILE,
            {"metadata": split.metadata, "weight_map": split.tensor_to_filename},
        )
    return tuple(split.filename_to_tensors)


def _build_generation_config(config: LlamaConfig) -> dict[str, Any]:
    # Llama has no id for padding; generation wants one to fill rows that are over with.
    ids = {key: config.to_hf()[key] for key in ("bos_token_id", "eos_token_id")}
    return {**ids, "pad_token_id": config.eos_token_id, **_SAMPLING_DEFAULTS}
