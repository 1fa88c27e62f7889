"""Measure a checkpoint on conversations: loss on the answers, and generated answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from common.progress import progress_bar
from data.kinds import conversations
from data.records import Conversation, Record
from data.sources import SOURCES
from evaluate.kinds.base import RULES_COMMAND, Commands, KindEvaluation, ModelAnswer
from evaluate.load_model import LoadedCheckpoint
from model.chat_template.template import Template
from model.decode.batch_generate import generate_batch
from model.decode.generate import max_prompt_tokens
from model.llama import Llama
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a conversation, with the turns before it and the true answer."""

    history: tuple[tuple[str, str], ...]  # (question, answer) of the turns before
    question: str
    answer: str  # the true answer
    passage: str  # the reference of the conversation, which may be empty
    system: str = ""  # the system text of the conversation


class ConversationEvaluation(KindEvaluation):
    """The evaluation of conversations, whose answers are scored."""

    kind = conversations.KIND
    has_questions = True

    def test_commands(
        self, source: str, test_options: list[str], model_options: list[str], predictions: str
    ) -> Commands:
        """Return evaluate.repetition and, if the source has passages, evaluate.passage_qa."""
        commands = {}
        if SOURCES[source].has_passages:
            commands["passage_qa"] = ["evaluate.passage_qa", *model_options, *test_options]
        commands["repetition"] = ["evaluate.repetition", *model_options, *test_options]
        return commands

    def generated_commands(self, model_options: list[str]) -> Commands:
        """Return evaluate.rules, by likelihood, and evaluate.maths on plain arithmetic."""
        maths = ["evaluate.maths", "--source", "arithmetic", "--difficulty", "2", "--count", "100"]
        return {
            "rules": [*RULES_COMMAND, *model_options],
            "maths": [*maths, *model_options],
        }

    def generate_answers(
        self,
        loaded: LoadedCheckpoint,
        records: Sequence[Record],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[tuple[str, ModelAnswer | None]]:
        """Return every question with the model's answer to it, after the true turns before it."""
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
    """Return a Question for every turn that has one, with the true turns before it.

    Answers without a loss are not true ones: nothing is asked for them.
    """
    turns = [(turn.question, turn.answer) for turn in conversation.turns]
    return [
        Question(
            tuple(turns[:index]), question, answer, conversation.reference, conversation.system
        )
        for index, (question, answer) in enumerate(turns)
        if question and conversation.turns[index].has_loss
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
    """Return the greedy answer to each question; None if the prompt leaves no room for one.

    `batch` answers are decoded together. `on_progress` is called with the number of questions that
    are done since the last call.
    """
    prompts = [
        template.encode_prompt(
            tokenizer, question.history, question.question, question.passage, question.system
        )
        for question in questions
    ]
    max_tokens = max_prompt_tokens(model.trained_context, max_new_tokens)
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= max_tokens]
    # Questions that do not fit are done.
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
    for index, answer in zip(fitting, decoded, strict=True):
        answers[index] = ModelAnswer(
            tokenizer.decode(answer.ids), len(answer.ids), has_eos=answer.reached_stop_id
        )
    return answers


EVALUATION = ConversationEvaluation()
