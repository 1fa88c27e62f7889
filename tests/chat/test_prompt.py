"""The ids of a prompt, and what is dropped if it is too long."""

import pytest

from chat.prompt import PromptTooLongError, fit_prompt
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

REFERENCE = "青禾镇在河边，镇上的人都会划船。" * 8
QUESTION = "为什么？"
SYSTEM = "你是一名船夫。"
TURNS = [(f"第{n}问，" + "很长" * (n % 4) + "？", f"这是第{n}个回答。") for n in range(12)]


def encode(
    tokenizer: Tokenizer, turns: list[tuple[str, str]], reference: str, system: str = ""
) -> list[int]:
    return Template().encode_prompt(tokenizer, turns, QUESTION, reference, system)


@pytest.mark.parametrize("truncate_reference", [False, True])
def test_prompt_matches_template(tokenizer: Tokenizer, truncate_reference: bool) -> None:
    """Prevents a prompt in chat that differs from those in training."""
    prompt = fit_prompt(
        tokenizer,
        Template(),
        TURNS,
        QUESTION,
        REFERENCE,
        1000,
        truncate_reference=truncate_reference,
    )
    assert prompt.ids == encode(tokenizer, TURNS, REFERENCE)
    assert (prompt.num_dropped_turns, prompt.num_reference_characters) == (0, len(REFERENCE))


@pytest.mark.slow
@pytest.mark.parametrize("truncate_reference", [False, True])
def test_only_as_many_oldest_turns_as_necessary_are_dropped(
    tokenizer: Tokenizer, truncate_reference: bool
) -> None:
    """Prevents a full context that loses reference, system text, newest turns, or too many."""
    for num_dropped in range(len(TURNS) + 1):
        ids = encode(tokenizer, TURNS[num_dropped:], REFERENCE, SYSTEM)
        for budget in (len(ids), len(ids) + 1):
            prompt = fit_prompt(
                tokenizer,
                Template(),
                TURNS,
                QUESTION,
                REFERENCE,
                budget,
                truncate_reference=truncate_reference,
                system=SYSTEM,
            )
            assert prompt.ids == ids and prompt.num_dropped_turns == num_dropped
            assert prompt.num_reference_characters == len(REFERENCE)


def test_long_reference_is_truncated_at_its_end(tokenizer: Tokenizer) -> None:
    """Prevents a long reference that displaces the question, or a cut larger than necessary."""
    reference = "青禾镇在河边，镇上的人都会划船，会做灯笼，也会讲故事。" * 20
    full_length = len(encode(tokenizer, [], reference))
    for budget in (40, 100, full_length - 1):
        prompt = fit_prompt(
            tokenizer, Template(), TURNS, QUESTION, reference, budget, truncate_reference=True
        )
        visible_reference = reference[: prompt.num_reference_characters]
        assert prompt.ids == encode(tokenizer, [], visible_reference)
        assert 0 < len(visible_reference) < len(reference)
        assert budget - 2 <= len(prompt.ids) <= budget
        assert prompt.num_dropped_turns == len(TURNS)


@pytest.mark.parametrize(
    ("reference", "question", "truncate_reference"),
    [(REFERENCE, QUESTION, False), (REFERENCE, QUESTION * 60, True), ("", QUESTION * 60, False)],
)
def test_prompt_that_cannot_fit_is_refused(
    tokenizer: Tokenizer, reference: str, question: str, truncate_reference: bool
) -> None:
    """Prevents a prompt longer than the context, or half a question."""
    with pytest.raises(PromptTooLongError) as refused:
        fit_prompt(
            tokenizer,
            Template(),
            TURNS,
            question,
            reference,
            40,
            truncate_reference=truncate_reference,
        )
    visible_reference = "" if truncate_reference else reference
    shortest = Template().encode_prompt(tokenizer, [], question, visible_reference)
    assert (refused.value.num_tokens, refused.value.prompt_budget) == (len(shortest), 40)
