"""Detect which source reads a raw file: by its name, its first bytes, its first records' keys."""

import itertools
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.kinds import find_kind
from data.readers.encoding import describe_encoding, guess_encoding, is_utf8
from data.readers.files import RawItem, RawRecord, read_head, read_records
from data.readers.json_array import find_layout
from data.readers.table import find_header
from data.records import BadRecord
from data.sources import SOURCES
from data.sources.base import SchemaError, Source, list_keys, parse_json_object
from data.sources.fields import UNPAIRED_CURE, is_unpaired, list_preference_fields

# Records that are looked at, and the bytes after which no further one is.
MAX_RECORDS = 100
MAX_BYTES = 1 << 20
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})


def detect_source(files: list[Path], advice: str | None = None) -> str:
    """Return the name of the one source that reads all files.

    `advice` says how the command takes a source (None: data.prepare does). Raises UserError if a
    file is not recognized or if two files need different sources.
    """
    source_by_file = {file: _detect_file_source(file, advice) for file in files}
    first_source = source_by_file[files[0]]
    for file, source in source_by_file.items():
        if source != first_source:
            raise _mixed_files_error(files[0], first_source, file, source)
    return first_source


def group_by_source(files: list[Path]) -> dict[str, list[Path]]:
    """Return the files by the source that reads them, in the order of each source's first file.

    Instructions in several schemas, such as Alpaca's and Belle's, may lie together. Raises
    UserError if a file is not recognized, if two files hold records of different kinds, or if the
    files are text and need different sources: any stray text file would be trained on.
    """
    source_by_file = {file: _detect_file_source(file, None) for file in files}
    first_source = source_by_file[files[0]]
    first_kind = find_kind(SOURCES[first_source].kind)
    groups: dict[str, list[Path]] = {}
    for file, source in source_by_file.items():
        kind = find_kind(SOURCES[source].kind)
        if kind is not first_kind or (kind.is_text and source != first_source):
            raise _mixed_files_error(files[0], first_source, file, source)
        groups.setdefault(source, []).append(file)
    return groups


def _mixed_files_error(first: Path, first_source: str, file: Path, source: str) -> UserError:
    """Return the error for two files that cannot be in one set, with the source of each."""
    return UserError(
        f"{first} is read as {first_source} but {file} as {source}: give files of one kind, or "
        "prepare each kind by itself with python -m data.prepare --source NAME"
    )


def _detect_file_source(path: Path, advice: str | None) -> str:
    """Return the name of the source that reads a file.

    `advice` is for the message, as in `detect_source`. Raises UserError if the file is empty or not
    recognized.
    """
    head = read_head(path)
    for source in SOURCES.values():
        if source.recognizes_file is not None and source.recognizes_file(path, head):
            # None of its text could be read. The reader itself cannot name the whole command.
            if not is_utf8(head) and guess_encoding(head) is not None:
                raise UserError(f"{path}: is {describe_encoding(head, path)}")
            return source.name
    # No source knows the file by its name or first bytes: compare the keys of its first records. A
    # few of them may be bad; the preparation reports them.
    records = _first_records(path)
    if not records:
        raise UserError(f"{path} is empty")
    rows = [_try_parse_object(record) for record in records]
    layout = find_layout(head)
    is_list = layout is not None and layout[0] != "values"
    votes = Counter(_match_keys(row, is_list) for row in rows if isinstance(row, dict))
    num_unknown = votes.pop(None, 0)
    for name, num_records in votes.most_common(1):
        if name is not None and num_records >= num_unknown:
            return name
    raise _unrecognized_error(path, head, records, rows, advice)


def _first_records(path: Path) -> list[RawItem]:
    """Return the first records of a file, at most `MAX_RECORDS` and about `MAX_BYTES`."""
    records: list[RawItem] = []
    num_bytes = 0
    for record in itertools.islice(read_records(path), MAX_RECORDS):
        records.append(record)
        num_bytes += len(record.data) if isinstance(record, RawRecord) else 0
        if num_bytes > MAX_BYTES:
            break
    return records


def _unrecognized_error(
    path: Path,
    head: bytes,
    records: list[RawItem],
    rows: list[dict[str, Any] | str],
    advice: str | None,
) -> UserError:
    """Return the error for a file of which no source knows the records.

    `rows` has for each of the `records` its object, or else why it is none.
    """
    first_object = next((row for row in rows if isinstance(row, dict)), None)
    if first_object is not None and is_unpaired(first_object):
        return UserError(f"{path}: single answers with a label, not pairs; {UNPAIRED_CURE}")
    if first_object is not None and (preference_fields := list_preference_fields(first_object)):
        return UserError(
            f"{path}: preference data (its first record has {', '.join(preference_fields)}) in a "
            "schema that no source reads: write it as {prompt, chosen, rejected} and train on it "
            "with make dpo DATA=FILE"
        )
    observation = f"line {records[0].line}: {rows[0]}"
    if first_object is not None:
        observation = f"its first record has {list_keys(first_object)}"
    elif not is_utf8(head):
        return UserError(f"{path}: is {describe_encoding(head, path)}")
    elif head.lstrip().startswith(b"{") or isinstance(records[0], BadRecord):
        return UserError(
            f"{path} {observation}; none of its first {len(rows):,} records can be read: correct "
            "the file"
        )
    elif path.suffix.lower() in TABLE_SUFFIXES:
        observation = "a table is read by the names of its columns, such as title and abstract"
        if (header := find_header(head)) is not None:
            names = [" ".join(name.split())[:20] for name in header.names[:12]]
            observation += f"; its first line has {', '.join(names)}"
    advice = advice or (
        f"python -m data.prepare --source NAME --input {shlex.quote(str(path))} --tokenizer PATH "
        "--out DIR"
    )
    return UserError(
        f"{path}: cannot tell which source reads this ({observation}): docs/data.md lists what can "
        f"be read; if this is one of those, name it with {advice}"
    )


def _match_keys(row: dict[str, Any], is_list: bool) -> str | None:
    """Return the name of the source whose keys a record has, or None.

    Among several the one with the most keys is returned; a source with a further test
    (`recognizes`) that the record passes goes before all sources without one. `is_list` tells
    whether the file is a JSON list.
    """
    # A source that does not declare such a key would train on half of a pair.
    preference_keys = set(list_preference_fields(row))
    best_source: Source | None = None
    # Whether the source has a further test, and how many keys it has.
    best_rank = (False, 0)
    for source in SOURCES.values():
        if source.recognizes is not None and not source.recognizes(row, is_list):
            continue
        for keys in source.keys:
            if preference_keys and not keys & preference_keys:
                continue
            rank = (source.recognizes is not None, len(keys))
            if row.keys() >= keys and rank > best_rank:
                best_source, best_rank = source, rank
    return best_source.name if best_source is not None else None


def _try_parse_object(record: RawItem) -> dict[str, Any] | str:
    """Return the JSON object in a raw record, or why it has none."""
    if isinstance(record, BadRecord):
        return record.reason
    try:
        return parse_json_object(record.data)
    except SchemaError as error:
        return str(error)
