"""Measure a model beyond the length that it was trained on."""

from dataclasses import replace

from model.llama import Llama, RotaryEmbedding


def allow_positions(model: Llama, num_positions: int) -> None:
    """Make a model accept `num_positions` positions, if its config allows fewer.

    The angles of its rotary embedding stay as they are; there are only more of them.
    """
    if num_positions > model.config.max_position_embeddings:
        model.config = replace(model.config, max_position_embeddings=num_positions)
        device = model.model.norm.weight.device
        model.model.rotary = RotaryEmbedding(model.config).to(device)


def warn_of_untrained_length(model: Llama, length: int) -> None:
    """Print a warning if texts of `length` tokens are longer than those of the training."""
    if length > model.trained_context:
        print(
            f"warning: texts of up to {length:,} tokens, but the model was trained on "
            f"{model.trained_context:,}: what it does with longer ones it has not learned",
            flush=True,
        )
