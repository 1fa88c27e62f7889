"""The records of a derived set: selected from those of its source, or made of them, and counted."""

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.machine import num_cores
from common.progress import progress_bar
from data.derivations.base import (
    Arguments,
    Derivation,
    Selection,
    Transformation,
    find_derivation,
)
from data.prepare.contamination import HeldOutNgrams
from data.prepare.dedup import text_digest
from data.prepare.provenance import read_sources
from data.prepare.write_shards import REPORT_ROW_LENGTHS
from data.records import Document, Record, SkippedRecord
from data.sequences import Sequences, SequenceWriter
from data.shards import ShardSet
from data.sources import find_source
from data.stored_records import RecordWriter, StoredRecords, dump_record
from model.chat_template.template import load_template
from model.tokenizer.base import Tokenizer

# Held-out records come first: of duplicates the first stays, so training loses the repetition.
_SPLITS = ("validation", "train")
# Records that are transformed at a time, and the least that are worth starting processes for.
_CHUNK_RECORDS = 256
_MIN_PARALLEL_RECORDS = 4096


class StoredRow(NamedTuple):
    """A record as the shards of a derived set hold it."""

    arrays: tuple[np.ndarray, ...]  # what `add` of the writer takes
    num_ids: int
    num_characters: int
    digest: bytes = b""  # of the text of a new record


# A record, or why it is left out.
Result = StoredRow | str


def write_splits(
    folder: Path,
    source: ShardSet,
    derivation: Derivation[Any],
    arguments: Arguments,
    held_out: Path | None,
) -> dict[str, Any]:
    """Write the splits of a derived set into `folder`, and return its report.

    The report is that of a preparation (`data.prepare.write_shards`); new records that repeat an
    earlier one are dropped, and so are those that share an n-gram with the file `held_out`.
    """
    tokenizer = source.load_tokenizer()
    kind = derivation.kind
    splits: dict[str, dict[str, int]] = {}
    dropped: Counter[str] = Counter()
    longer_than = dict.fromkeys(REPORT_ROW_LENGTHS, 0)
    digests: set[bytes] = set()
    for split in _SPLITS:
        writer = (
            SequenceWriter(folder, split, tokenizer.vocab_size)
            if kind.is_text
            else RecordWriter(folder, split)
        )
        num_characters = 0
        for result in _derive(source, split, derivation, arguments, held_out, tokenizer):
            if isinstance(result, StoredRow) and result.digest in digests:
                result = "exact_duplicate"
            if isinstance(result, str):
                dropped[result] += 1
                continue
            if result.digest:
                digests.add(result.digest)
            # Copies: views would hold more than the row in memory until its shard is written.
            writer.add(*(array.copy() for array in result.arrays))
            num_characters += result.num_characters
            for length in REPORT_ROW_LENGTHS:
                longer_than[length] += result.num_ids > length + 1
        splits[split] = {**writer.close(), "characters": num_characters}
    kept, num_tokens, num_characters = (
        sum(counts[key] for counts in splits.values())
        for key in ("sequences", "tokens", "characters")
    )
    report = {
        "records": kept + dropped.total(),
        "kept": kept,
        "quarantined": 0,
        "characters": num_characters,
        "dropped": dict(sorted(dropped.items())),
        "sources": {derivation.name: {"kept": kept, "characters": num_characters}},
        "kind": kind.name,
        "tokens": num_tokens,
        "characters_per_token": round(num_characters / max(num_tokens, 1), 4),
        "splits": {split: splits[split] for split in reversed(_SPLITS)},
        "divided": 0,
    }
    if not kind.is_text:
        report["longer_than"] = {str(length): count for length, count in longer_than.items()}
    return report


def _derive(
    source: ShardSet,
    split: str,
    derivation: Derivation[Any],
    arguments: Arguments,
    held_out: Path | None,
    tokenizer: Tokenizer,
) -> Iterator[Result]:
    """Yield what becomes of the records of a split, in their order."""
    stored = source.load_split(split)
    if isinstance(derivation, Selection):
        is_kept = derivation.select(stored, arguments)
        for index in range(len(stored)):
            if is_kept[index]:
                yield _stored_row(stored, index, tokenizer)
            else:
                yield derivation.reason(arguments)
        return
    num_records = len(stored)
    chunks = [
        (split, start, min(start + _CHUNK_RECORDS, num_records))
        for start in range(0, num_records, _CHUNK_RECORDS)
    ]
    task = (source.folder, derivation.name, arguments, held_out)
    with progress_bar(f"{derivation.name}, {split}", num_records, "records", delay=5) as bar:
        for (_, start, stop), results in zip(chunks, _transform(task, chunks), strict=True):
            yield from results
            bar.update(stop - start)


def _stored_row(
    stored: Sequences | StoredRecords[Any], index: int, tokenizer: Tokenizer
) -> StoredRow:
    """Return a record as its source stores it."""
    if isinstance(stored, Sequences):
        ids = stored.tokens(index)
        return StoredRow((ids,), len(ids), int(tokenizer.characters_per_id[ids].sum()))
    spans = stored.spans(index)
    num_characters = len(stored.record(index).plain_text())
    return StoredRow((stored.line(index), spans), int(spans[-1, 1]), num_characters)


_Task = tuple[Path, str, Arguments, Path | None]
_Chunk = tuple[str, int, int]


class _Transformer:
    """Makes new records of those of a shard set."""

    def __init__(
        self, folder: Path, name: str, arguments: Arguments, held_out: Path | None
    ) -> None:
        """Open the set in a folder for the transformation called `name`."""
        self._held_out = HeldOutNgrams(held_out) if held_out is not None else None
        self._shards = ShardSet.open(folder)
        derivation = find_derivation(name).for_kind(self._shards.kind)
        assert isinstance(derivation, Transformation)
        self._derivation = derivation
        self._arguments = arguments
        self._splits: dict[str, Sequences | StoredRecords[Any]] = {}
        self._tokenizer = self._shards.load_tokenizer()
        self._template = load_template(folder)
        sources = read_sources(folder)
        self._has_title_line = bool(sources) and all(
            find_source(source).has_title_line for source in sources
        )

    def transform(self, chunk: _Chunk) -> list[Result]:
        """Return what becomes of some consecutive records."""
        split, start, stop = chunk
        if split not in self._splits:
            self._splits[split] = self._shards.load_split(split)
        stored = self._splits[split]
        kind = self._derivation.kind
        results: list[Record | Result] = []
        for index in range(start, stop):
            record = _load_record(stored, index, self._tokenizer)
            derived = self._derivation.derive(
                record, self._arguments, has_title_line=self._has_title_line
            )
            for result in map(self._check_held_out, derived):
                if isinstance(result, SkippedRecord):
                    results.append(result.reason)
                elif result is record and kind is self._shards.kind:
                    # Unchanged, so there is nothing to encode.
                    results.append(_stored_row(stored, index, self._tokenizer))
                else:
                    results.append(result)
        records = [result for result in results if isinstance(result, Record)]
        encoded = iter(kind.encode(self._tokenizer, self._template, records) if records else ())
        return [
            self._encoded_row(result, *next(encoded)) if isinstance(result, Record) else result
            for result in results
        ]

    def _check_held_out(self, result: Record | SkippedRecord) -> Record | SkippedRecord:
        """Return a new record, or why it is left out if it shares a passage with a test set."""
        if self._held_out is None or isinstance(result, SkippedRecord):
            return result
        if self._held_out.has_any(result.plain_text()):
            return SkippedRecord("shares a passage with a test set")
        return result

    def _encoded_row(
        self, record: Record, ids: list[int], spans: list[tuple[int, int]]
    ) -> StoredRow:
        """Return a new record as it is stored."""
        text = record.plain_text()
        arrays: tuple[np.ndarray, ...] = (dump_record(record), np.array(spans).reshape(-1, 2))
        if self._derivation.kind.is_text:
            arrays = (np.array(ids),)
        return StoredRow(arrays, len(ids), len(text), text_digest(text).tobytes())


def _load_record(
    stored: Sequences | StoredRecords[Any], index: int, tokenizer: Tokenizer
) -> Record:
    """Return a record of a set; text is decoded."""
    if isinstance(stored, Sequences):
        return Document(tokenizer.decode(stored.tokens(index).tolist()))
    record: Record = stored.record(index)
    return record


def _transform(task: _Task, chunks: list[_Chunk]) -> Iterator[list[Result]]:
    """Yield the results of each chunk in order, from worker processes if there are many records."""
    if len(chunks) * _CHUNK_RECORDS < _MIN_PARALLEL_RECORDS:
        transformer = _Transformer(*task)
        for chunk in chunks:
            yield transformer.transform(chunk)
        return
    num_workers = num_cores()
    # spawn: forked processes inherit locks of threads that they do not have.
    context = multiprocessing.get_context("spawn")
    pending: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(num_workers, context, _init_worker, task) as pool:
        try:
            for chunk in chunks:
                pending.append(pool.submit(_transform_chunk, chunk))
                # So many results are in memory at most.
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            for future in pending:
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died (killed, or out of memory): run the command again"
            ) from None


_transformer: _Transformer | None = None


def _init_worker(folder: Path, name: str, arguments: Arguments, held_out: Path | None) -> None:
    """Open the set in a process of the pool."""
    global _transformer
    _transformer = _Transformer(folder, name, arguments, held_out)


def _transform_chunk(chunk: _Chunk) -> list[Result]:
    """Transform a chunk in a process of the pool, which `_init_worker` prepared."""
    assert _transformer is not None
    return _transformer.transform(chunk)
