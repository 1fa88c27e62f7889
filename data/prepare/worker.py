"""Units of preparation: some megabytes of raw records that one process encodes.

The stream of records is cut into the same units whatever the number of processes. A finished unit
is a folder with a manifest, so that an interrupted preparation keeps it:

    lengths.npy       ids of each record, int64[n]
    characters.npy    characters of each record, int64[n]
    tokens.npy        ids of all records, concatenated (text)
    records.npy       the records as lines of JSON (see data.stored_records), uint8 (other kinds)
    record_bytes.npy  bytes of each line, int64[n] (other kinds)
    spans.npy         start and stop of each answer in the ids, int64[k, 2] (other kinds)
    span_counts.npy   answers of each record, int64[n] (other kinds)
    digests.npy       `text_digest` of each record, uint64[n, 2]
    signatures.npy    `minhash_signature` of each record, uint32[n, NUM_PERMUTATIONS]
                      (where near duplicates are dropped)
    quarantine.jsonl  the records that cannot be read
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
from data.kinds import find_kind
from data.kinds.base import RecordKind
from data.prepare.dedup import NUM_PERMUTATIONS, minhash_signature, text_digest
from data.prepare.options import CleanOptions
from data.readers.files import RawItem, RawRecord
from data.records import BadRecord, Record, SkippedRecord
from data.sequences import token_dtype
from data.sources import find_source
from data.stored_records import dump_record
from model.chat_template.template import Template, load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

UNIT_BYTES = 8 << 20
UNIT_RECORDS = 1 << 14
ENCODE_BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Raw records of one source that are prepared together, with a digest over all of them.

    `split` is the split of its records, or None if the digest of each record decides.
    """

    index: int
    source: str
    records: list[RawItem]
    digest: str
    split: str | None = None

    def folder(self, units_folder: Path) -> Path:
        """Return the folder of the finished unit."""
        return unit_folder(units_folder, self.index)


def unit_folder(units_folder: Path, index: int) -> Path:
    """Return the folder of the finished unit number `index`."""
    return units_folder / f"{index:06d}"


def split_into_units(
    source: str, records: Iterable[RawItem], first_index: int, split: str | None = None
) -> Iterator[WorkUnit]:
    """Cut the records of a source into units that are numbered from `first_index`.

    A unit ends at `UNIT_BYTES` or at `UNIT_RECORDS`, whichever comes first.
    """
    index = first_index
    pending: list[RawItem] = []
    num_bytes = 0
    for record in records:
        pending.append(record)
        num_bytes += len(record.data) if isinstance(record, RawRecord) else 0
        if num_bytes >= UNIT_BYTES or len(pending) >= UNIT_RECORDS:
            yield _build_unit(index, source, pending, split)
            index += 1
            pending, num_bytes = [], 0
    if pending:
        yield _build_unit(index, source, pending, split)


def _build_unit(index: int, source: str, records: list[RawItem], split: str | None) -> WorkUnit:
    """Return a unit with a digest over source, split, and place and content of every record."""
    hasher = hashlib.blake2b(f"{source} {split}".encode(), digest_size=16)
    for record in records:
        # A BadRecord has no bytes, but a reason.
        body = record.data if isinstance(record, RawRecord) else record.reason.encode()
        # With the length, so that no two lists of records give the same bytes.
        header = f"\0{record.file}\0{record.line}\0{len(body)}\0"
        # A file name may hold bytes that are not UTF-8.
        hasher.update(header.encode("utf-8", "surrogateescape"))
        hasher.update(body)
    return WorkUnit(index, source, records, hasher.hexdigest(), split)


def load_unit_manifest(unit: WorkUnit, units_folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a unit that is finished and has the same records, or None."""
    folder = unit.folder(units_folder)
    if not (folder / MANIFEST).is_file() or check_manifest(folder):
        return None
    manifest = read_json(folder / MANIFEST)
    return manifest if manifest.get("raw") == unit.digest else None


class PrepareWorker:
    """Encode units; each process has one worker."""

    def __init__(
        self,
        units_folder: Path,
        tokenizer: Path,
        options: CleanOptions,
        permutations: np.ndarray | None,
    ) -> None:
        """Load tokenizer and template from the folder `tokenizer`.

        `permutations` are those of `dedup.minhash_permutations`, uint32[2, NUM_PERMUTATIONS], or
        None if near duplicates are not looked for.
        """
        self._units_folder = units_folder
        self._options = options
        self._permutations = permutations
        self._tokenizer = load_tokenizer(tokenizer)
        self._template = load_template(tokenizer)

    def process(self, unit: WorkUnit) -> tuple[int, dict[str, Any], int]:
        """Parse, clean and encode the records of a unit and write its folder.

        Return its number, its manifest and the peak memory of this process (bytes).
        """
        source = find_source(unit.source)
        kind = find_kind(source.kind)
        encoder = _BatchEncoder(kind, self._tokenizer, self._template, self._permutations)
        dropped: collections.Counter[str] = collections.Counter()
        unlisted_fields: collections.Counter[str] = collections.Counter()
        bad_records: list[BadRecord] = []
        for raw in unit.records:
            record = source.try_parse(raw, unlisted_fields)
            # Cleaning returns a SkippedRecord for a document that is not worth training on.
            if isinstance(record, Record):
                record = kind.clean(record, self._options)
            if isinstance(record, BadRecord):
                bad_records.append(record)
            elif isinstance(record, SkippedRecord):
                dropped[record.reason] += 1
            else:
                encoder.add(record)
        manifest = {
            "raw": unit.digest,
            "source": unit.source,
            "records": len(unit.records),
            "quarantined": len(bad_records),
            "split": unit.split,
            "bytes": sum(len(raw.data) for raw in unit.records if isinstance(raw, RawRecord)),
            "dropped": dict(sorted(dropped.items())),
            "unlisted_fields": dict(sorted(unlisted_fields.items())),
        }
        with atomic_folder(unit.folder(self._units_folder), manifest) as folder:
            for name, array in encoder.finish().items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            _write_quarantine(folder / "quarantine.jsonl", bad_records)
        return unit.index, manifest, peak_memory_bytes()


class _BatchEncoder:
    """Encode records in batches, so that ids are Python lists for a moment only."""

    def __init__(
        self,
        kind: RecordKind[Any],
        tokenizer: Tokenizer,
        template: Template,
        permutations: np.ndarray | None,
    ) -> None:
        """Prepare to encode the records of one unit; `permutations` as for `PrepareWorker`."""
        self._kind = kind
        self._tokenizer = tokenizer
        self._template = template
        self._permutations = permutations if kind.drops_near_duplicates else None
        # Each record of the next batch, and its plain text.
        self._pending: list[tuple[Record, str]] = []
        self._pending_characters = 0
        # The batches of each array, after an empty one that gives a unit without records its types.
        self._batches: dict[str, list[np.ndarray]] = {
            "lengths": [np.zeros(0, np.int64)],
            "characters": [np.zeros(0, np.int64)],
            "digests": [np.zeros((0, 2), np.uint64)],
        }
        if kind.is_text:
            self._batches["tokens"] = [np.zeros(0, token_dtype(tokenizer.vocab_size))]
        else:
            self._batches["records"] = [np.zeros(0, np.uint8)]
            self._batches["record_bytes"] = [np.zeros(0, np.int64)]
            self._batches["spans"] = [np.zeros((0, 2), np.int64)]
            self._batches["span_counts"] = [np.zeros(0, np.int64)]
        if self._permutations is not None:
            self._batches["signatures"] = [np.zeros((0, NUM_PERMUTATIONS), np.uint32)]

    def add(self, record: Record) -> None:
        """Queue a cleaned record, and encode the queue if its texts are long enough for a batch."""
        plain_text = record.plain_text()
        self._pending.append((record, plain_text))
        self._pending_characters += len(plain_text)
        if self._pending_characters >= ENCODE_BATCH_CHARACTERS:
            self._encode_pending()

    def finish(self) -> dict[str, np.ndarray]:
        """Encode what is queued and return the arrays of all records, by file name without .npy."""
        if self._pending:
            self._encode_pending()
        return {name: np.concatenate(batches) for name, batches in self._batches.items()}

    def _encode_pending(self) -> None:
        """Encode the queued records and append their arrays to the batches of the unit."""
        records = [record for record, _ in self._pending]
        plain_texts = [plain_text for _, plain_text in self._pending]
        self._pending = []
        self._pending_characters = 0
        encoded = self._kind.encode(self._tokenizer, self._template, records)
        self._append("lengths", [len(ids) for ids, _ in encoded])
        self._append("characters", [len(text) for text in plain_texts])
        self._batches["digests"].append(np.stack([text_digest(text) for text in plain_texts]))
        if self._kind.is_text:
            dtype = self._batches["tokens"][0].dtype
            self._batches["tokens"] += [np.array(ids, dtype=dtype) for ids, _ in encoded]
        else:
            lines = [dump_record(record) for record in records]
            self._batches["records"] += lines
            self._append("record_bytes", [len(line) for line in lines])
            self._batches["spans"] += [
                np.array(spans, dtype=np.int64).reshape(-1, 2) for _, spans in encoded
            ]
            self._append("span_counts", [len(spans) for _, spans in encoded])
        if self._permutations is not None:
            signatures = [minhash_signature(text, self._permutations) for text in plain_texts]
            self._batches["signatures"].append(np.stack(signatures))

    def _append(self, name: str, numbers: list[int]) -> None:
        """Append one batch to the int64 array `name`."""
        self._batches[name].append(np.array(numbers, dtype=np.int64))


def _write_quarantine(path: Path, bad_records: Iterable[BadRecord]) -> None:
    """Write bad records as JSONL: file, line, reason."""
    import orjson

    with path.open("wb") as file:
        for record in bad_records:
            # A file name may hold bytes that are not UTF-8 (surrogates in Python), which JSON
            # cannot hold.
            name = record.file.encode("utf-8", "replace").decode()
            fields = {"file": name, "line": record.line, "reason": record.reason}
            file.write(orjson.dumps(fields) + b"\n")


_worker: PrepareWorker | None = None


def init_worker(
    units_folder: Path, tokenizer: Path, options: CleanOptions, permutations: np.ndarray | None
) -> None:
    """Make this process a worker that leaves Ctrl-C to its parent and ends when its parent does.

    The arguments are those of `PrepareWorker`. Called once in each process of the pool.
    """
    import multiprocessing

    global _worker
    # Ctrl-C reaches all processes of a terminal; the parent then shuts the pool down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    _worker = PrepareWorker(units_folder, tokenizer, options, permutations)


def _exit_with_parent(parent: Any) -> None:
    """End this process as soon as the process `parent` has ended; runs in a thread."""
    # The processes of a pool wait for work forever if their parent is killed with -9.
    parent.join()
    os._exit(1)


def process_unit(unit: WorkUnit) -> tuple[int, dict[str, Any], int]:
    """Process a unit with the worker of this process, which `init_worker` created.

    A function of the module, because a pool sends functions to its processes by name.
    """
    assert _worker is not None
    return _worker.process(unit)
