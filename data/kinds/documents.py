"""Documents: text to pretrain on, stored as `<bos> text <eos>` with a loss on every token."""

from collections.abc import Sequence

import numpy as np

from data.batching.examples import Example, Examples
from data.kinds.base import RecordKind
from data.prepare.clean import clean, rejection_reason
from data.prepare.options import CleanOptions
from data.records import Document, EncodedRecord, SkippedRecord
from data.sequences import Sequences
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class DocumentKind(RecordKind[Document]):
    """Documents. Only they are cleaned: the other kinds were written to be read as they are."""

    name = "documents"
    record_type = Document
    is_text = True
    # Not for the other kinds: two questions may well differ in one word.
    drops_near_duplicates = True

    def clean(self, record: Document, options: CleanOptions) -> Document | SkippedRecord:
        """Return the cleaned document, or a SkippedRecord with the rule that rejects it."""
        text = clean(record.text, options)
        reason = rejection_reason(text, options)
        return SkippedRecord(reason) if reason else Document(text)

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Document]
    ) -> Sequence[EncodedRecord]:
        """Return `<bos> text <eos>` of each document, without spans.

        The chat template is not used: it is for conversations.
        """
        # One thread: preparation already has one process per core.
        encoded = tokenizer.encode_batch([record.text for record in records], num_threads=1)
        # The end-of-document id is `<eos>`, except in some imported tokenizers.
        return [([tokenizer.bos_id, *ids, tokenizer.eod_id], []) for ids in encoded]

    def encode_text(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return `<bos> text <eos>` of one text."""
        # `encode` of documents does not use the template: any will do.
        encoded = self.encode(tokenizer, Template(), [Document(text)])
        ids, _spans = encoded[0]
        return ids

    def encode_prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return `<bos> text`, for a model to continue."""
        return self.encode_text(tokenizer, text)[:-1]

    def examples(
        self,
        split: Sequences,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return rows cut from the stream of text."""
        return TextExamples(split, length)


class TextExamples:
    """Rows of pretraining text with a loss on every token: replay, against forgetting.

    An example fills its row. The rest of the stream, less than a row, is left out.
    """

    num_truncated = 0  # every row is cut from the stream, none to fit

    def __init__(self, sequences: Sequences, length: int) -> None:
        """Divide the stream of all sequences into rows of `length` positions."""
        self._sequences = sequences
        self._length = length
        # The first token is an input only, so n positions need n + 1 tokens.
        self._num_examples = max((sequences.num_tokens - 1) // length, 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the row length for each example, int64[n]."""
        return np.full(self._num_examples, self._length, np.int64)

    def example(self, index: int, epoch: int) -> Example:
        """Return row `index` of the stream, with a loss on every position."""
        start = index * self._length
        # Rows overlap by one token: the last target of a row is the first input of the next.
        ids = self._sequences.read_stream(start, start + self._length + 1)
        return ids, np.ones(self._length, bool)


KIND = DocumentKind()
