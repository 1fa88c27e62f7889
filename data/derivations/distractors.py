"""Questions about one passage among others: `distractors(redgpt,8)` puts eight beside the own one.

The records are those of the source that are about a passage. What stands beside it is drawn anew in
every epoch (`data.batching.distractors`). The other passages fill the row at most, or as many
tokens as a second number says: `distractors(redgpt,8,2048)`.
"""

from functools import partial

import numpy as np

from data.batching.distractors import (
    DistractorDraw,
    DistractorExamples,
    DistractorLengths,
    PassageTable,
)
from data.batching.examples import ExampleLengths, Examples
from data.derivations.base import Arguments, Selection, parse_positive
from data.kinds import conversations
from data.records import Conversation, EncodedRecord
from data.stored_records import Records, StoredRecords
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class Distractors(Selection[Conversation]):
    """Conversations about a passage, each among passages of other records."""

    name = "distractors"
    usage = "distractors(NAME,PASSAGES) or distractors(NAME,PASSAGES,TOKENS)"
    description = "questions about a passage, among so many other passages of the set"
    source_kind = conversations.KIND
    kind = conversations.KIND

    def parse_arguments(self, arguments: tuple[str, ...]) -> Arguments:
        """Return the number of other passages as `passages`, and the most `tokens` or None."""
        if len(arguments) not in (1, 2):
            raise ValueError("a number of other passages has to follow the name")
        return {
            "passages": parse_positive(arguments[0], "the number of other passages"),
            "tokens": parse_positive(arguments[1], "the number of tokens")
            if len(arguments) == 2
            else None,
        }

    def select(self, split: StoredRecords[Conversation], arguments: Arguments) -> np.ndarray:
        """Return which conversations are about a passage, bool[n]."""
        return np.array([bool(split.record(index).reference) for index in range(len(split))], bool)

    def reason(self, arguments: Arguments) -> str:
        """Return why the other conversations are left out."""
        return "without a passage"

    def examples(
        self,
        split: Records[Conversation],
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
        arguments: Arguments,
    ) -> Examples:
        """Return one example per record; the other passages are drawn with `seed`."""
        table = PassageTable(split, tokenizer)
        draw = DistractorDraw(table, arguments["passages"], arguments["tokens"], seed)
        encode = partial(_encode, tokenizer, template)
        return DistractorExamples(split, length, table, draw, encode)

    def example_lengths(
        self,
        split: Records[Conversation],
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
        arguments: Arguments,
    ) -> ExampleLengths:
        """Return the lengths of `examples` with the same arguments."""
        table = PassageTable(split, tokenizer)
        draw = DistractorDraw(table, arguments["passages"], arguments["tokens"], seed)
        return DistractorLengths(split, table, draw)


def _encode(tokenizer: Tokenizer, template: Template, record: Conversation) -> EncodedRecord:
    """Return the ids of a conversation, and the spans of its answers."""
    (encoded,) = conversations.KIND.encode(tokenizer, template, [record])
    return encoded


DERIVATION = Distractors()
