"""Preferences: two answers to the same question, of which one is preferred.

The prompt is in the ids once, followed by the preferred answer and by the rejected one, each with
its `<eos>`: prompt, chosen, rejected. A row never cuts a preference: without the end of an answer,
its probability is that of another answer.

A rejected answer that a limit of length has ended (`rejected_is_cut`) has no `<eos>`. With one, a
model would learn above all not to stop there: the text of a loop is nearly certain, so that the
only id with much of a gradient would be the `<eos>`.
"""

from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from data.batching.examples import ExampleLengths, Examples
from data.batching.preference_rows import PreferenceLengths
from data.kinds.base import RecordKind, TextLengths
from data.records import EncodedRecord, Preference
from model.chat_template.encoding import EncodedConversation
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class PreferenceKind(RecordKind[Preference]):
    """Pairs of answers; the turns before them are context only."""

    name = "preferences"
    record_type = Preference

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Preference]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of prompt, chosen and rejected answer, and the spans of the two answers.

        Either conversation, prompt and chosen or prompt and rejected, has the ids that it has by
        itself, except for the end of a rejected answer that is cut.
        """
        segments = []
        for record in records:
            turns = [(turn.question, turn.answer) for turn in record.turns]
            for answer in (record.chosen, record.rejected):
                conversation = [*turns, (record.question, answer)]
                segments.append(template.segments(conversation, record.reference, record.system))
            if record.rejected_is_cut:
                segments[-1][-1] = template.render_answer(record.rejected, is_cut=True)
        # One thread: preparation already has one process per core.
        encoded = template.encode_batch(tokenizer, segments, num_threads=1)
        return [
            _share_prompt(chosen, rejected, rejected_is_cut=record.rejected_is_cut)
            for record, chosen, rejected in zip(records, encoded[::2], encoded[1::2], strict=True)
        ]

    def text_lengths(self, record: Preference) -> TextLengths:
        """Return the characters before and in both answers; the two have the same prompt."""
        before = [record.reference, record.system, record.question]
        for turn in record.turns:
            before += [turn.question, turn.answer]
        prompt = sum(map(len, before))
        answers = [len(record.chosen), len(record.rejected)]
        return TextLengths([prompt, prompt], answers, prompt + sum(answers), len(record.turns) + 1)

    def examples(
        self, split: Any, length: int, tokenizer: Tokenizer, template: Template, seed: int | None
    ) -> Examples:
        """Raise UserError: a pair is no example with a loss on its answers.

        `data.batching.preference_rows` has the rows of pairs.
        """
        raise UserError(
            f"{split.name}: holds preferences, two answers to each question: train on them with "
            "make dpo DATA=… (python -m train.dpo)"
        )

    def example_lengths(
        self, tokenizer: Tokenizer, template: Template, seed: int | None
    ) -> ExampleLengths:
        """Return the lengths of pairs in rows, each whole or left out."""
        return PreferenceLengths()


def _share_prompt(
    chosen: EncodedConversation, rejected: EncodedConversation, *, rejected_is_cut: bool
) -> EncodedRecord:
    """Return the ids of two conversations that differ in the last answer, their prompt once.

    A rejected answer that is cut loses its `<eos>`, which is the last id.

    The prompt ends where the ids begin to differ, at the latest where the earlier of the answers
    begins: the token that an imported tokenizer merges across that seam may be another one for
    each answer.
    """
    limit = min(chosen.answer_spans[-1][0], rejected.answer_spans[-1][0])
    pairs = zip(chosen.ids[:limit], rejected.ids[:limit], strict=True)
    num_shared = next((index for index, (a, b) in enumerate(pairs) if a != b), limit)
    stop = len(chosen.ids)
    rejected_stop = len(rejected.ids) - rejected_is_cut
    ids = chosen.ids + rejected.ids[num_shared:rejected_stop]
    return ids, [(num_shared, stop), (stop, len(ids))]


KIND = PreferenceKind()
