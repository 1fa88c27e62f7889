"""Record what a shard set was prepared from, and compare a set on disk with a preparation.

Every shard set holds `made-from.json`: the settings that determine its contents (format, code
version, tokenizer, options) and a stamp of every input file (name, size, time, checksum). No other
module compares one preparation with another: `data.prepare`, `make data` and a training run that
names raw files all reuse a set if, and only if, `find_differences` returns nothing.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import check_manifest, read_checksummed_json, sha256_file, write_checksummed_json
from data.prepare.source_args import SourceGroup
from data.shards import PROVENANCE_FILE, SHARD_FORMAT

# Raise this when a change gives the same records other ids: sets of another version are then
# prepared again.
PREPARE_VERSION = 2
# The stamps of a corpus of a million files take about 200 MB.
MAX_PROVENANCE_BYTES = 1 << 30


def describe_settings(tokenizer_fingerprint: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return everything besides the inputs that determines the contents of a shard set.

    `options` are the options of the preparation that change its result.
    """
    return {
        "format": SHARD_FORMAT,
        "version": PREPARE_VERSION,
        "tokenizer": tokenizer_fingerprint,
        "options": options,
    }


def write_provenance(
    folder: Path,
    settings: dict[str, Any],
    groups: Sequence[SourceGroup],
    corpus: dict[str, Any] | None,
) -> None:
    """Write `made-from.json`: the settings, a stamp of each input file, and the corpus.

    `corpus` has the name and parts of a corpus that was prepared by name, and is None for other
    inputs. Raises UserError if a file cannot be read.
    """
    inputs = [
        {
            "source": group.source,
            "train": [stamp_file(path) for path in group.train_files()],
            "dev": [stamp_file(path) for path in group.dev_files()],
            "hub": group.hub_datasets(),
        }
        for group in groups
    ]
    provenance = {**settings, "inputs": inputs, "corpus": corpus}
    write_checksummed_json(folder / PROVENANCE_FILE, provenance)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read `made-from.json`. Raises UserError if it is missing or damaged."""
    return read_checksummed_json(
        folder / PROVENANCE_FILE,
        advice=f": delete {folder} and prepare it again",
        max_bytes=MAX_PROVENANCE_BYTES,
    )


def read_sources(folder: Path) -> list[str]:
    """Return the names of the sources that the shard set in `folder` was prepared from, in order.

    The list is empty for a set without `made-from.json`. Raises UserError if that is damaged.
    """
    if not (folder / PROVENANCE_FILE).is_file():
        return []
    return [group["source"] for group in read_provenance(folder)["inputs"]]


def find_differences(
    folder: Path, settings: dict[str, Any], groups: Sequence[SourceGroup]
) -> list[str]:
    """Return the differences between the shard set in `folder` and what would be prepared.

    They are dotted keys (`version`, `options.dedup.near`, `inputs`) or a sentence about a damaged
    file; an empty list means that the set can be reused.
    """
    problem = check_manifest(folder, verify_checksums=False)
    if problem is not None:
        return [problem]
    try:
        provenance = read_provenance(folder)
    except UserError as error:
        return [str(error)]
    recorded_settings = {key: provenance.get(key) for key in settings}
    differences = changed_keys(recorded_settings, settings)
    if "format" in differences:
        # Another format may record its inputs in another form.
        return ["format"]
    if not match_inputs(provenance, groups):
        differences.append("inputs")
    return differences


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys, after `prefix`, at which two nested dicts have different values.

    A key that one of them lacks counts as None there.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        changes: list[str] = []
        for key in sorted(before.keys() | after.keys()):
            changes += changed_keys(before.get(key), after.get(key), f"{prefix}{key}.")
        return changes
    return [] if before == after else [prefix.rstrip(".")]


def match_inputs(provenance: dict[str, Any], groups: Sequence[SourceGroup]) -> bool:
    """Return whether a set was made from the sources, hub datasets and files of the groups.

    The order of groups and files counts, because it is the order of the records.
    """
    recorded_groups = provenance["inputs"]
    if len(recorded_groups) != len(groups):
        return False
    for recorded, group in zip(recorded_groups, groups, strict=True):
        if (recorded["source"], recorded["hub"]) != (group.source, group.hub_datasets()):
            return False
        if not _match_files(recorded["train"], group.train_files()):
            return False
        if not _match_files(recorded["dev"], group.dev_files()):
            return False
    return True


def _match_files(stamps: list[dict[str, Any]], files: list[Path]) -> bool:
    """Return whether files are those that were stamped, in the same order."""
    return len(stamps) == len(files) and all(map(_matches_stamp, stamps, files))


def stamp_file(path: Path) -> dict[str, Any]:
    """Return name, size, modification time and checksum of a file.

    Raises UserError if it cannot be read.
    """
    try:
        status = path.stat()
        digest = sha256_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return {
        "name": printable_name(path),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": digest,
    }


def printable_name(path: Path) -> str:
    """Return the file's name; bytes that are not UTF-8, which JSON cannot hold, are replaced."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def _matches_stamp(stamp: dict[str, Any], path: Path) -> bool:
    """Return whether a file has the name, size and content of a stamp.

    A file with the stamp's modification time is taken for unchanged without reading it.
    """
    status = path.stat()
    if (stamp["name"], stamp["bytes"]) != (printable_name(path), status.st_size):
        return False
    # A copy or a fresh checkout has another time and the same content: only then is the file read.
    return stamp["mtime_ns"] == status.st_mtime_ns or stamp["sha256"] == sha256_file(path)
