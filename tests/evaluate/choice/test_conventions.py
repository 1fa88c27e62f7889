"""The prompts of the conventions, and the ids of their options."""

from collections.abc import Sequence

import pytest

from evaluate.choice.conventions import RequestBuilder, request_builder
from evaluate.choice.questions import ChoiceQuestion
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama

QUESTION = ChoiceQuestion("logic", "一加一 ", ("1", "2", "3", "4"), 1)
SHOT = ChoiceQuestion("logic", "二加二", ("1", "2", "3", "4"), 3)
OPTIONS = "\nA. 1\nB. 2\nC. 3\nD. 4\n"
FARMING = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
PROMPTS = {
    ("lm-eval", "logic"): "以下是中国关于逻辑学的单项选择题，请选出其中的正确答案。\n\n"
    f"二加二{OPTIONS}答案： D\n\n一加一{OPTIONS}答案：",
    ("lm-eval", "agronomy"): f"{FARMING}二加二{OPTIONS}答案： D\n\n一加一{OPTIONS}答案：",
    ("ceval", "logic"): "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。\n\n"
    f"二加二{OPTIONS}答案：D\n\n一加一 {OPTIONS}答案：",
    ("cmmlu", "agronomy"): f"{FARMING}题目：二加二{OPTIONS}答案是：D\n\n"
    f"题目：一加一 {OPTIONS}答案是：",
}  # fmt: skip


def _builder(convention: str, tokenizer: Tokenizer, context: int = 512) -> RequestBuilder:
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=context)
    return request_builder(convention, model, tokenizer, Template())


def _with_subject(subject: str, *questions: ChoiceQuestion) -> Sequence[ChoiceQuestion]:
    return [
        ChoiceQuestion(subject, question.question, question.options, question.answer)
        for question in questions
    ]


@pytest.mark.parametrize(("convention", "subject"), PROMPTS)
def test_letter_prompts(convention: str, subject: str, tokenizer: Tokenizer) -> None:
    """Prevents a prompt that differs from the published one by a space or a line."""
    question, shot = _with_subject(subject, QUESTION, SHOT)
    request = _builder(convention, tokenizer)(question, [shot])
    expected = [tokenizer.bos_id, *tokenizer.encode(PROMPTS[convention, subject])]
    assert request.with_question.prompt == expected
    assert not request.is_cut
    letters = " A" if convention == "lm-eval" else "A"
    assert tokenizer.decode(request.with_question.options[0]).strip() == letters.strip()
    if convention == "lm-eval":
        whole = [tokenizer.bos_id, *tokenizer.encode(PROMPTS[convention, subject] + " A")]
        assert request.with_question.prompt + request.with_question.options[0] == whole


def test_a_long_prompt_loses_examples_or_its_beginning(tokenizer: Tokenizer) -> None:
    """Prevents positions beyond the context, and a question that is cut while examples remain."""
    question, shot = _with_subject("agronomy", QUESTION, SHOT)
    whole = _builder("cmmlu", tokenizer)(question, [shot] * 3).with_question.prompt
    context = len(whole) - 1
    request = _builder("cmmlu", tokenizer, context)(question, [shot] * 3)
    two_examples = _builder("cmmlu", tokenizer)(question, [shot] * 2)
    assert request.with_question.prompt == two_examples.with_question.prompt
    assert request.is_cut and not two_examples.is_cut
    # The longest example goes in CMMLU's convention, the first one in others.
    (longer,) = _with_subject("agronomy", ChoiceQuestion("", "二加二加二", SHOT.options, 1))
    for convention, kept in (("cmmlu", [shot, shot]), ("answer-text", [longer, shot])):
        whole = _builder(convention, tokenizer)(question, [shot, longer, shot]).with_question
        context = len(whole.prompt) + max(map(len, whole.options)) - 1
        request = _builder(convention, tokenizer, context)(question, [shot, longer, shot])
        expected = _builder(convention, tokenizer)(question, kept)
        assert request.with_question == expected.with_question
        assert request.is_cut
    request = _builder("lm-eval", tokenizer, 40)(question, [shot] * 3)
    whole = _builder("lm-eval", tokenizer)(question, [shot] * 3).with_question.prompt
    longest = max(map(len, request.with_question.options))
    assert request.is_cut
    # The last id of the letter is not read.
    assert request.with_question.prompt == whole[-(41 - longest) :]


def test_options_as_text(tokenizer: Tokenizer) -> None:
    """Prevents options that continue differently with and without the question."""
    question = ChoiceQuestion("s", "颜色？", ("红色", "白"), 0, passage="花是红的。")
    request = _builder("answer-text", tokenizer)(question, [question])
    solved = "文章：花是红的。\n问题：颜色？\n答案："
    expected = [tokenizer.bos_id, *tokenizer.encode(f"{solved}红色\n\n{solved}")]
    assert request.with_question.prompt == expected
    assert request.with_question.options == tokenizer.encode_continuation(["红色", "白"])
    assert request.without_question is not None
    assert request.without_question.prompt == [tokenizer.bos_id, *tokenizer.encode("答案：")]
    assert request.without_question.options == request.with_question.options
    chat = _builder("chat", tokenizer)(question, ())
    template = Template()
    assert chat.with_question.prompt == template.encode_prompt(
        tokenizer, (), "颜色？", "花是红的。"
    )
