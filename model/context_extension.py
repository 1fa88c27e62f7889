"""Extend the context of a model that was trained with shorter texts, by scaling its frequencies."""

from dataclasses import replace

from common.errors import UserError
from model.config import LlamaConfig
from model.llama import Llama
from model.rope_scaling import (
    ContextExtension,
    ExtensionType,
    make_rope_scaling,
    unscaled_length,
)


def extend_config(
    config: LlamaConfig,
    trained_length: int,
    extension: ExtensionType,
    context: int,
    *,
    factor: float | None = None,
    option: str,
) -> LlamaConfig:
    """Return the config of a model with a context of `context` tokens or, with a factor, of others.

    `trained_length` is the length of the rows that the model was trained with. Frequencies are
    scaled by `factor`, by default the context in lengths of training before the first extension.
    Raises UserError, beginning with `option`, if the context would not become longer, or if its
    positions do not fit in memory.
    """
    scaling = config.rope_scaling
    if extension == "none":
        if scaling is not None:
            raise UserError(
                f"{option}: the model was trained with {scaling['rope_type']} scaling, which its "
                "weights need: leave the option out, or scale further"
            )
        extended = replace(
            config, max_position_embeddings=max(config.max_position_embeddings, context)
        )
    else:
        length = unscaled_length(
            scaling, context=config.max_position_embeddings, trained_length=trained_length
        )
        factor = factor or context / length
        if factor <= 1:
            raise UserError(
                f"{option}: {context:,} tokens are not more than the {length:,} that the model was "
                "trained with before: extend it to more, or leave the option out"
            )
        context = round(factor * length)
        if scaling is not None and context < config.max_position_embeddings:
            raise UserError(
                f"{option}: the context would be {context:,} tokens, and the model has "
                f"{config.max_position_embeddings:,} already: leave the option out"
            )
        extended = replace(
            config,
            max_position_embeddings=context,
            rope_scaling=make_rope_scaling(extension, factor, length),
            # They find positions by the frequencies, and have to learn the new ones.
            reading_heads=False,
        )
    extended.check_memory(option)
    return extended


def extend_untrained(model: Llama, extension: ContextExtension) -> None:
    """Extend the context of a model, which then counts as trained with as many tokens.

    Raises UserError as `extend_config` does, for the options of `python -m model.export`.
    """
    option = f"--rope_scaling {extension.type} --context {extension.context}"
    if extension.context <= model.trained_context:
        raise UserError(
            f"{option}: the model was trained with {model.trained_context:,} tokens: extend it to "
            "more, or leave the options out"
        )
    model.set_context(extend_config(model.config, model.trained_context, *extension, option=option))
    model.trained_context = extension.context
