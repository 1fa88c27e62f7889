"""Resolve the config of the model that a run trains."""

from typing import Any

from common.errors import UserError
from common.files import read_json
from model.checkpoint.locate import CONFIG_FILE
from model.config import LlamaConfig, config_from_preset, with_tokenizer_ids
from model.tokenizer.base import Tokenizer
from train.options import ModelOptions
from train.run.initial_checkpoint import InitialCheckpoint


def resolve_model_config(
    options: ModelOptions, base: InitialCheckpoint, tokenizer: Tokenizer, min_context: int
) -> LlamaConfig:
    """Return the config of the base or, without a base, the one of the options under `model`.

    Raises UserError if the context is shorter than `min_context` tokens.
    """
    if base.folder is not None:
        assert base.config_folder is not None
        file = base.config_folder / CONFIG_FILE
        config = LlamaConfig.from_hf(read_json(file), str(file))
        setting = f"{file}: max_position_embeddings"
    else:
        # On resume too, so that options that have changed show as a difference from run.json.
        config = _build_model_config(options, tokenizer)
        setting = "--model.max_position_embeddings"
    if config.max_position_embeddings < min_context:
        raise UserError(
            f"{setting} {config.max_position_embeddings} is shorter than the {min_context} tokens "
            "of a row or an evaluation window: use a shorter --sequence_length, or another model"
        )
    return config


def _build_model_config(options: ModelOptions, tokenizer: Tokenizer) -> LlamaConfig:
    """Return a preset's config with the changes of the options.

    The vocabulary size and the bos and eos ids are those of the tokenizer. Raises UserError if no
    model can have this config, or if a model of this size does not fit in memory.
    """
    overrides: dict[str, Any] = options.preset_overrides()
    config = config_from_preset(options.preset, tokenizer.vocab_size, **overrides)
    config.check_memory(f"--model.preset {options.preset} and its changes")
    return with_tokenizer_ids(config, tokenizer.bos_id, tokenizer.eos_id)
