"""The conventions of multiple choice: what the model reads, and which ids are its options.

A figure of one convention cannot be compared with one of another: a small model that knows an
answer may not know that the letter stands for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evaluate.choice.questions import LETTERS, ChoiceQuestion
from evaluate.choice.subjects import CEVAL, CMMLU
from evaluate.metrics.continuations import Continuations
from model.chat_template.template import Template
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# What the options follow when nothing is asked, to measure how likely they are by themselves.
ANSWER_CUE = "答案："


@dataclass(frozen=True)
class Request:
    """What is scored of a question: the options after its prompt and, for PMI, without it."""

    with_question: Continuations
    without_question: Continuations | None
    """None if letters are scored."""
    is_cut: bool
    """Whether the prompt has lost its beginning or examples, because it exceeds the context."""


RequestBuilder = Callable[[ChoiceQuestion, Sequence[ChoiceQuestion]], Request]


def request_builder(
    convention: str, model: Llama, tokenizer: Tokenizer, template: Template
) -> RequestBuilder:
    """Return the function that makes a request of a question and its solved examples."""
    if convention == "lm-eval":
        return _HarnessBuilder(tokenizer, model.config.max_position_embeddings)
    if convention in ("cmmlu", "ceval"):
        return _LetterBuilder(convention, tokenizer, model.trained_context)
    if convention == "chat":
        return _ChatBuilder(tokenizer, template, model.trained_context)
    return _TextBuilder(tokenizer, model.trained_context)


def _letter_body(question: ChoiceQuestion, start: str, cue: str) -> str:
    """Return a question with its lettered options, and the words before the letter."""
    lines = [start]
    lines += [f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=False)]
    return "\n".join(lines) + "\n" + cue


class _HarnessBuilder:
    """The prompts of lm_eval 0.4: tasks cmmlu_* and ceval-valid_*, and how it encodes them.

    Prompt and answer are joined by a space and encoded together; a prompt that exceeds the model's
    context loses its beginning. The harness takes the ids that the exported tokenizer gives, with
    its `<bos>`.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context

    def __call__(self, question: ChoiceQuestion, shots: Sequence[ChoiceQuestion]) -> Request:
        text = self._header(question)
        for shot in shots:
            text += self._body(shot) + f" {LETTERS[shot.answer]}\n\n"
        text += self._body(question)
        prompt = [self._tokenizer.bos_id, *self._tokenizer.encode(text)]
        options = []
        for letter in LETTERS[: len(question.options)]:
            whole = [self._tokenizer.bos_id, *self._tokenizer.encode(f"{text} {letter}")]
            options.append(whole[len(prompt) :])
        # The last id of an option is not read, so that one more fits.
        return _cut_start(prompt, options, self._context + 1)

    def _header(self, question: ChoiceQuestion) -> str:
        if question.subject in CMMLU:
            name = CMMLU[question.subject][0]
            return f"以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n\n"
        name = CEVAL[question.subject][0]
        return f"以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n"

    def _body(self, question: ChoiceQuestion) -> str:
        return _letter_body(question, question.question.strip(), "答案：")


class _LetterBuilder:
    """The prompts of the authors of CMMLU and C-Eval, with the letter as it follows the prompt.

    Of a prompt that does not fit, CMMLU's code leaves out the longest solved examples; those of
    C-Eval are left out here from the first one on.
    """

    def __init__(self, convention: str, tokenizer: Tokenizer, context: int) -> None:
        self._convention, self._tokenizer, self._context = convention, tokenizer, context
        self._letters = [ids[-1:] for ids in tokenizer.encode_continuation(list(LETTERS))]

    def __call__(self, question: ChoiceQuestion, shots: Sequence[ChoiceQuestion]) -> Request:
        options = self._letters[: len(question.options)]
        kept = list(shots)
        prompt = self._prompt(question, kept)
        while kept and len(prompt) >= self._context:
            if self._convention == "cmmlu":
                kept.remove(max(kept, key=lambda shot: len(self._body(shot))))
            else:
                del kept[0]
            prompt = self._prompt(question, kept)
        request = _cut_start(prompt, options, self._context)
        return replace(request, is_cut=request.is_cut or len(kept) < len(shots))

    def _prompt(self, question: ChoiceQuestion, shots: Sequence[ChoiceQuestion]) -> list[int]:
        if self._convention == "cmmlu":
            name = CMMLU[question.subject][0]
            text = f"以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n\n"
        else:
            name = CEVAL[question.subject][0]
            text = f"以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。\n\n"
        text += "".join(f"{self._body(shot)}{LETTERS[shot.answer]}\n\n" for shot in shots)
        return [self._tokenizer.bos_id, *self._tokenizer.encode(text + self._body(question))]

    def _body(self, question: ChoiceQuestion) -> str:
        if self._convention == "cmmlu":
            return _letter_body(question, "题目：" + question.question, "答案是：")
        return _letter_body(question, question.question, "答案：")


class _TextBuilder:
    """The text of each option as the answer to the question in plain text.

    Solved examples that do not fit are left out, the first ones first.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context

    def __call__(self, question: ChoiceQuestion, shots: Sequence[ChoiceQuestion]) -> Request:
        options = self._tokenizer.encode_continuation(question.options)
        longest = max(map(len, options))
        for first in range(len(shots) + 1):
            solved = [
                f"{self._body(shot)}{shot.options[shot.answer]}\n\n" for shot in shots[first:]
            ]
            prompt = self._encode("".join(solved) + self._body(question))
            if len(prompt) + longest <= self._context:
                break
        request = _cut_start(prompt, options, self._context)
        cue = Continuations(self._encode(ANSWER_CUE), request.with_question.options)
        return Request(request.with_question, cue, request.is_cut or first > 0)

    def _encode(self, text: str) -> list[int]:
        return [self._tokenizer.bos_id, *self._tokenizer.encode(text)]

    def _body(self, question: ChoiceQuestion) -> str:
        passage = f"文章：{question.passage}\n" if question.passage else ""
        return f"{passage}问题：{question.question}\n{ANSWER_CUE}"


class _ChatBuilder:
    """The text of each option as the assistant's answer, in the chat template."""

    def __init__(self, tokenizer: Tokenizer, template: Template, context: int) -> None:
        self._tokenizer, self._template, self._context = tokenizer, template, context

    def __call__(self, question: ChoiceQuestion, shots: Sequence[ChoiceQuestion]) -> Request:
        prompt = self._template.encode_prompt(
            self._tokenizer, (), question.question, question.passage
        )
        cue = self._template.encode_prompt(self._tokenizer, (), ANSWER_CUE)
        options = self._tokenizer.encode_continuation(
            [self._template.sanitize(option) for option in question.options]
        )
        request = _cut_start(prompt, options, self._context)
        without_question = Continuations(cue, request.with_question.options)
        return Request(request.with_question, without_question, request.is_cut)


def _cut_start(prompt: list[int], options: list[list[int]], context: int) -> Request:
    """Return the request of letters, without the start of a prompt that exceeds the context.

    An option that fills the context alone is cut at its end.
    """
    options = [option[: context - 1] for option in options]
    room = context - max(map(len, options))
    return Request(Continuations(prompt[-room:], options), None, is_cut=len(prompt) > room)
