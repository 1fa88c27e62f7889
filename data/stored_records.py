"""The records of one split of a shard set whose kind has answers, such as conversations.

    train-00000.records.jsonl     one record a line, as JSON
    train-00000.offsets.npy       first byte of each line, and the end of the last, int64[n + 1]
    train-00000.spans.npy         start and stop of each answer in the record's ids, int32[k, 2]
    train-00000.span_offsets.npy  first span of each record, and the number of spans, int64[n + 1]

The text is stored, not its ids: the chat template comes around it when an example is assembled,
and the example is encoded then. The spans are those that the set's tokenizer and template give, so
that rows can be planned from them alone. The last span of a record ends with its ids.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from data.ragged_arrays import RaggedArray, RaggedWriter
from data.records import Record

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)

SHARD_BYTES = 1 << 26
RECORDS_FILE = "records.jsonl"
_RECORD_FILES = (RECORDS_FILE, "offsets.npy")
_SPAN_FILES = ("spans.npy", "span_offsets.npy")


class Records(Protocol[R_co]):
    """Records and the spans of their answers, on disk or in memory."""

    name: str  # names them in messages

    def __len__(self) -> int:
        """Return the number of records."""

    def record(self, index: int) -> R_co:
        """Return record `index`."""

    def spans(self, index: int) -> np.ndarray:
        """Return start and stop of each answer in the ids of record `index`, int32[k, 2]."""

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for each shard, the spans of its n records, and where the spans of each begin.

        The spans, int32[k, 2], are start and stop of each answer in the ids of its record. Those of
        one record are consecutive; the second array, int64[n], has the index of its first span.
        """


@functools.cache
def _json_adapter(record_type: type[R]) -> TypeAdapter[R]:
    """Return what converts records of a class to JSON and back."""
    return TypeAdapter(record_type)


def dump_record(record: Record) -> np.ndarray:
    """Return a record as a line of JSON, uint8[n]."""
    # Without defaults, so that a turn has its mark only where its answer is not trained on.
    line = _json_adapter(type(record)).dump_json(record, exclude_defaults=True) + b"\n"
    return np.frombuffer(line, np.uint8)


class RecordWriter:
    """Write the records of one split; memory holds one shard of them at most."""

    def __init__(self, folder: Path, split: str, shard_bytes: int = SHARD_BYTES) -> None:
        """Write shards of about `shard_bytes` of JSON into `folder`, which must exist."""
        self._lines = RaggedWriter(folder, split, *_RECORD_FILES, dtype=np.dtype(np.uint8))
        self._spans = RaggedWriter(folder, split, *_SPAN_FILES, dtype=np.dtype(np.int32))
        self._max_shard_bytes = shard_bytes
        self._num_records = 0
        self._num_tokens = 0

    def add(self, line: np.ndarray, spans: np.ndarray) -> None:
        """Append one record, as `dump_record` returns it, with its spans, int[k, 2].

        A full shard is written to disk.
        """
        self._lines.append(line)
        self._spans.append(spans)
        self._num_records += 1
        self._num_tokens += int(spans[-1, 1])
        if self._lines.num_values >= self._max_shard_bytes:
            self._write_shard()

    def close(self) -> dict[str, int]:
        """Write the last shard and return the counts of the split."""
        self._write_shard()
        return {"sequences": self._num_records, "tokens": self._num_tokens}

    def _write_shard(self) -> None:
        self._lines.write_shard()
        self._spans.write_shard()


class StoredRecords(Generic[R]):
    """The records of one split, read through memory maps. Implements `Records`."""

    def __init__(self, folder: Path, split: str, record_type: type[R]) -> None:
        """Map the files of all shards into memory.

        Raises UserError if one is damaged or does not fit the others of its shard.
        """
        self.name = str(folder)
        self._lines = RaggedArray(folder, split, *_RECORD_FILES, dtype_kind="u")
        self._spans = RaggedArray(folder, split, *_SPAN_FILES, dtype_kind="i", columns=2)
        self._adapter = _json_adapter(record_type)
        if len(self._lines) != len(self._spans) or not self._spans.lengths().all():
            raise UserError(
                f"{folder}: the records of {split} do not have spans each: prepare {folder} again"
            )

    def __len__(self) -> int:
        return len(self._lines)

    def record(self, index: int) -> R:
        """See `Records`. Raises UserError if the line is not such a record."""
        try:
            return self._adapter.validate_json(self._lines.row(index).tobytes())
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise UserError(
                f"{self.name}: record {index} cannot be read: {reason}: prepare {self.name} again"
            ) from None

    def line(self, index: int) -> np.ndarray:
        """Return record `index` as its line of JSON, uint8[n]."""
        return self._lines.row(index)

    def spans(self, index: int) -> np.ndarray:
        """See `Records`."""
        return self._spans.row(index)

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Records`."""
        return self._spans.iter_shards()


class RecordList(Generic[R]):
    """A few records in memory that no shard set holds. Implements `Records`."""

    def __init__(self, records: Sequence[R], spans: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Store the records, and the spans of each as an array."""
        self.name = "the records"
        self._records = records
        self._spans = [np.array(pairs, dtype=np.int32).reshape(-1, 2) for pairs in spans]

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> R:
        """See `Records`."""
        return self._records[index]

    def spans(self, index: int) -> np.ndarray:
        """See `Records`."""
        return self._spans[index]

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Records`. All records count as one shard."""
        if self._spans:
            counts = [len(spans) for spans in self._spans[:-1]]
            yield np.concatenate(self._spans), np.cumsum([0, *counts])
