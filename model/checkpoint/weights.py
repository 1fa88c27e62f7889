"""Load and save the weights, config and tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import read_json, write_json
from model import nf4
from model.bitsandbytes import require_bitsandbytes
from model.checkpoint import adapters
from model.checkpoint.locate import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_chain,
    check_is_imported,
    weights_files,
)
from model.config import LlamaConfig
from model.llama import Llama
from model.lora_options import Merge
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

# Our key in config.json: the row length, in tokens, that the model was trained with.
TRAINED_LENGTH_KEY = "trained_length"


def save_checkpoint(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights (or an adapter), config and tokenizer into an existing folder."""
    save_weights(model, folder)
    tokenizer.save(folder)


def save_weights(model: Llama, folder: Path) -> None:
    """Write the config and the weights into an existing folder.

    If an adapter is attached to the model, it is written instead of the frozen weights.
    """
    if model.adapter is not None:
        adapters.save_adapter(model, folder)
    else:
        save_file(state_dict_to_save(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config_values = {**model.config.to_hf(), TRAINED_LENGTH_KEY: model.trained_context}
    write_json(folder / CONFIG_FILE, config_values)


def state_dict_to_save(model: Llama, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the weights by name, in `dtype` (default: unchanged).

    A tied head is left out: it is the embedding, and safetensors refuses tensors that share memory.
    """
    state = {
        name: tensor.detach().to(dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def load_checkpoint(
    path: Path, device: torch.device, *, merge: Merge | None = None
) -> tuple[Llama, Tokenizer]:
    """Load the model, in evaluation mode, and the tokenizer of a checkpoint; merge adapters.

    An adapter that was trained beside 4-bit weights is merged into these, dequantized, which is the
    default, or into the `original` ones, beside which it computes something else than in training.
    Raises UserError if files are missing or damaged, or do not fit together, or if `merge` is given
    for a checkpoint without such an adapter.
    """
    folder, *adapter_folders = adapter_chain(path)
    if merge is not None and not any(map(adapters.base_quantization, adapter_folders)):
        raise UserError(
            f"--merge {merge}: {path} has no adapter that was trained beside 4-bit weights: leave "
            "it out"
        )
    config, config_values, tokenizer = read_config_and_tokenizer(folder)
    model = load_model(folder, config, device, config_values)
    set_unused_ids(model, tokenizer)
    for adapter in adapter_folders:
        if adapters.base_quantization(adapter) is not None and merge != "original":
            _round_to_nf4(model, adapter)
        adapters.merge_adapter(model, adapter)
        apply_adapter_context(model, adapter)
    return model, tokenizer


@torch.no_grad()
def _round_to_nf4(model: Llama, adapter: Path) -> None:
    """Round the weights that were 4-bit ones when `adapter` was trained, in place."""
    require_bitsandbytes(f"{adapter}: was trained beside 4-bit weights, and to have them again")
    for name, parameter in model.named_parameters():
        if nf4.is_quantizable(name):
            parameter.copy_(nf4.round_to_nf4(parameter))


def read_config_and_tokenizer(folder: Path) -> tuple[LlamaConfig, dict[str, Any], Tokenizer]:
    """Return the config of a checkpoint folder, the contents of its file, and the tokenizer.

    Raises UserError if they do not fit together.
    """
    check_is_imported(folder)
    config_values = read_json(folder / CONFIG_FILE)
    config = LlamaConfig.from_hf(config_values, str(folder / CONFIG_FILE))
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids and the model "
            f"{config.vocab_size}: they do not belong together"
        )
    return config, config_values, tokenizer


def load_model(
    folder: Path,
    config: LlamaConfig,
    device: torch.device,
    config_values: dict[str, Any],
    *,
    ignore_suffix: str | None = None,
) -> Llama:
    """Return a model of `config` with the weights of a folder, in evaluation mode.

    `config_values` is the content of the folder's `config.json`, which also has the trained length.
    Tensors whose names end with `ignore_suffix` are skipped. Raises UserError if the weights do not
    fit, are not finite or need more memory than the machine has.
    """
    config.check_memory(str(folder / CONFIG_FILE))
    check_tensor_count(folder, config)
    # Parameters are allocated on `device` at once, not on the CPU first.
    with device:
        model = Llama(config)
    apply_trained_length(model, config_values)
    load_weights(model, folder, ignore_suffix=ignore_suffix)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{folder}: {name} holds values that are not finite: it is damaged")
    return model.eval()


def set_unused_ids(model: Llama, tokenizer: Tokenizer) -> None:
    """Set the ids of a model that stand for no token of its tokenizer."""
    # An imported model may end its answers with an id that its tokenizer does not have.
    stop_ids = model.config.stop_ids
    ids = tokenizer.find_ids_without_token(model.config.vocab_size)
    model.unused_ids = tuple(token_id for token_id in ids if token_id not in stop_ids)


def apply_adapter_context(model: Llama, adapter: Path) -> None:
    """Take over the positions, their frequencies and the trained length of an adapter, if recorded.

    Training an adapter can extend the context of its base. PEFT records none of these.
    """
    file = adapter / CONFIG_FILE
    config_values = read_json(file) if file.is_file() else None
    if not isinstance(config_values, dict) or TRAINED_LENGTH_KEY not in config_values:
        return
    config = LlamaConfig.from_hf(config_values, str(file))
    config.check_memory(str(file))
    model.set_context(config)
    model.trained_context = read_trained_length(config_values, config)


def limit_trained_context(model: Llama, folder: Path) -> None:
    """Lower a model's `trained_context` to the recorded length of another checkpoint, if any."""
    if (folder / CONFIG_FILE).is_file():
        apply_trained_length(model, read_json(folder / CONFIG_FILE))


def apply_trained_length(model: Llama, config_values: Any) -> None:
    """Lower a model's `trained_context` to the trained length in its `config.json`, if any."""
    length = read_trained_length(config_values, model.config)
    model.trained_context = min(length, model.trained_context)


def read_trained_length(config_values: Any, config: LlamaConfig) -> int:
    """Return the length in tokens of the rows that a model was trained with.

    It is in the contents of its `config.json`; without an entry it is the whole context.
    """
    length = config_values.get(TRAINED_LENGTH_KEY) if isinstance(config_values, dict) else None
    if isinstance(length, int) and 0 < length < config.max_position_embeddings:
        return length
    return config.max_position_embeddings


def check_tensor_count(folder: Path, config: LlamaConfig) -> None:
    """Raise UserError if the model has more tensors than the files.

    This runs before the model is built, because an untrusted config.json can ask for any number of
    layers.
    """
    num_tensors = 0
    files = weights_files(folder)
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                num_tensors += len(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    if num_tensors < config.num_tensors:
        raise UserError(
            f"{files[0] if len(files) == 1 else folder} does not fit its {CONFIG_FILE}: it holds "
            f"{num_tensors:,} "
            f"tensors, and a Llama of {config.num_hidden_layers:,} layers has "
            f"{config.num_tensors:,}"
        )


def load_weights(model: Llama, folder: Path, *, ignore_suffix: str | None = None) -> None:
    """Load a folder's weights into a model or, if an adapter is attached, its adapter into that.

    Tensors whose names end with `ignore_suffix` are skipped. Raises UserError if names or shapes of
    tensors differ.
    """
    if model.adapter is not None:
        adapters.load_adapter(model, folder)
        return
    state: dict[str, torch.Tensor] = {}
    for file in weights_files(folder):
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
    if ignore_suffix:
        state = {name: value for name, value in state.items() if not name.endswith(ignore_suffix)}
    # A tied head is not stored: it is the embedding.
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.lm_head.weight = model.model.embed_tokens.weight
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(str(error).split())[:300]
        raise UserError(
            f"{weights_files(folder)[0]} does not fit its {CONFIG_FILE}: {details}"
        ) from None
