"""What a kind of records has to define so that it can be prepared, trained on and measured.

A source decodes raw bytes into records of one kind. The stages of preparation and training, which
know no kind by name, then call in this order:

    clean     a record → a record to train on, or the reason to skip it
    encode    records → their ids, and the spans of the answers
    examples  the stored records → training examples that fit a row

A shard set stores the ids of text (`is_text`). Of other kinds it stores the records, and the spans
that `encode` gives, from which rows are planned; an example is encoded when it is assembled, and
only then gets the words of the chat template. A record has one way to its ids, `encode`, for
preparation, training, evaluation and perplexity.
"""

import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from common.errors import UserError
from data.batching.answer_examples import AnswerExamples, AnswerLengths
from data.batching.examples import ExampleLengths, Examples
from data.prepare.options import CleanOptions
from data.records import EncodedRecord, Record, SkippedRecord
from data.stored_records import RecordList, Records
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A record as something to try in a chat: questions about a passage, or without one."""

    reference: str  # empty if the questions need none
    questions: tuple[str, ...]


class TextLengths(NamedTuple):
    """The characters of a record's own text, without the words of the chat template."""

    prompts: list[int]  # before each answer with a loss, earlier answers included
    answers: list[int]  # of each answer with a loss
    whole: int
    num_turns: int  # 0 for text


class RecordKind(abc.ABC, Generic[R]):
    """How records of one kind are prepared and trained on; `evaluate.kinds` has the other half."""

    # The name of the module, which manifests and messages use too.
    name: ClassVar[str]
    record_type: type[R]
    # The records are one stream of text with a loss on every token, to pretrain on, and their ids
    # are stored. Records of other kinds are stored as records, and have a loss on answers alone.
    is_text: ClassVar[bool] = False
    # Records that are nearly equal to an earlier one are dropped, not only exact repetitions.
    drops_near_duplicates: ClassVar[bool] = False
    # What chat tells whoever talks to a model that was fine-tuned on nothing but this kind (in
    # Chinese).
    chat_hint: ClassVar[str | None] = None

    def clean(self, record: R, options: CleanOptions) -> R | SkippedRecord:
        """Return the record to train on, or a SkippedRecord with the reason to leave it out.

        By default a record stays as it is.
        """
        return record

    @abc.abstractmethod
    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[R]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each record, and the spans of its answers; text has no spans.

        The last span ends with the ids. The ids of a record do not depend on the others.
        """

    def text_lengths(self, record: R) -> TextLengths:
        """Return the characters of a record; by default it has no answers."""
        return TextLengths([], [], len(record.plain_text()), num_turns=0)

    def chat_example(self, record: R) -> ChatExample | None:
        """Return what to ask a model in a chat, or None if the record is no good example.

        By default none is.
        """
        return None

    def examples(
        self,
        split: Any,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return the training examples of a split for rows of `length` positions.

        `split` is a `Records` of this kind, or the `Sequences` of text. Whatever is random about an
        example is drawn with `seed`. Evaluation passes None, and gets the same examples in every
        epoch. By default there is one example per record, without anything random.
        """
        return AnswerExamples(split, length, partial(self.encode_one, tokenizer, template, split))

    def example_lengths(
        self, tokenizer: Tokenizer, template: Template, seed: int | None
    ) -> ExampleLengths:
        """Return the lengths of `examples` with the same arguments, for kinds other than text."""
        return AnswerLengths()

    def encode_one(
        self, tokenizer: Tokenizer, template: Template, records: Records[R], index: int
    ) -> EncodedRecord:
        """Return the ids and spans of record `index`.

        Raises UserError if the spans are not the stored ones, from which its row was planned.
        """
        ((ids, spans),) = self.encode(tokenizer, template, [records.record(index)])
        stored_spans = [(start, stop) for start, stop in records.spans(index).tolist()]
        if spans != stored_spans or len(ids) != stored_spans[-1][1]:
            raise UserError(
                f"{records.name}: record {index} does not have the tokens that its spans were made "
                f"for: prepare {records.name} again"
            )
        return ids, spans

    def encode_records(
        self, tokenizer: Tokenizer, template: Template, records: Iterable[R]
    ) -> RecordList[R]:
        """Return records with the spans of their answers, as a shard set of them would, in memory.

        For kinds other than text.
        """
        usable = list(records)
        encoded = self.encode(tokenizer, template, usable) if usable else []
        return RecordList(usable, [spans for _, spans in encoded])
