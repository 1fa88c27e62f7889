"""Measure a checkpoint on conversations: loss on the answers, and generated answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from common.progress import progress_bar
from data.kinds import conversations
from data.records import Conversation, Record
from evaluate.kinds.base import Command, KindEvaluation, ModelAnswer
from evaluate.load_model import LoadedCheckpoint
from model.chat_template.template import Template
from model.decode.batch_generate import generate_batch
from model.decode.generate import max_prompt_tokens
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# Sources whose conversations are about a reference passage.
PASSAGE_SOURCES = ("redgpt",)


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a conversation, with the turns before it and the true answer."""

    history: tuple[tuple[str, str], ...]
    question: str
    answer: str
    passage: str


class ConversationEvaluation(KindEvaluation):
    """Conversations."""

    kind = conversations.KIND
    has_questions = True

    def test_commands(
        self, source: str, test: list[str], model: list[str], predictions: str
    ) -> list[Command]:
        """Return passage questions, if the source has passages, and repetition."""
        repetition = ["evaluate.repetition", *model, *test]
        if source in PASSAGE_SOURCES:
            return [["evaluate.reading", *model, *test], repetition]
        return [repetition]

    def generate_answers(
        self,
        loaded: LoadedCheckpoint,
        records: Sequence[Record],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[tuple[str, ModelAnswer | None]]:
        """Return every question and its answer, after the true turns before it."""
        questions = [
            question
            for record in records
            for question in extract_questions(cast(Conversation, record))
        ]
        with progress_bar("answering", len(questions), "answers") as bar:
            answers = answer_questions(
                loaded.model,
                loaded.tokenizer,
                loaded.template,
                questions,
                max_new_tokens=max_new_tokens,
                batch=batch,
                on_progress=bar.update,
            )
        return [
            (question.question, answer) for question, answer in zip(questions, answers, strict=True)
        ]


def extract_questions(conversation: Conversation) -> list[Question]:
    """Return every turn that has a question, with the true turns before it."""
    turns = [(turn.question, turn.answer) for turn in conversation.turns]
    return [
        Question(tuple(turns[:index]), question, answer, conversation.reference)
        for index, (question, answer) in enumerate(turns)
        if question
    ]


def answer_questions(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[ModelAnswer | None]:
    """Return the greedy answer to each question; None if the prompt leaves no room for one."""
    prompts = [
        template.encode_prompt(tokenizer, each.history, each.question, each.passage)
        for each in questions
    ]
    max_tokens = max_prompt_tokens(model.trained_context, max_new_tokens)
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= max_tokens]
    if on_progress:
        on_progress(len(prompts) - len(fitting))
    decoded = generate_batch(
        model,
        [prompts[index] for index in fitting],
        max_new_tokens=max_new_tokens,
        batch_size=batch,
        on_progress=on_progress,
    )
    answers: list[ModelAnswer | None] = [None] * len(prompts)
    for index, each in zip(fitting, decoded, strict=True):
        answers[index] = ModelAnswer(
            tokenizer.decode(each.ids), len(each.ids), each.reached_stop_id
        )
    return answers


EVALUATION = ConversationEvaluation()
