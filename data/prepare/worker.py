"""Preparation's unit of work: a part is some megabytes of raw records, made into tokens by one process.

The stream of records is cut into parts the same way every time, whatever the number of processes. A part that is done
is a folder with a manifest, so an interrupted preparation reads on past what is there:

    tokens.npy      the ids of the part's sequences (see data.shards), one after another
    lengths.npy     ids of each sequence, int64[n]
    characters.npy  characters of each record, int64[n]
    spans.npy       start and stop of each span, int64[k, 2], and
    spanned.npy     spans of each sequence, int64[n] (kinds with spans)
    digests.npy     what `data.prepare.dedup.digest` says of each, uint64[n, 2]
    signatures.npy  what `data.prepare.dedup.signature` says of each, uint32[n, PERMUTATIONS] (where near duplicates are sought)
    quarantine.jsonl  the records that could not be read
"""

import collections
import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import MANIFEST, atomic_folder, check_manifest, read_json
from common.machine import peak_memory_bytes
from data.batching.summary_prompts import encode_summaries, summary_segments
from data.prepare.clean import clean, rejection_reason
from data.prepare.dedup import NUM_PERMUTATIONS, minhash_signature, text_digest
from data.prepare.options import CleanOptions
from data.readers.files import RawItem, RawRecord
from data.records import BadRecord, Document, Kind, Record, SkippedRecord, Summary
from data.shards import token_dtype
from data.sources import find_source
from model.chat_template.template import Template, load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Span, Tokenizer

UNIT_BYTES = 8 << 20
UNIT_RECORDS = 1 << 14
ENCODE_BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Raw records of one source that are prepared together; `digest` is the digest of them all.

    `split` is the one split that its records belong to, or None where the digest of each decides.
    """

    index: int
    source: str
    records: list[RawItem]
    digest: str
    split: str | None = None

    def folder(self, units_folder: Path) -> Path:
        """Where the finished part lies."""
        return unit_folder(units_folder, self.index)


def unit_folder(units_folder: Path, index: int) -> Path:
    """The folder of a part by its number."""
    return units_folder / f"{index:06d}"


def split_into_units(
    source: str, records: Iterable[RawItem], first_index: int, split: str | None = None
) -> Iterator[WorkUnit]:
    """Cut a source's stream of records into parts numbered from `first_index`."""
    pending: list[RawItem] = []
    size = 0
    for record in records:
        pending.append(record)
        size += len(record.data) if isinstance(record, RawRecord) else 0
        if size >= UNIT_BYTES or len(pending) >= UNIT_RECORDS:
            yield _build_unit(first_index, source, pending, split)
            first_index, pending, size = first_index + 1, [], 0
    if pending:
        yield _build_unit(first_index, source, pending, split)


def _build_unit(index: int, source: str, records: list[RawItem], split: str | None) -> WorkUnit:
    hasher = hashlib.blake2b(f"{source} {split}".encode(), digest_size=16)
    for record in records:
        body = record.data if isinstance(record, RawRecord) else record.reason.encode()
        hasher.update(
            f"\0{record.file}\0{record.line}\0{len(body)}\0".encode("utf-8", "surrogateescape")
        )
        hasher.update(body)
    return WorkUnit(index, source, records, hasher.hexdigest(), split)


def load_unit_manifest(unit: WorkUnit, units_folder: Path) -> dict[str, Any] | None:
    """The facts of a part that is already there, made of the same records, or None."""
    folder = unit.folder(units_folder)
    if not (folder / MANIFEST).is_file() or check_manifest(folder):
        return None
    manifest = read_json(folder / MANIFEST)
    return manifest if manifest.get("raw") == unit.digest else None


class PrepareWorker:
    """Makes parts into tokens: one for each process."""

    def __init__(
        self,
        units_folder: Path,
        tokenizer: Path,
        options: CleanOptions,
        permutations: np.ndarray | None,
    ) -> None:
        """`permutations` are those of `data.prepare.dedup`, or None where near duplicates are not sought."""
        self._units_folder, self._options, self._permutations = units_folder, options, permutations
        self._tokenizer = load_tokenizer(tokenizer)
        self._dtype = token_dtype(self._tokenizer.vocab_size)
        self._template = load_template(tokenizer)

    def process(self, unit: WorkUnit) -> tuple[int, dict[str, Any], int]:
        """Prepare a part and write its folder; returns its number, its facts, this process's peak memory (bytes)."""
        source = find_source(unit.source)
        encoder = _BatchEncoder(
            self._tokenizer, self._template, self._dtype, self._permutations, kind=source.kind
        )
        dropped: collections.Counter[str] = collections.Counter()
        bad_records: list[BadRecord] = []
        for raw in unit.records:
            record = source.try_parse(raw)
            if isinstance(record, BadRecord):
                bad_records.append(record)
            elif isinstance(record, SkippedRecord):
                dropped[record.reason] += 1
            elif reason := self._add_record(record, encoder):
                dropped[reason] += 1
        manifest = {
            "raw": unit.digest,
            "source": unit.source,
            "records": len(unit.records),
            "quarantined": len(bad_records),
            "split": unit.split,
            "bytes": sum(len(raw.data) for raw in unit.records if isinstance(raw, RawRecord)),
            "dropped": dict(sorted(dropped.items())),
        }
        with atomic_folder(unit.folder(self._units_folder), manifest) as folder:
            for name, array in encoder.arrays().items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            write_quarantine(folder / "quarantine.jsonl", bad_records)
        return unit.index, manifest, peak_memory_bytes()

    def _add_record(self, record: Record, encoder: "_BatchEncoder") -> str | None:
        """Add a record, or say why it is dropped. Only documents are cleaned: the rest was written to be read as it is."""
        if isinstance(record, Document):
            text = clean(record.text, self._options)
            if reason := rejection_reason(text, self._options):
                return reason
            encoder.add([text], text)
        elif isinstance(record, Summary):
            encoder.add(
                summary_segments(self._template, record), f"{record.article}\n{record.title}"
            )
        else:
            turns = [(turn.question, turn.answer) for turn in record.turns]
            dedup_text = "\n".join([record.reference, *(text for turn in turns for text in turn)])
            encoder.add(self._template.segments(turns, record.reference), dedup_text)
        return None


class _BatchEncoder:
    """Signs and encodes texts a batch at a time, so that their ids are Python lists only for a moment."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        dtype: np.dtype[Any],
        permutations: np.ndarray | None,
        *,
        kind: Kind,
    ) -> None:
        self._tokenizer, self._kind, self._template = tokenizer, kind, template
        # Near duplicates are sought among documents only: two questions may well differ in one word.
        self._permutations = permutations if kind == "documents" else None
        self._pending: list[tuple[list[str], str]] = []
        self._pending_characters = 0
        self._arrays: dict[str, list[np.ndarray]] = {
            "tokens": [np.zeros(0, dtype)],
            "lengths": [np.zeros(0, np.int64)],
            "characters": [np.zeros(0, np.int64)],
            "digests": [np.zeros((0, 2), np.uint64)],
            "signatures": [np.zeros((0, NUM_PERMUTATIONS), np.uint32)],
            "spans": [np.zeros((0, 2), np.int64)],
            "spanned": [np.zeros(0, np.int64)],
        }

    def add(self, texts: list[str], dedup_text: str) -> None:
        """Add a record: its texts, and what it says, by which it is known again."""
        self._pending.append((texts, dedup_text))
        self._pending_characters += sum(map(len, texts))
        if self._pending_characters >= ENCODE_BATCH_CHARACTERS:
            self._encode_pending()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything added, by name."""
        if self._pending:
            self._encode_pending()
        excluded = {"signatures"} if self._permutations is None else set()
        excluded |= {"spans", "spanned"} if self._kind == "documents" else set()
        return {
            name: np.concatenate(parts)
            for name, parts in self._arrays.items()
            if name not in excluded
        }

    def _encode_pending(self) -> None:
        pending, self._pending, self._pending_characters = self._pending, [], 0
        lengths, span_counts, arrays = [], [], self._arrays
        for ids, spans in self._encode_sequences([texts for texts, _ in pending]):
            arrays["tokens"].append(np.array(ids, dtype=arrays["tokens"][0].dtype))
            arrays["spans"].append(np.array(spans, dtype=np.int64).reshape(-1, 2))
            lengths.append(len(ids))
            span_counts.append(len(spans))
        arrays["lengths"].append(np.array(lengths, dtype=np.int64))
        arrays["spanned"].append(np.array(span_counts, dtype=np.int64))
        arrays["characters"].append(
            np.array([sum(map(len, texts)) for texts, _ in pending], dtype=np.int64)
        )
        arrays["digests"].append(np.stack([text_digest(said) for _, said in pending]))
        if self._permutations is not None:
            arrays["signatures"].append(
                np.stack([minhash_signature(said, self._permutations) for _, said in pending])
            )

    def _encode_sequences(self, records: list[list[str]]) -> list[tuple[list[int], list[Span]]]:
        """The ids of records, each of some texts, as their kind stores them, and their spans."""
        tokenizer = self._tokenizer
        if self._kind == "documents":
            encoded = tokenizer.encode_batch([text for (text,) in records], num_threads=1)
            return [([tokenizer.bos_id, *ids, tokenizer.eod_id], []) for ids in encoded]
        if self._kind == "summaries":
            return encode_summaries(tokenizer, records)
        return list(self._template.encode_batch(tokenizer, records, num_threads=1))


def write_quarantine(path: Path, bad_records: Iterable[BadRecord]) -> None:
    """Write bad records as JSONL: file, line, reason."""
    import orjson

    with path.open("wb") as file:
        for record in bad_records:
            # Names on disk can be bytes that are no text (surrogates in Python), which JSON has no way to say.
            name = record.file.encode("utf-8", "replace").decode()
            file.write(
                orjson.dumps({"file": name, "line": record.line, "reason": record.reason}) + b"\n"
            )


_worker: PrepareWorker | None = None


def init_worker(
    units_folder: Path, tokenizer: Path, options: CleanOptions, permutations: np.ndarray | None
) -> None:
    """Make this process a worker: it leaves Ctrl-C to its parent, and ends when its parent does, however that ends."""
    import multiprocessing

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    _worker = PrepareWorker(units_folder, tokenizer, options, permutations)


def _exit_with_parent(parent: Any) -> None:
    # A pool's processes wait for work forever when their parent is killed with -9.
    parent.join()
    os._exit(1)


def process_unit(unit: WorkUnit) -> tuple[int, dict[str, Any], int]:
    """`Worker.process` of this process's worker."""
    assert _worker is not None
    return _worker.process(unit)
