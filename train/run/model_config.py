"""Resolve the config of the model that a run trains."""

from typing import Any

from common.errors import UserError
from common.files import read_json
from model.checkpoint.locate import CONFIG_FILE
from model.checkpoint.weights import read_trained_length
from model.config import LlamaConfig, config_from_preset, with_tokenizer_ids
from model.context_extension import extend_config
from model.tokenizer.base import Tokenizer
from train.options import ModelOptions
from train.run.initial_checkpoint import InitialCheckpoint


def resolve_model_config(
    options: ModelOptions,
    base: InitialCheckpoint,
    tokenizer: Tokenizer,
    sequence_length: int,
    window: int = 0,
) -> LlamaConfig:
    """Return the config of the base or, without a base, the one of the options under `model`.

    `--model.rope_scaling` extends the context of the base. Raises UserError if that is impossible,
    or if the context is shorter than the rows of `sequence_length` tokens, or than `window`, the
    tokens that evaluations score together.
    """
    min_context = max(sequence_length, window)
    if base.folder is not None:
        config = _extend_context(options, base, sequence_length, min_context)
        setting = f"{base.config_folder}/{CONFIG_FILE}: max_position_embeddings"
        remedy = (
            "extend the context of the model: make pretrain or sft with --model.rope_scaling yarn "
            "(docs/long-context.md)"
        )
    elif options.rope_scaling is None:
        # On resume too, so that options that have changed show as a difference from run.json.
        config = _build_model_config(options, tokenizer)
        setting, remedy = "--model.max_position_embeddings", "raise it"
    else:
        raise UserError(
            f"--model.rope_scaling {options.rope_scaling}: extends the context of a --base, and "
            "there is none: leave it out, a new model learns the positions of its rows without"
        )
    if config.max_position_embeddings < min_context:
        raise UserError(
            f"{setting} {config.max_position_embeddings} is shorter than the {min_context} tokens "
            f"of a row or an evaluation window: use a shorter --sequence_length, or {remedy}"
        )
    return config


def read_base_config(base: InitialCheckpoint) -> tuple[LlamaConfig, int]:
    """Return the config of the model that a run starts from, and the length it was trained with.

    On resume it is the run's own.
    """
    assert base.config_folder is not None
    file = base.config_folder / CONFIG_FILE
    values = read_json(file)
    config = LlamaConfig.from_hf(values, str(file))
    return config, read_trained_length(values, config)


def _extend_context(
    options: ModelOptions, base: InitialCheckpoint, sequence_length: int, min_context: int
) -> LlamaConfig:
    """Return the config of the base with the context that the options ask for.

    On resume the run's own checkpoint has that already: the result is the same. Raises UserError if
    the context would not become longer, or not long enough.
    """
    config, trained_length = read_base_config(base)
    if options.rope_scaling is None:
        return config
    is_scaled = options.rope_scaling != "none"
    extended = extend_config(
        config,
        trained_length,
        options.rope_scaling,
        sequence_length if is_scaled else min_context,
        factor=options.rope_factor,
        option=f"--model.rope_scaling {options.rope_scaling}",
    )
    context = extended.max_position_embeddings
    if is_scaled and context < sequence_length:
        raise UserError(
            f"--model.rope_factor {options.rope_factor:g}: the context would be {context:,} "
            f"tokens, fewer than the {sequence_length:,} of a row: raise it, or leave it out"
        )
    return extended


def _build_model_config(options: ModelOptions, tokenizer: Tokenizer) -> LlamaConfig:
    """Return a preset's config with the changes of the options.

    The vocabulary size and the bos and eos ids are those of the tokenizer. Raises UserError if no
    model can have this config, or if a model of this size does not fit in memory.
    """
    overrides: dict[str, Any] = options.preset_overrides()
    config = config_from_preset(options.preset, tokenizer.vocab_size, **overrides)
    config.check_memory(f"--model.preset {options.preset} and its changes")
    return with_tokenizer_ids(config, tokenizer.bos_id, tokenizer.eos_id)
