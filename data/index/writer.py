"""Add documents to an index: divide them into passages, write segments, name these in `index.json`.

An index is a folder of segments (`data.index.segment`) and `index.json`, which names them and is
written last: until then a search sees the index as it was. Who adds holds a lock beside the folder.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import (
    MANIFEST,
    check_manifest,
    read_json,
    remove_temporary_files,
    write_checksummed_json,
)
from common.locks import exclusive_lock
from common.machine import peak_memory_bytes
from data.index.options import WindowOptions
from data.index.passage_index import (
    INDEX_FILE,
    INDEX_VERSION,
    manifest_checksum,
    read_index_file,
)
from data.index.passages import Passage, TitledDocument, clean_document, split_windows
from data.index.segment import (
    MAX_PASSAGES,
    Segment,
    document_digest,
    dump_passages,
    merge_segments,
    write_segment,
)
from data.index.tokens import character_tokens
from data.prepare.provenance import changed_keys

# Seconds that a program waits for another one that is adding to the same index.
_PATIENCE = 10.0
_SEGMENT_PREFIX = "segment-"


def add_documents(folder: Path, documents: Iterable[TitledDocument]) -> dict[str, Any]:
    """Add documents to the index in a folder, made if it is missing; return a report of it.

    Documents that are in the index already, white space aside, are left out. A `PassageIndex` that
    is open stays as it was: open the folder again to find what was added. Another process or thread
    may do the same at the same time. Raises UserError if the folder is something else than an
    index, if it has been locked for ten seconds, or if a new index would have no passage.
    """
    with open_writer(folder, patience=_PATIENCE) as writer:
        writer.add(map(clean_document, documents))
        if not writer.segments:
            raise UserError(f"{folder}: there is no text to begin an index with")
        writer.commit([])
        return writer.report()


@dataclass
class Batch:
    """The passages of a segment to come, and digests of the documents that begin in it."""

    passages: list[Passage] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)


@contextlib.contextmanager
def open_writer(
    folder: Path, windows: WindowOptions | None = None, patience: float = 0
) -> Iterator["IndexWriter"]:
    """Lock an index, or the place of a new one, and yield its writer.

    Without `windows` they are those of the index, or the defaults for a new one. `patience` is how
    many seconds to wait for the lock. Raises UserError if another process keeps it, or if the
    folder is something else or an index with other windows.
    """
    _check_folder(folder)
    # Beside the folder, which there is not before the first segment.
    lock_file = folder.parent / f".{folder.name}.lock"
    busy_message = f"{folder}: another process is adding to it right now"
    with exclusive_lock(lock_file, busy_message, patience):
        yield IndexWriter(folder, windows)


class IndexWriter:
    """Adds documents to the index in a folder; nothing is searched before `commit`.

    `inputs` and `segments` are the entries of `index.json`, those of new segments included.
    """

    def __init__(self, folder: Path, windows: WindowOptions | None) -> None:
        """Read what is there; `open_writer` holds the lock that this needs."""
        self._start_time = time.monotonic()
        self._folder = folder
        record = _read_record(folder, windows)
        self._settings = {key: record[key] for key in ("version", "windows")}
        self._windows = WindowOptions(**record["windows"])
        self.inputs: list[dict[str, Any]] = record["inputs"]
        self.segments: list[dict[str, Any]] = record["segments"]
        remove_temporary_files(folder)
        self._num_passages = self._num_documents = self._num_repeated = 0
        # Digests of the documents in the index, sorted, uint64[n].
        self._indexed = _load_digests(folder, self.segments)
        # Of the documents of the segment that is being filled.
        self._recent: set[int] = set()

    def add(self, documents: Iterable[TitledDocument]) -> None:
        """Write segments of the documents that are not in the index yet."""
        for batch in self._divide(documents):
            metadata = self._segment_metadata(dump_passages(batch.passages))
            folder = self._next_folder()
            if not _is_finished(folder, metadata):
                write_segment(folder, batch.passages, batch.digests, character_tokens, metadata)
            self.segments.append(_segment_entry(folder, len(batch.passages)))
        self._merge_last_segments()

    def _merge_last_segments(self) -> None:
        """Make one segment of the last ones, from the first that is no larger than all after it.

        However often something is added, a segment is then larger than all after it, unless they
        are too large for one; and a passage is written again only when its segment has at least
        doubled (the logarithmic method: Bentley and Saxe 1980, "Decomposable searching problems").
        """
        sizes = [segment["passages"] for segment in self.segments]
        start = len(sizes) - 1
        while (
            start > 0 and sizes[start - 1] <= sum(sizes[start:]) <= MAX_PASSAGES - sizes[start - 1]
        ):
            start -= 1
        if start >= len(sizes) - 1:
            return
        segments = [Segment(self._folder / entry["name"]) for entry in self.segments[start:]]
        metadata = self._segment_metadata([segment.lines.data for segment in segments])
        folder = self._next_folder()
        if not _is_finished(folder, metadata):
            merge_segments(folder, segments, metadata)
        self.segments[start:] = [_segment_entry(folder, sum(sizes[start:]))]

    def _next_folder(self) -> Path:
        """Return the folder of a new segment, with the number after that of the last one."""
        number = -1
        if self.segments:
            number = int(self.segments[-1]["name"].removeprefix(_SEGMENT_PREFIX))
        return self._folder / segment_name(number + 1)

    def _segment_metadata(self, lines: Iterable[bytes | memoryview]) -> dict[str, Any]:
        """Return what the manifest of a segment with these lines has besides its files."""
        hasher = hashlib.sha256()
        for line in lines:
            hasher.update(line)
        return {**self._settings, "passages": hasher.hexdigest()}

    def commit(self, inputs: Sequence[dict[str, Any]]) -> None:
        """Make the index what was added, and delete what it does not name.

        `inputs` are the entries of the files that were added.
        """
        self.inputs = [*self.inputs, *inputs]
        record = {**self._settings, "inputs": self.inputs, "segments": self.segments}
        write_checksummed_json(self._folder / INDEX_FILE, record)
        self.delete_other_segments()

    def delete_other_segments(self) -> None:
        """Delete segments that the index does not name: merged ones, or of an adding given up."""
        names = {segment["name"] for segment in self.segments}
        for folder in self._folder.glob(f"{_SEGMENT_PREFIX}*"):
            if folder.name not in names:
                shutil.rmtree(folder)

    def report(self) -> dict[str, Any]:
        """Return numbers of the index and of what was added, as `format_report` prints them."""
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        return {
            "passages": sum(segment["passages"] for segment in self.segments),
            "segments": len(self.segments),
            "passages_added": self._num_passages,
            "documents_added": self._num_documents,
            "documents_repeated": self._num_repeated,
            "bytes": sum(path.stat().st_size for path in files),
            "seconds": round(time.monotonic() - self._start_time, 1),
            "peak_memory": peak_memory_bytes(),
        }

    def _divide(self, documents: Iterable[TitledDocument]) -> Iterator[Batch]:
        """Yield the passages of new documents in batches of MAX_PASSAGES; the last is smaller."""
        batch = Batch()
        for document in documents:
            if not self._add_digest(document.text, batch):
                continue
            for window in split_windows(document.text, self._windows):
                self._num_passages += 1
                batch.passages.append(Passage(document.title, window, document.source))
                if len(batch.passages) == MAX_PASSAGES:
                    yield batch
                    batch = self._start_batch()
        if batch.passages:
            yield batch

    def _add_digest(self, text: str, batch: Batch) -> bool:
        """Count a document, and return whether it is a new one."""
        digest = document_digest(text)
        place = np.searchsorted(self._indexed, np.uint64(digest))
        is_indexed = place < len(self._indexed) and int(self._indexed[place]) == digest
        if is_indexed or digest in self._recent:
            self._num_repeated += 1
            return False
        self._num_documents += 1
        self._recent.add(digest)
        batch.digests.append(digest)
        return True

    def _start_batch(self) -> Batch:
        """Return an empty batch, and keep the digests of the one before it in less memory."""
        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        self._indexed = np.sort(np.concatenate([self._indexed, recent]))
        self._recent.clear()
        return Batch()


def segment_name(number: int) -> str:
    """Return the name of a segment's folder."""
    return f"{_SEGMENT_PREFIX}{number:05d}"


def _check_folder(folder: Path) -> None:
    """Raise UserError if the folder exists and is neither an index nor the beginning of one."""
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [""]
    # Without index.json there may be segments of a build that was interrupted.
    own_names = (_SEGMENT_PREFIX, f".{_SEGMENT_PREFIX}", f".{INDEX_FILE}.")
    if INDEX_FILE not in names and not all(name.startswith(own_names) for name in names):
        raise UserError(f"{folder}: exists and is not an index: name another folder")


def _read_record(folder: Path, windows: WindowOptions | None) -> dict[str, Any]:
    """Return what `index.json` says; of a new index, that nothing is in it.

    Raises UserError if it was made with other windows.
    """
    settings = {
        "version": INDEX_VERSION,
        "windows": (windows or WindowOptions()).model_dump(mode="json"),
    }
    if not (folder / INDEX_FILE).is_file():
        return {**settings, "inputs": [], "segments": []}
    record = read_index_file(folder)
    changed = changed_keys({key: record.get(key) for key in settings}, settings)
    if windows is not None and changed:
        raise UserError(
            f"--out {folder}: is an index with other options (what differs: {', '.join(changed)}); "
            "repeat them to add to it, or give another --out"
        )
    return record


def _load_digests(folder: Path, segments: list[dict[str, Any]]) -> np.ndarray:
    """Return the digests of all documents of the segments, sorted, uint64[n]."""
    digests = [Segment(folder / segment["name"]).digests for segment in segments]
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *digests]))


def _segment_entry(folder: Path, num_passages: int) -> dict[str, Any]:
    """Return what `index.json` says of a segment."""
    return {
        "name": folder.name,
        "passages": num_passages,
        "manifest": manifest_checksum(folder),
    }


def _is_finished(segment_folder: Path, metadata: dict[str, Any]) -> bool:
    """Return whether a segment was finished before an interruption.

    It then has this metadata, that is the same passages and settings, and files that verify.
    """
    if not (segment_folder / MANIFEST).is_file() or check_manifest(segment_folder):
        return False
    manifest = read_json(segment_folder / MANIFEST)
    return all(manifest.get(key) == value for key, value in metadata.items())
