"""Measure a checkpoint on conversations: loss on the answers, and generated answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from common.progress import progress_bar
from data.kinds import conversations
from data.records import Conversation, Record
from data.sources import SOURCES
from data.sources.base import LetterCase
from evaluate.kinds.base import RULES_COMMAND, Commands, KindEvaluation
from evaluate.kinds.question_sets import Measure, QuestionSet
from evaluate.load_model import LoadedCheckpoint
from evaluate.model_answer import ModelAnswer
from model.chat_template.template import Template
from model.decode.batch_generate import generate_batch
from model.decode.generate import max_prompt_tokens
from model.llama import Llama
from model.tokenizer.base import Tokenizer

EXACT = Measure(
    "exact",
    "exact answers",
    is_rate=True,
    is_quality=True,
    if_higher="reads better",
    if_lower="reads worse",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a conversation, with the turns before it and the true answer."""

    history: tuple[tuple[str, str], ...]  # (question, answer) of the turns before
    question: str
    answer: str  # the true answer
    passage: str  # the reference of the conversation, which may be empty
    system: str = ""  # the system text of the conversation


@dataclass(frozen=True)
class ChatQuestions(QuestionSet):
    """Questions of conversations, or without a true answer."""

    questions: tuple[Question, ...]

    @property
    def _have_passages(self) -> bool:
        """Return whether exact answers can be expected: all questions are about a passage."""
        return all(question.passage and question.answer for question in self.questions)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Add exact answers, if the questions are about passages."""
        return (EXACT, *super().measures) if self._have_passages else super().measures

    @property
    def texts(self) -> list[str]:
        """Return the questions."""
        return [question.question for question in self.questions]

    @property
    def references(self) -> list[str] | None:
        """Return the true answers, if all questions have one."""
        answers = [question.answer.strip() for question in self.questions]
        return answers if all(answers) else None

    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """See `QuestionSet`."""
        return answer_questions(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            chunk,
            max_new_tokens=max_new_tokens,
            batch=batch,
        )

    def score(self, answers: Sequence[ModelAnswer]) -> dict[str, np.ndarray]:
        """Add exact answers: equal to the true one except for white space around it."""
        scores = super().score(answers)
        if self._have_passages:
            is_exact = [
                answer.text.strip() == question.answer.strip()
                for answer, question in zip(answers, self.questions, strict=True)
            ]
            scores[EXACT.key] = np.array(is_exact, np.float64)
        return scores

    def trivial_scores(self) -> dict[str, str]:
        """Return the rate of the most frequent true answer."""
        if not self._have_passages:
            return {}
        counts = Counter(question.answer.strip() for question in self.questions)
        [(_, count)] = counts.most_common(1)
        rate = count / len(self.questions)
        return {EXACT.key: f"{EXACT.format_mean(rate)} (most frequent answer)"}


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

    def as_conversation(self, record: Record) -> Conversation:
        """Return the conversation itself."""
        return cast(Conversation, record)

    def question_set(
        self, label: str, records: Sequence[Record], case: LetterCase
    ) -> QuestionSet | None:
        """Return the first question of each conversation: a later one depends on it."""
        questions = dict.fromkeys(
            question
            for record in records
            for question in extract_questions(cast(Conversation, record))[:1]
        )
        return ChatQuestions(label, tuple(questions)) if questions else None

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


def encode_question(template: Template, tokenizer: Tokenizer, question: Question) -> list[int]:
    """Return the ids of the prompt that asks a question."""
    return template.encode_prompt(
        tokenizer, question.history, question.question, question.passage, question.system
    )


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
    prompts = [encode_question(template, tokenizer, question) for question in questions]
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
