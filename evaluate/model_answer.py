"""An answer of a model, as all measures see it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """An answer of a model."""

    text: str
    num_tokens: int
    has_eos: bool  # whether it ended by <eos>, rather than at the maximum length
    is_truncated: bool = False  # whether the prompt has only the beginning of the article
