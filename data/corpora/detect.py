"""Detect which source reads a raw file: by its name, its first bytes, its first record's keys."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.files import read_head, read_records
from data.records import BadRecord
from data.sources import SOURCES
from data.sources.base import Source, list_keys
from data.sources.fields import PREFERENCE_FIELDS


def detect_source(files: list[Path]) -> str:
    """Return the name of the one source that reads all files.

    Raises UserError if a file is not recognized or if two files need different sources.
    """
    source_by_file = {file: _detect_file_source(file) for file in files}
    first_file = files[0]
    first_source = source_by_file[first_file]
    for file, source in source_by_file.items():
        if source != first_source:
            raise UserError(
                f"{first_file} is read as {first_source} but {file} as {source}: give files of one "
                "kind, or prepare each kind by itself with python -m data.prepare --source NAME"
            )
    return first_source


def _detect_file_source(path: Path) -> str:
    """Return the name of the source that reads a file.

    Raises UserError if the file is empty or not recognized.
    """
    head = read_head(path)
    for source in SOURCES.values():
        if source.recognizes_file is not None and source.recognizes_file(path, head):
            return source.name
    # No source knows the file by its name or first bytes: compare the keys of its first record.
    first_record = next(read_records(path), None)
    if first_record is None:
        raise UserError(f"{path} is empty")
    row = {} if isinstance(first_record, BadRecord) else _try_parse_object(first_record.data)
    matched_source = _match_keys(row, is_list=head.lstrip().startswith(b"["))
    if matched_source is not None:
        return matched_source.name
    if preference_keys := PREFERENCE_FIELDS & row.keys():
        raise UserError(
            f"{path}: preference data (its first record has {', '.join(sorted(preference_keys))}), "
            "and there is no trainer for it: give conversations of which every answer is a good one"
        )
    observation = "it does not begin with a JSON object"
    if row:
        observation = f"its first record has {list_keys(row)}"
    raise UserError(
        f"{path}: cannot tell which source reads this ({observation}): docs/data.md lists what can "
        "be read; if this is one of those, name it with python -m data.prepare --source NAME "
        f"--input {path} --tokenizer PATH --out DIR"
    )


def _match_keys(row: dict[str, Any], is_list: bool) -> Source | None:
    """Return the source whose keys a file's first record has, or None.

    Among several the one with the most keys is returned; a source with a further test
    (`recognizes`) that the record passes goes before all sources without one. `is_list` tells
    whether the file is a JSON list.
    """
    # A source that does not declare such a key would train on half of a pair.
    preference_keys = PREFERENCE_FIELDS & row.keys()
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
    return best_source


def _try_parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`, or an empty one for anything else."""
    import orjson

    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}
