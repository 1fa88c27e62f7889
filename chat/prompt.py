"""Fit a conversation into the model's context."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class PromptTooLongError(Exception):
    """Even the shortest prompt for a question exceeds the budget."""

    def __init__(self, num_tokens: int, prompt_budget: int) -> None:
        super().__init__(f"the prompt has {num_tokens} tokens, the limit is {prompt_budget}")
        self.num_tokens = num_tokens
        self.prompt_budget = prompt_budget


@dataclass(frozen=True)
class FittedPrompt:
    """The ids of a prompt, and how much had to be left out to fit them into the budget."""

    ids: list[int]
    num_dropped_turns: int  # number of oldest turns that are not in the prompt
    num_reference_characters: int  # length of the beginning of the reference that is in the prompt


def fit_prompt(
    tokenizer: Tokenizer,
    template: Template,
    turns: Sequence[tuple[str, str]],
    question: str,
    reference: str,
    prompt_budget: int,
    *,
    truncate_reference: bool,
    system: str = "",
) -> FittedPrompt:
    """Return the prompt for `question` after `turns`, in at most `prompt_budget` ids.

    `system` is an instruction to the assistant, or empty, and is never truncated. Drops the oldest
    (question, answer) turns first, then, with `truncate_reference`, the end of the reference.
    Raises PromptTooLongError if the rest does not fit.
    """

    def encode(num_turns: int, reference_length: int) -> list[int]:
        # Not turns[-num_turns:], which would be all turns for 0.
        newest_turns = turns[len(turns) - num_turns :]
        visible_reference = reference[:reference_length]
        return template.encode_prompt(tokenizer, newest_turns, question, visible_reference, system)

    num_turns = _largest_fitting(
        len(turns),
        prompt_budget,
        lambda num_kept_turns: len(encode(num_kept_turns, len(reference))),
    )
    reference_length = len(reference)
    if num_turns == 0 and truncate_reference:
        reference_length = _largest_fitting(
            len(reference),
            prompt_budget,
            lambda num_characters: len(encode(0, num_characters)),
        )
    ids = encode(num_turns, reference_length)
    if len(ids) > prompt_budget:
        raise PromptTooLongError(len(ids), prompt_budget)
    return FittedPrompt(ids, len(turns) - num_turns, reference_length)


def _largest_fitting(maximum: int, budget: int, num_tokens: Callable[[int], int]) -> int:
    """Return the largest n from 0 to `maximum` with num_tokens(n) <= budget, or 0 if none fits.

    A binary search, which assumes that `num_tokens` does not decrease.
    """
    if num_tokens(maximum) <= budget:  # the usual case, at the price of one encoding
        return maximum
    # bisect_right returns the first n of the range that exceeds the budget.
    first_exceeding = bisect.bisect_right(range(maximum), budget, key=num_tokens)
    return max(0, first_exceeding - 1)
