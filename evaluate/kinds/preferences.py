"""Measure a checkpoint on preferences: loss on the preferred answers, and answers of its own."""

from collections.abc import Sequence
from typing import Any, cast

from data.kinds import conversations, preferences
from data.records import Conversation, Preference, Record, Turn
from data.sources.base import LetterCase
from data.stored_records import Records
from evaluate.kinds.base import CheckpointScore, Commands, KindEvaluation
from evaluate.kinds.conversations import EVALUATION as CONVERSATION_EVALUATION
from evaluate.kinds.question_sets import QuestionSet
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.language_model import LMScore
from evaluate.model_answer import ModelAnswer


class PreferenceEvaluation(KindEvaluation):
    """The evaluation of preferences, as that of conversations with the preferred answer."""

    kind = preferences.KIND
    has_questions = True

    def score_answers(
        self, loaded: LoadedCheckpoint, records: Records[Any], label: str
    ) -> CheckpointScore:
        """Score the preferred answers; see `KindEvaluation`."""
        chosen = [self.as_conversation(records.record(index)) for index in range(len(records))]
        encoded = conversations.KIND.encode_records(loaded.tokenizer, loaded.template, chosen)
        return CONVERSATION_EVALUATION.score_answers(loaded, encoded, label)

    def score_each(self, loaded: LoadedCheckpoint, records: Sequence[Any]) -> list[LMScore]:
        """Score the preferred answer of each record; see `KindEvaluation`."""
        chosen = [self.as_conversation(record) for record in records]
        return CONVERSATION_EVALUATION.score_each(loaded, chosen)

    def test_commands(
        self, source: str, test_options: list[str], model_options: list[str], predictions: str
    ) -> Commands:
        """Return evaluate.repetition on answers to the prompts."""
        return {"repetition": ["evaluate.repetition", *model_options, *test_options]}

    def as_conversation(self, record: Record) -> Conversation:
        """Return the conversation with the preferred answer, which alone has a loss."""
        preference = cast(Preference, record)
        context = [Turn(turn.question, turn.answer, has_loss=False) for turn in preference.turns]
        turns = (*context, Turn(preference.question, preference.chosen))
        return Conversation(turns, preference.reference, preference.system)

    def question_set(
        self, label: str, records: Sequence[Record], case: LetterCase
    ) -> QuestionSet | None:
        """Return the question of each preference, after the turns before it."""
        chosen = [self.as_conversation(record) for record in records]
        return CONVERSATION_EVALUATION.question_set(label, chosen, case)

    def generate_answers(
        self,
        loaded: LoadedCheckpoint,
        records: Sequence[Record],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[tuple[str, ModelAnswer | None]]:
        """Return every question with the model's answer to it, after the turns before it."""
        return CONVERSATION_EVALUATION.generate_answers(
            loaded,
            [self.as_conversation(record) for record in records],
            max_new_tokens=max_new_tokens,
            batch=batch,
        )


EVALUATION = PreferenceEvaluation()
