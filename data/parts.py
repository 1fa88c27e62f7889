"""Preparation's unit of work: a part is some megabytes of raw records, made into tokens by one process.

The stream of records is cut into parts the same way every time, whatever the number of processes. A part that is done
is a folder with a manifest, so an interrupted preparation reads on past what is there:

    tokens.npy      the ids of the part's documents, `<bos> text <eos>` one after another
    lengths.npy     ids of each document, int64[n]
    characters.npy  characters of each document, int64[n]
    digests.npy     what `data.dedup.digest` says of each, uint64[n, 2]
    signatures.npy  what `data.dedup.signature` says of each, uint32[n, PERMUTATIONS] (where near duplicates are sought)
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
from data.clean import CleanOptions, clean, fault
from data.dedup import PERMUTATIONS, digest, signature
from data.reading import Raw, RawRecord
from data.records import BadRecord
from data.shards import token_dtype
from data.sources import find_source
from model.tokenizer import Tokenizer

PART_BYTES = 8 << 20
PART_RECORDS = 1 << 14
BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class Part:
    """Raw records of one source that are prepared together; `raw` is the digest of them all."""

    index: int
    source: str
    records: list[Raw]
    raw: str

    def folder(self, parts: Path) -> Path:
        """Where the finished part lies."""
        return part_folder(parts, self.index)


def part_folder(parts: Path, index: int) -> Path:
    """The folder of a part by its number."""
    return parts / f"{index:06d}"


def cut(source: str, records: Iterable[Raw], first: int) -> Iterator[Part]:
    """Cut a source's stream of records into parts numbered from `first`."""
    held: list[Raw] = []
    size = 0
    for record in records:
        held.append(record)
        size += len(record.data) if isinstance(record, RawRecord) else 0
        if size >= PART_BYTES or len(held) >= PART_RECORDS:
            yield _part(first, source, held)
            first, held, size = first + 1, [], 0
    if held:
        yield _part(first, source, held)


def _part(index: int, source: str, records: list[Raw]) -> Part:
    whole = hashlib.blake2b(source.encode(), digest_size=16)
    for record in records:
        body = record.data if isinstance(record, RawRecord) else record.reason.encode()
        whole.update(f"\0{record.file}\0{record.line}\0{len(body)}\0".encode())
        whole.update(body)
    return Part(index, source, records, whole.hexdigest())


def finished(part: Part, parts: Path) -> dict[str, Any] | None:
    """The facts of a part that is already there, made of the same records, or None."""
    folder = part.folder(parts)
    if not (folder / MANIFEST).is_file() or manifest_problem(folder, checksums=False):
        return None
    facts = read_json(folder / MANIFEST)
    return facts if facts.get("raw") == part.raw else None


class Worker:
    """Makes parts into tokens: one for each process."""

    def __init__(self, parts: Path, tokenizer: Path, options: CleanOptions, permutations: np.ndarray | None) -> None:
        """`permutations` are those of `data.dedup`, or None where near duplicates are not sought."""
        self._parts, self._options, self._permutations = parts, options, permutations
        self._tokenizer = Tokenizer.load(tokenizer)
        self._dtype = token_dtype(self._tokenizer.vocabulary_size)

    def process(self, part: Part) -> tuple[int, dict[str, Any], int]:
        """Prepare a part and write its folder; returns its number, its facts, this process's peak memory (bytes)."""
        source = find_source(part.source)
        batches = _Batches(self._tokenizer, self._dtype, self._permutations)
        dropped: collections.Counter[str] = collections.Counter()
        bad: list[BadRecord] = []
        for raw in part.records:
            record = source.decode(raw)
            if isinstance(record, BadRecord):
                bad.append(record)
                continue
            text = clean(record.text, self._options)
            if reason := fault(text, self._options):
                dropped[reason] += 1
            else:
                batches.add(text)
        facts = {
            "raw": part.raw, "source": part.source, "records": len(part.records), "quarantined": len(bad),
            "bytes": sum(len(raw.data) for raw in part.records if isinstance(raw, RawRecord)),
            "dropped": dict(sorted(dropped.items())),
        }
        with atomic_folder(part.folder(self._parts), facts) as folder:
            for name, array in batches.arrays().items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            write_quarantine(folder / "quarantine.jsonl", bad)
        return part.index, facts, peak_memory_bytes()


class _Batches:
    """Signs and encodes texts a batch at a time, so that their ids are Python lists only for a moment."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any], permutations: np.ndarray | None) -> None:
        self._tokenizer, self._permutations = tokenizer, permutations
        self._waiting: list[str] = []
        self._size = 0
        self._arrays: dict[str, list[np.ndarray]] = {
            "tokens": [np.zeros(0, dtype)], "lengths": [np.zeros(0, np.int64)], "characters": [np.zeros(0, np.int64)],
            "digests": [np.zeros((0, 2), np.uint64)], "signatures": [np.zeros((0, PERMUTATIONS), np.uint32)],
        }

    def add(self, text: str) -> None:
        self._waiting.append(text)
        self._size += len(text)
        if self._size >= BATCH_CHARACTERS:
            self._encode()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything added, by name."""
        if self._waiting:
            self._encode()
        wanted = [name for name in self._arrays if self._permutations is not None or name != "signatures"]
        return {name: np.concatenate(self._arrays[name]) for name in wanted}

    def _encode(self) -> None:
        texts, self._waiting, self._size = self._waiting, [], 0
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        lengths, tokens, dtype = [], self._arrays["tokens"], self._arrays["tokens"][0].dtype
        for ids in self._tokenizer.encode_batch(texts, threads=1):
            tokens.append(np.array([bos, *ids, eos], dtype=dtype))
            lengths.append(len(ids) + 2)
        self._arrays["lengths"].append(np.array(lengths, dtype=np.int64))
        self._arrays["characters"].append(np.array([len(text) for text in texts], dtype=np.int64))
        self._arrays["digests"].append(np.stack([digest(text) for text in texts]))
        if self._permutations is not None:
            self._arrays["signatures"].append(np.stack([signature(text, self._permutations) for text in texts]))


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
