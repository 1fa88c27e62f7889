"""Build an index from the records of sources, or add the records of more files to it.

The same command continues after an interruption. It reads the inputs from the start, and keeps each
finished segment that has the passages which it would write.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.progress import progress_bar
from data.index.options import IndexOptions, WindowOptions
from data.index.passage_index import PassageIndex
from data.index.passages import Passage, TitledDocument, extract_document
from data.index.segment import MAX_PASSAGES, Segment, write_segment
from data.index.tokens import Tokenize
from data.index.writer import open_writer, segment_name
from data.prepare.provenance import printable_name, stamp_file
from data.prepare.source_args import SourceGroup
from data.readers.files import ProgressCallback
from data.readers.hub import is_hub_input
from data.records import BadRecord, Record, SkippedRecord
from data.sources import find_source
from data.usable_records import UsableRecords


def build_index(groups: Sequence[SourceGroup], options: IndexOptions) -> dict[str, Any]:
    """Add the records of the groups to the index `options.out`, made if it is missing.

    Files that are in the index already are left out, and so are documents. Return a report of the
    index and of what was added. Raises UserError if the folder is something else or an index with
    other options, if another process is adding to it, if inputs cannot be read, if too many records
    are unreadable, or if there is not one passage.
    """
    windows = WindowOptions(characters=options.characters, overlap=options.overlap)
    with open_writer(options.out, windows) as writer:
        inputs, new_groups = _find_new_inputs(groups, writer.inputs)
        num_bytes = sum(path.stat().st_size for group in new_groups for path in group.train_files())
        is_streamed = any(group.is_streamed for group in new_groups)
        reader = DocumentReader()
        with progress_bar("indexing", None if is_streamed else num_bytes, unit="B") as bar:
            writer.add(reader.read_documents(new_groups, bar.update))
        reader.check_bad_share()
        if not writer.segments:
            raise UserError(
                f"{' '.join(groups[0].inputs)}: there is not one passage in the inputs; check that "
                f"they are of {groups[0].source}"
            )
        if new_groups:
            writer.commit(inputs)
        else:
            writer.delete_other_segments()
        return writer.report()


def write_index(
    passages: Iterator[Passage], folder: Path, windows: WindowOptions, tokenize: Tokenize
) -> PassageIndex:
    """Write an index of the same passages with other tokens, and open it.

    It has no `index.json`: only this process knows how its queries are tokenized.
    """
    segments: list[Segment] = []
    while batch := list(itertools.islice(passages, MAX_PASSAGES)):
        segment_folder = folder / segment_name(len(segments))
        write_segment(segment_folder, batch, [], tokenize, {})
        segments.append(Segment(segment_folder))
    return PassageIndex(segments, "", windows, tokenize)


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


class DocumentReader:
    """Reads the documents of records, and counts the records that have none."""

    def __init__(self) -> None:
        """Nothing is read before `read_documents`."""
        self._usable: list[UsableRecords] = []
        # Where the record that was read last begins.
        self._place = ""

    def read_documents(
        self, groups: Sequence[SourceGroup], on_bytes_read: ProgressCallback
    ) -> Iterator[TitledDocument]:
        """Yield the documents of all groups; after each, print what was left out."""
        for group in groups:
            has_title_line = find_source(group.source).has_title_line
            usable = UsableRecords(self._read_records(group, on_bytes_read))
            self._usable.append(usable)
            for record in usable:
                title, text = extract_document(record, has_title_line)
                yield TitledDocument(title, text, self._place)
            usable.print_skipped()

    def _read_records(
        self, group: SourceGroup, on_bytes_read: ProgressCallback
    ) -> Iterator[Record | SkippedRecord | BadRecord]:
        """Yield the records of a group, and note where each begins."""
        source = find_source(group.source)
        for raw in group.read_records(on_bytes_read):
            self._place = f"{printable_name(Path(raw.file))}:{raw.line}"
            yield source.try_parse(raw)

    def check_bad_share(self) -> None:
        """Raise UserError if too many records of a group are unreadable."""
        for usable in self._usable:
            usable.check_bad_share("is it the right --source? Correct the file and run it again")


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
        lines.append(f"left out, repeated or in the index already: {repeated:,} documents")
    return "\n".join(lines)
