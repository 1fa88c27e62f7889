"""Measure records in batches: those of native files, of a prepared set, or of any iterable."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UserError
from common.progress import progress_bar
from data.corpora.detect import detect_source
from data.kinds import find_kind
from data.kinds.base import RecordKind, TextLengths
from data.prepare.options import CleanOptions
from data.prepare.source_args import SourceGroup
from data.prepare.worker import ENCODE_BATCH_CHARACTERS
from data.readers.files import expand_inputs, print_files_about_data
from data.records import BadRecord, Document, Record, SkippedRecord
from data.sequences import Sequences
from data.shards import ShardSet
from data.sources import find_source
from data.stored_records import StoredRecords
from data.usable_records import UsableRecords
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# Records of a prepared set that are measured together.
BATCH_RECORDS = 4096
_SOURCE_ADVICE = "--source NAME"


@dataclass(frozen=True)
class Batch:
    """The lengths of n consecutive records of a set.

    `spans`, int64[k, 2], and `first_spans`, int64[n], are as in `Records.iter_shard_spans`; text
    has none.
    """

    first_record: int  # the index of the first record in its set
    num_ids: np.ndarray  # int64[n], ids of each record
    spans: np.ndarray
    first_spans: np.ndarray
    texts: list[TextLengths] | None  # None: characters are not counted


def detect_input_source(inputs: Sequence[str]) -> str:
    """Return the name of the source that reads native files."""
    return detect_source(expand_inputs(list(inputs)), _SOURCE_ADVICE)


def read_source_batches(
    group: SourceGroup, tokenizer: Tokenizer, template: Template, limit: int | None
) -> Iterator[Batch]:
    """Yield the batches of the usable records of a source, at most `limit` of them.

    Documents are cleaned as a preparation does. At the end, print which records are left out, and
    raise UserError if too many are unreadable, or if none is usable.
    """
    source = find_source(group.source)
    kind = find_kind(source.kind)
    options = CleanOptions()
    print_files_about_data(group.file_inputs())
    num_bytes = sum(path.stat().st_size for path in group.train_files())
    with progress_bar("measuring", None if group.is_streamed else num_bytes, unit="B") as bar:

        def read_cleaned() -> Iterator[Record | SkippedRecord | BadRecord]:
            for raw in group.read_records(bar.update):
                record = source.try_parse(raw)
                yield kind.clean(record, options) if isinstance(record, Record) else record

        records = UsableRecords(read_cleaned())
        has_records = False
        for batch in encode_batches(itertools.islice(records, limit), kind, tokenizer, template):
            has_records = True
            yield batch
    records.print_skipped()
    records.check_bad_share(f"name the right source: {_SOURCE_ADVICE}")
    if not has_records:
        raise UserError(
            f"--input {' '.join(group.inputs)}: no usable record; check that the files are of "
            f"{group.source}"
        )


def encode_batches(
    records: Iterable[Record], kind: RecordKind[Any], tokenizer: Tokenizer, template: Template
) -> Iterator[Batch]:
    """Yield the batches of records that are encoded for it, of `ENCODE_BATCH_CHARACTERS` or more.

    Memory holds one batch.
    """
    first_record = 0
    pending: list[Record] = []
    texts: list[TextLengths] = []
    num_characters = 0
    for record in records:
        pending.append(record)
        texts.append(kind.text_lengths(record))
        num_characters += texts[-1].whole
        if num_characters >= ENCODE_BATCH_CHARACTERS or len(pending) >= BATCH_RECORDS:
            yield _encode_batch(first_record, pending, texts, kind, tokenizer, template)
            first_record += len(pending)
            pending, texts, num_characters = [], [], 0
    if pending:
        yield _encode_batch(first_record, pending, texts, kind, tokenizer, template)


def _encode_batch(
    first_record: int,
    records: list[Record],
    texts: list[TextLengths],
    kind: RecordKind[Any],
    tokenizer: Tokenizer,
    template: Template,
) -> Batch:
    encoded = kind.encode(tokenizer, template, records)
    spans = [span for _, record_spans in encoded for span in record_spans]
    span_counts = [len(record_spans) for _, record_spans in encoded]
    return Batch(
        first_record,
        num_ids=np.array([len(ids) for ids, _ in encoded], dtype=np.int64),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        first_spans=np.cumsum([0, *span_counts[:-1]]),
        texts=texts,
    )


def read_set_batches(
    shards: ShardSet, tokenizer: Tokenizer, template: Template, *, with_characters: bool
) -> Iterator[Batch]:
    """Yield the batches of the training split of a prepared set, in the order of its records.

    They are measured with a tokenizer and a template that may be others than those of the set;
    with its own, nothing is encoded.
    """
    is_own = tokenizer.fingerprint == shards.load_tokenizer().fingerprint
    if is_own and shards.matches_template(template):
        if shards.kind.is_text:
            return _read_text(shards.load_text("train"), tokenizer, with_characters)
        return _read_spans(shards.load_records("train"), shards.kind, with_characters)
    return encode_batches(_iter_stored_records(shards), shards.kind, tokenizer, template)


def _iter_stored_records(shards: ShardSet) -> Iterator[Record]:
    """Yield the records of the training split; text is decoded."""
    if not shards.kind.is_text:
        records = shards.load_records("train")
        yield from (records.record(index) for index in range(len(records)))
        return
    own_tokenizer = shards.load_tokenizer()
    sequences = shards.load_text("train")
    for index in range(len(sequences)):
        yield Document(own_tokenizer.decode(sequences.tokens(index).tolist()))


def _read_text(
    sequences: Sequences, tokenizer: Tokenizer, with_characters: bool
) -> Iterator[Batch]:
    """Yield the batches of stored documents; without characters they are a single one."""
    no_spans, no_starts = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    if not with_characters:
        yield Batch(0, sequences.lengths(), no_spans, no_starts, None)
        return
    # A prefix space is not the document's. `<bos>` and `<eos>` have no characters.
    num_prefixes = int(tokenizer.adds_prefix_space)
    for start in range(0, len(sequences), BATCH_RECORDS):
        stop = min(start + BATCH_RECORDS, len(sequences))
        documents = [sequences.tokens(index) for index in range(start, stop)]
        counts = [int(tokenizer.characters_per_id[ids].sum()) for ids in documents]
        texts = [TextLengths([], [], max(count - num_prefixes, 0), 0) for count in counts]
        num_ids = np.array([len(ids) for ids in documents])
        yield Batch(start, num_ids, no_spans, no_starts, texts)


def _read_spans(
    records: StoredRecords[Any], kind: RecordKind[Any], with_characters: bool
) -> Iterator[Batch]:
    """Yield the batches of stored records from their spans, and for characters from their text."""
    first_record = 0
    for shard_spans, shard_first_spans in records.iter_shard_spans():
        # Where the spans of each record begin, and the end of the last.
        edges = np.append(shard_first_spans, len(shard_spans))
        for start in range(0, len(shard_first_spans), BATCH_RECORDS):
            batch_edges = edges[start : start + BATCH_RECORDS + 1]
            spans = shard_spans[batch_edges[0] : batch_edges[-1]].astype(np.int64)
            num_records = len(batch_edges) - 1
            texts = None
            if with_characters:
                indices = range(first_record, first_record + num_records)
                texts = [kind.text_lengths(records.record(index)) for index in indices]
            # The last span of a record ends with its ids.
            num_ids = spans[batch_edges[1:] - batch_edges[0] - 1, 1]
            yield Batch(first_record, num_ids, spans, batch_edges[:-1] - batch_edges[0], texts)
            first_record += num_records
