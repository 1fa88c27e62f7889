"""What a kind of records has to define so that it can be prepared, trained on and measured.

A source decodes raw bytes into records of one kind. The stages of preparation and training, which
know no kind by name, then call in this order:

    clean     a record → a record to train on, or the reason to skip it
    render    a record → the texts that become its ids
    encode    texts → ids and the spans of the answers, as a shard set stores them
    examples  the stored sequences → training examples that fit a row

A record has one way to its ids, `encode` of `render`, for preparation, training, evaluation and
perplexity.
"""

import abc
from collections.abc import Iterable, Sequence
from typing import ClassVar, Generic, TypeVar

from data.batching.examples import Examples
from data.prepare.options import CleanOptions
from data.records import Record, SkippedRecord
from data.sequences import EncodedRecord, InMemorySequences, Sequences
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

R = TypeVar("R", bound=Record)


class RecordKind(abc.ABC, Generic[R]):
    """How records of one kind are prepared and trained on; `evaluate.kinds` has the other half."""

    # The name of the module, which manifests and messages use too.
    name: ClassVar[str]
    record_type: type[R]
    # The sequences are one stream of text with a loss on every token, to pretrain on. The sequences
    # of other kinds have spans, and a loss on these alone.
    is_text: ClassVar[bool] = False
    # `encode` puts the words of the chat template into the ids; the shard set stores the template
    # beside them.
    is_templated: ClassVar[bool] = False
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
    def render(self, template: Template, record: R) -> list[str]:
        """Return the texts that `encode` turns into the ids of a record."""

    @abc.abstractmethod
    def encode(
        self, tokenizer: Tokenizer, template: Template, rendered: Sequence[Sequence[str]]
    ) -> Sequence[EncodedRecord]:
        """Return the ids and spans of each record, as a shard set stores them.

        `rendered` has the texts of each record as `render` returns them.
        """

    @abc.abstractmethod
    def examples(
        self,
        sequences: Sequences | InMemorySequences,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return the training examples of a split for rows of `length` positions.

        Whatever is random about an example is drawn with `seed`. Evaluation passes None, and gets
        the same examples in every epoch.
        """

    def encode_records(
        self, tokenizer: Tokenizer, template: Template, records: Iterable[R]
    ) -> InMemorySequences:
        """Return records as the sequences that a shard set of them would hold, in memory."""
        rendered = [self.render(template, record) for record in records]
        encoded = self.encode(tokenizer, template, rendered) if rendered else []
        return InMemorySequences(encoded)
