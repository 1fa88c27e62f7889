"""Build an index from the records of sources, or add the records of more files to it.

An index is a folder of segments (`data.index.segment`) and `index.json`, which names them and is
written last: until then a search sees the index as it was. The same command continues after an
interruption. It reads the inputs from the start, and keeps each finished segment that has the
passages which it would write.
"""

import hashlib
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
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
from common.progress import progress_bar
from data.index.options import IndexOptions, WindowOptions
from data.index.passage_index import (
    INDEX_FILE,
    INDEX_VERSION,
    PassageIndex,
    manifest_checksum,
    read_index_file,
)
from data.index.passages import Passage, extract_document, split_windows
from data.index.segment import (
    MAX_PASSAGES,
    Segment,
    document_digest,
    dump_passages,
    write_segment,
)
from data.index.tokens import Tokenize, character_tokens
from data.prepare.provenance import changed_keys, printable_name, stamp_file
from data.prepare.source_args import SourceGroup
from data.readers.files import ProgressCallback
from data.readers.hub import is_hub_input
from data.records import BadRecord, Record, SkippedRecord
from data.sources import find_source
from data.usable_records import UsableRecords


@dataclass
class Batch:
    """The passages of a segment to come, and digests of the documents that begin in it."""

    passages: list[Passage] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)


def build_index(groups: Sequence[SourceGroup], options: IndexOptions) -> dict[str, Any]:
    """Add the records of the groups to the index `options.out`, made if it is missing.

    Files that are in the index already are left out, and so are documents. Return a report of the
    index and of what was added. Raises UserError if the folder is something else or an index with
    other options, if another process is adding to it, if inputs cannot be read, if too many records
    are unreadable, or if there is not one passage.
    """
    start_time = time.monotonic()
    out = options.out
    windows = WindowOptions(characters=options.characters, overlap=options.overlap)
    _check_folder(out)
    # Beside the folder, which there is not before the first segment.
    lock_file = out.parent / f".{out.name}.lock"
    with exclusive_lock(lock_file, f"{out}: another process is adding to it right now"):
        settings = {"version": INDEX_VERSION, "windows": windows.model_dump(mode="json")}
        record = _read_record(out, settings)
        remove_temporary_files(out)
        inputs, new_groups = _find_new_inputs(groups, record["inputs"])
        reader = DocumentReader(windows, _load_digests(out, record["segments"]))
        segments = list(record["segments"])
        num_bytes = sum(path.stat().st_size for group in new_groups for path in group.train_files())
        is_streamed = any(group.is_streamed for group in new_groups)
        with progress_bar("indexing", None if is_streamed else num_bytes, unit="B") as bar:
            for batch in reader.read_batches(new_groups, bar.update):
                segments.append(_write_batch(out, len(segments), batch, settings))
        reader.check_bad_share()
        if not segments:
            raise UserError(
                f"{' '.join(groups[0].inputs)}: there is not one passage in the inputs; check that "
                f"they are of {groups[0].source}"
            )
        if new_groups:
            record = {**settings, "inputs": [*record["inputs"], *inputs], "segments": segments}
            write_checksummed_json(out / INDEX_FILE, record)
        _delete_other_segments(out, segments)
    return {
        "passages": sum(segment["passages"] for segment in segments),
        "segments": len(segments),
        "passages_added": reader.num_passages,
        "documents_added": reader.num_documents,
        "documents_repeated": reader.num_repeated,
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "seconds": round(time.monotonic() - start_time, 1),
        "peak_memory": peak_memory_bytes(),
    }


def write_index(
    passages: Iterator[Passage], folder: Path, windows: WindowOptions, tokenize: Tokenize
) -> PassageIndex:
    """Write an index of the same passages with other tokens, and open it.

    It has no `index.json`: only this process knows how its queries are tokenized.
    """
    segments: list[Segment] = []
    while batch := list(itertools.islice(passages, MAX_PASSAGES)):
        segment_folder = folder / _segment_name(len(segments))
        write_segment(segment_folder, batch, [], tokenize, {})
        segments.append(Segment(segment_folder))
    return PassageIndex(segments, "", windows, tokenize)


def _segment_name(number: int) -> str:
    return f"segment-{number:05d}"


def _check_folder(out: Path) -> None:
    """Raise UserError if the folder exists and is neither an index nor the beginning of one."""
    if not out.exists():
        return
    names = [path.name for path in out.iterdir()] if out.is_dir() else [""]
    # Without index.json there may be segments of a build that was interrupted.
    own_names = ("segment-", ".segment-", f".{INDEX_FILE}.")
    if INDEX_FILE not in names and not all(name.startswith(own_names) for name in names):
        raise UserError(f"{out}: exists and is not an index: give another --out")


def _read_record(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what `index.json` says; of a new index, that nothing is in it.

    Raises UserError if it was made with other settings.
    """
    if not (out / INDEX_FILE).is_file():
        return {"inputs": [], "segments": []}
    record = read_index_file(out)
    changed = changed_keys({key: record.get(key) for key in settings}, settings)
    if changed:
        raise UserError(
            f"--out {out}: is an index with other options (what differs: {', '.join(changed)}); "
            "repeat them to add to it, or give another --out"
        )
    return record


def _find_new_inputs(
    groups: Sequence[SourceGroup], indexed: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[SourceGroup]]:
    """Return stamps and groups of the files and hub datasets that are not indexed yet.

    Prints how many are.
    """
    known = {
        (entry["source"], key)
        for entry in indexed
        for key in [*entry["hub"], *(stamp["sha256"] for stamp in entry["files"])]
    }
    inputs, new_groups, num_known = [], [], 0
    for group in groups:
        stamps, paths = [], []
        for path in group.train_files():
            stamp = stamp_file(path)
            if (group.source, stamp["sha256"]) in known:
                num_known += 1
                continue
            # The same content under two names is read once, too.
            known.add((group.source, stamp["sha256"]))
            stamps.append(stamp)
            paths.append(str(path))
        hub_inputs = filter(is_hub_input, group.inputs)
        hub = {
            name: hub_input
            for name, hub_input in zip(group.hub_datasets(), hub_inputs, strict=True)
            if (group.source, name) not in known
        }
        num_known += len(group.hub_datasets()) - len(hub)
        if paths or hub:
            inputs.append({"source": group.source, "files": stamps, "hub": list(hub)})
            new_groups.append(SourceGroup(group.source, (*paths, *hub.values())))
    if num_known:
        print(f"in the index already: {num_known:,} of the inputs", flush=True)
    return inputs, new_groups


def _load_digests(out: Path, segments: list[dict[str, Any]]) -> np.ndarray:
    """Return the digests of all documents of the segments, sorted, uint64[n]."""
    digests = [Segment(out / segment["name"]).digests for segment in segments]
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *digests]))


class DocumentReader:
    """Reads documents that are not indexed yet, and counts what it reads."""

    def __init__(self, windows: WindowOptions, digests: np.ndarray) -> None:
        """`digests` are those of the documents in the index, sorted, uint64[n]."""
        self.num_passages = self.num_documents = self.num_repeated = 0
        self._windows = windows
        self._indexed = digests
        # Of the documents of the segment that is being filled.
        self._recent: set[int] = set()
        self._usable: list[UsableRecords] = []
        # Where the record that was read last begins.
        self._place = ""

    def read_batches(
        self, groups: Sequence[SourceGroup], on_bytes_read: ProgressCallback
    ) -> Iterator[Batch]:
        """Yield the passages of all records in batches of MAX_PASSAGES; the last is smaller."""
        batch = Batch()
        for group in groups:
            has_title_line = find_source(group.source).has_title_line
            usable = UsableRecords(self._read_records(group, on_bytes_read))
            self._usable.append(usable)
            for record in usable:
                title, text = extract_document(record, has_title_line)
                if not self._add_digest(text, batch):
                    continue
                for window in split_windows(text, self._windows):
                    self.num_passages += 1
                    batch.passages.append(Passage(title, window, self._place))
                    if len(batch.passages) == MAX_PASSAGES:
                        yield batch
                        batch = self._start_batch()
            usable.print_skipped()
        if batch.passages:
            yield batch

    def _read_records(
        self, group: SourceGroup, on_bytes_read: ProgressCallback
    ) -> Iterator[Record | SkippedRecord | BadRecord]:
        """Yield the records of a group, and note where each begins."""
        source = find_source(group.source)
        for raw in group.read_records(on_bytes_read):
            self._place = f"{printable_name(Path(raw.file))}:{raw.line}"
            yield source.try_parse(raw)

    def _add_digest(self, text: str, batch: Batch) -> bool:
        """Count a document, and return whether it is a new one."""
        digest = document_digest(text)
        place = np.searchsorted(self._indexed, np.uint64(digest))
        is_indexed = place < len(self._indexed) and int(self._indexed[place]) == digest
        if is_indexed or digest in self._recent:
            self.num_repeated += 1
            return False
        self.num_documents += 1
        self._recent.add(digest)
        batch.digests.append(digest)
        return True

    def _start_batch(self) -> Batch:
        """Return an empty batch, and keep the digests of the one before it in less memory."""
        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        self._indexed = np.sort(np.concatenate([self._indexed, recent]))
        self._recent.clear()
        return Batch()

    def check_bad_share(self) -> None:
        """Raise UserError if too many records of a group are unreadable."""
        for usable in self._usable:
            usable.check_bad_share("is it the right --source? Correct the file and run it again")


def _write_batch(out: Path, number: int, batch: Batch, settings: dict[str, Any]) -> dict[str, Any]:
    """Write a segment unless it was finished before an interruption; return its entry.

    A finished segment is kept if its files verify and if it has the same passages and settings.
    """
    name = _segment_name(number)
    hasher = hashlib.sha256()
    for line in dump_passages(batch.passages):
        hasher.update(line)
    metadata = {**settings, "passages": hasher.hexdigest()}
    if not _is_finished(out / name, metadata):
        write_segment(out / name, batch.passages, batch.digests, character_tokens, metadata)
    return {
        "name": name,
        "passages": len(batch.passages),
        "manifest": manifest_checksum(out / name),
    }


def _is_finished(segment_folder: Path, metadata: dict[str, Any]) -> bool:
    """Return whether a segment has this metadata, and files that verify."""
    if not (segment_folder / MANIFEST).is_file() or check_manifest(segment_folder):
        return False
    manifest = read_json(segment_folder / MANIFEST)
    return all(manifest.get(key) == value for key, value in metadata.items())


def _delete_other_segments(out: Path, segments: list[dict[str, Any]]) -> None:
    """Delete segments that the index does not name: of an adding that was given up."""
    names = {segment["name"] for segment in segments}
    for folder in out.glob("segment-*"):
        if folder.name not in names:
            shutil.rmtree(folder)


def format_report(report: dict[str, Any], out: Path) -> str:
    """Return the lines that the command prints."""
    repeated = report["documents_repeated"]
    lines = [
        f"{out}: {report['passages']:,} passages in {report['segments']:,} segments, "
        f"{report['bytes'] / 1e6:,.1f} MB",
        f"added: {report['passages_added']:,} passages of {report['documents_added']:,} documents "
        f"in {report['seconds']:,.1f} s, with {report['peak_memory'] / 1e6:,.0f} MB of memory",
    ]
    if repeated:
        lines.append(f"left out, in the index already: {repeated:,} documents")
    return "\n".join(lines)
