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

from common.files import MANIFEST, atomic_folder, manifest_problem, read_json
from common.machine import peak_memory_bytes
from data.prepare.clean import CleanOptions, clean, fault
from data.prepare.dedup import PERMUTATIONS, digest, signature
from data.batching.summary_prompts import encode_summaries, summary_texts
from data.readers.files import Raw, RawRecord
from data.records import BadRecord, Document, Kind, Record, Summary, Unused
from data.shards import token_dtype
from data.sources import find_source
from model.chat_template.template import template_of
from model.tokenizer.base import Span, Tokenizer

PART_BYTES = 8 << 20
PART_RECORDS = 1 << 14
BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class Part:
    """Raw records of one source that are prepared together; `raw` is the digest of them all.

    `split` is the one split that its records belong to, or None where the digest of each decides.
    """

    index: int
    source: str
    records: list[Raw]
    raw: str
    split: str | None = None

    def folder(self, parts: Path) -> Path:
        """Where the finished part lies."""
        return part_folder(parts, self.index)


def part_folder(parts: Path, index: int) -> Path:
    """The folder of a part by its number."""
    return parts / f"{index:06d}"


def cut(source: str, records: Iterable[Raw], first: int, split: str | None = None) -> Iterator[Part]:
    """Cut a source's stream of records into parts numbered from `first`."""
    held: list[Raw] = []
    size = 0
    for record in records:
        held.append(record)
        size += len(record.data) if isinstance(record, RawRecord) else 0
        if size >= PART_BYTES or len(held) >= PART_RECORDS:
            yield _part(first, source, held, split)
            first, held, size = first + 1, [], 0
    if held:
        yield _part(first, source, held, split)


def _part(index: int, source: str, records: list[Raw], split: str | None) -> Part:
    whole = hashlib.blake2b(f"{source} {split}".encode(), digest_size=16)
    for record in records:
        body = record.data if isinstance(record, RawRecord) else record.reason.encode()
        whole.update(f"\0{record.file}\0{record.line}\0{len(body)}\0".encode("utf-8", "surrogateescape"))
        whole.update(body)
    return Part(index, source, records, whole.hexdigest(), split)


def finished(part: Part, parts: Path) -> dict[str, Any] | None:
    """The facts of a part that is already there, made of the same records, or None."""
    folder = part.folder(parts)
    if not (folder / MANIFEST).is_file() or manifest_problem(folder):
        return None
    facts = read_json(folder / MANIFEST)
    return facts if facts.get("raw") == part.raw else None


class Worker:
    """Makes parts into tokens: one for each process."""

    def __init__(self, parts: Path, tokenizer: Path, options: CleanOptions, permutations: np.ndarray | None) -> None:
        """`permutations` are those of `data.prepare.dedup`, or None where near duplicates are not sought."""
        self._parts, self._options, self._permutations = parts, options, permutations
        self._tokenizer = Tokenizer.load(tokenizer)
        self._dtype = token_dtype(self._tokenizer.vocabulary_size)
        self._template = template_of(self._tokenizer)

    def process(self, part: Part) -> tuple[int, dict[str, Any], int]:
        """Prepare a part and write its folder; returns its number, its facts, this process's peak memory (bytes)."""
        source = find_source(part.source)
        batches = _Batches(self._tokenizer, self._dtype, self._permutations, kind=source.kind)
        dropped: collections.Counter[str] = collections.Counter()
        bad: list[BadRecord] = []
        for raw in part.records:
            record = source.decode(raw)
            if isinstance(record, BadRecord):
                bad.append(record)
            elif isinstance(record, Unused):
                dropped[record.reason] += 1
            elif reason := self._add(record, batches):
                dropped[reason] += 1
        facts = {
            "raw": part.raw, "source": part.source, "records": len(part.records), "quarantined": len(bad),
            "split": part.split,
            "bytes": sum(len(raw.data) for raw in part.records if isinstance(raw, RawRecord)),
            "dropped": dict(sorted(dropped.items())),
        }
        with atomic_folder(part.folder(self._parts), facts) as folder:
            for name, array in batches.arrays().items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            write_quarantine(folder / "quarantine.jsonl", bad)
        return part.index, facts, peak_memory_bytes()

    def _add(self, record: Record, batches: "_Batches") -> str | None:
        """Add a record, or say why it is dropped. Only documents are cleaned: the rest was written to be read as it is."""
        if isinstance(record, Document):
            text = clean(record.text, self._options)
            if reason := fault(text, self._options):
                return reason
            batches.add([text], text)
        elif isinstance(record, Summary):
            batches.add(summary_texts(self._template, record), f"{record.article}\n{record.title}")
        else:
            turns = [(turn.question, turn.answer) for turn in record.turns]
            said = "\n".join([record.reference, *(text for turn in turns for text in turn)])
            batches.add(self._template.texts(turns, record.reference), said)
        return None


class _Batches:
    """Signs and encodes texts a batch at a time, so that their ids are Python lists only for a moment."""

    def __init__(
        self, tokenizer: Tokenizer, dtype: np.dtype[Any], permutations: np.ndarray | None, *, kind: Kind
    ) -> None:
        self._tokenizer, self._kind, self._template = tokenizer, kind, template_of(tokenizer)
        # Near duplicates are sought among documents only: two questions may well differ in one word.
        self._permutations = permutations if kind == "documents" else None
        self._waiting: list[tuple[list[str], str]] = []
        self._size = 0
        self._arrays: dict[str, list[np.ndarray]] = {
            "tokens": [np.zeros(0, dtype)], "lengths": [np.zeros(0, np.int64)], "characters": [np.zeros(0, np.int64)],
            "digests": [np.zeros((0, 2), np.uint64)], "signatures": [np.zeros((0, PERMUTATIONS), np.uint32)],
            "spans": [np.zeros((0, 2), np.int64)], "spanned": [np.zeros(0, np.int64)],
        }

    def add(self, texts: list[str], said: str) -> None:
        """Add a record: its texts, and what it says, by which it is known again."""
        self._waiting.append((texts, said))
        self._size += sum(map(len, texts))
        if self._size >= BATCH_CHARACTERS:
            self._encode()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything added, by name."""
        if self._waiting:
            self._encode()
        unwanted = {"signatures"} if self._permutations is None else set()
        unwanted |= {"spans", "spanned"} if self._kind == "documents" else set()
        return {name: np.concatenate(parts) for name, parts in self._arrays.items() if name not in unwanted}

    def _encode(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        lengths, spanned, arrays = [], [], self._arrays
        for ids, spans in self._sequences([texts for texts, _ in waiting]):
            arrays["tokens"].append(np.array(ids, dtype=arrays["tokens"][0].dtype))
            arrays["spans"].append(np.array(spans, dtype=np.int64).reshape(-1, 2))
            lengths.append(len(ids))
            spanned.append(len(spans))
        arrays["lengths"].append(np.array(lengths, dtype=np.int64))
        arrays["spanned"].append(np.array(spanned, dtype=np.int64))
        arrays["characters"].append(np.array([sum(map(len, texts)) for texts, _ in waiting], dtype=np.int64))
        arrays["digests"].append(np.stack([digest(said) for _, said in waiting]))
        if self._permutations is not None:
            arrays["signatures"].append(np.stack([signature(said, self._permutations) for _, said in waiting]))

    def _sequences(self, records: list[list[str]]) -> list[tuple[list[int], list[Span]]]:
        """The ids of records, each of some texts, as their kind stores them, and their spans."""
        tokenizer = self._tokenizer
        if self._kind == "documents":
            encoded = tokenizer.encode_batch([text for text, in records], threads=1)
            return [([tokenizer.bos_id, *ids, tokenizer.document_end_id], []) for ids in encoded]
        if self._kind == "summaries":
            return encode_summaries(tokenizer, records)
        return self._template.encode_all(tokenizer, records, threads=1)


def write_quarantine(path: Path, bad: Iterable[BadRecord]) -> None:
    """Write bad records as JSONL: file, line, reason."""
    import orjson

    with path.open("wb") as file:
        for record in bad:
            # Names on disk can be bytes that are no text (surrogates in Python), which JSON has no way to say.
            name = record.file.encode("utf-8", "replace").decode()
            file.write(orjson.dumps({"file": name, "line": record.line, "reason": record.reason}) + b"\n")


_worker: Worker | None = None


def start_worker(parts: Path, tokenizer: Path, options: CleanOptions, permutations: np.ndarray | None) -> None:
    """Make this process a worker: it leaves Ctrl-C to its parent, and ends when its parent does, however that ends."""
    import multiprocessing

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    _worker = Worker(parts, tokenizer, options, permutations)


def _follow(parent: Any) -> None:
    # A pool's processes wait for work forever when their parent is killed with -9.
    parent.join()
    os._exit(1)


def process(part: Part) -> tuple[int, dict[str, Any], int]:
    """`Worker.process` of this process's worker."""
    assert _worker is not None
    return _worker.process(part)
