"""Load and save the weights, shape and tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import MANIFEST, read_json, write_json
from model.checkpoint import adapters
from model.checkpoint.locate import CONFIG_FILE, WEIGHTS_FILE, adapter_chain, weights_files
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# What config.json says besides what transformers knows: tokens of the rows that the model was trained on.
TRAINED_LENGTH_KEY = "trained_length"


def save_checkpoint(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, shape and tokenizer into an existing folder."""
    save_weights(model, folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer into an existing folder."""
    tokenizer.save(folder)


def save_weights(model: Llama, folder: Path) -> None:
    """Write shape and weights into an existing folder; of a model that trains an adapter, the adapter instead of them."""
    if model.adapter is not None:
        adapters.save_adapter(model, folder)
    else:
        save_file(state_dict_to_save(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(
        folder / CONFIG_FILE, {**model.config.to_hf(), TRAINED_LENGTH_KEY: model.trained_context}
    )


def state_dict_to_save(model: Llama, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The weights by name as files hold them, in `dtype` (default: as they are); a tied head is left out."""
    state = {
        name: tensor.detach().to(dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def load_checkpoint(path: Path, device: torch.device) -> tuple[Llama, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer of a checkpoint. UserError if they do not fit together."""
    folder, *adapter_folders = adapter_chain(path)
    if (folder / "tokenizer.json").is_file() and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} comes from elsewhere: make a run of it with python -m model.import_hf {folder} "
            "--run runs/NAME"
        )
    config_values = read_json(folder / CONFIG_FILE)
    config = LlamaConfig.from_hf(config_values, str(folder / CONFIG_FILE))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces, the model {config.vocab_size}"
        )
    model = load_model(folder, config, device, config_values)
    for adapter in adapter_folders:
        adapters.merge_adapter(model, adapter)
        if (adapter / CONFIG_FILE).is_file():
            _apply_trained_length(model, read_json(adapter / CONFIG_FILE))
    return model, tokenizer


def load_model(
    folder: Path,
    config: LlamaConfig,
    device: torch.device,
    config_values: dict[str, Any],
    *,
    ignore_suffix: str | None = None,
) -> Llama:
    """A model of this shape, in evaluation mode, with a folder's weights (see `load_weights`), all finite numbers.

    `config_values` is what its `config.json` says.
    """
    _check_weights(folder, config)
    with device:
        model = Llama(config)
    _apply_trained_length(model, config_values)
    load_weights(model, folder, ignore_suffix=ignore_suffix)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{folder}: {name} holds values that are no finite numbers: the file is damaged"
            )
    return model.eval()


def _apply_trained_length(model: Llama, config_values: Any) -> None:
    """Set a model's context to the length that its `config.json` says it was trained on."""
    trained = config_values.get(TRAINED_LENGTH_KEY) if isinstance(config_values, dict) else None
    if isinstance(trained, int) and 0 < trained < model.trained_context:
        model.trained_context = trained


def _check_weights(folder: Path, config: LlamaConfig) -> None:
    """UserError before anything is built, where the shape is more than the machine has or than the weights files hold."""
    config.check_memory(str(folder / CONFIG_FILE))
    num_tensors = 0
    for path in weights_files(folder):
        try:
            with safe_open(path, "pt") as file:
                num_tensors += len(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    expected = 9 * config.num_hidden_layers + 3 - config.tie_word_embeddings
    if num_tensors < expected:
        raise UserError(
            f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: it holds {num_tensors:,} tensors, and a Llama of "
            f"{config.num_hidden_layers:,} layers has {expected:,}"
        )


def load_weights(model: Llama, folder: Path, *, ignore_suffix: str | None = None) -> None:
    """Fill a model, or the adapter that it trains, from a checkpoint folder; tensors named `…ignore` are left out.

    UserError if names or shapes differ.
    """
    if model.adapter is not None:
        adapters.load_adapter(model, folder)
        return
    state: dict[str, torch.Tensor] = {}
    for file in weights_files(folder):
        try:
            state |= {
                name: each
                for name, each in load_file(file).items()
                if not (ignore_suffix and name.endswith(ignore_suffix))
            }
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.lm_head.weight = model.model.embed_tokens.weight
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{weights_files(folder)[0]} does not fit its {CONFIG_FILE}: {' '.join(str(error).split())[:300]}"
        ) from None
