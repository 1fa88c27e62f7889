"""The last stage of preparation: drop duplicates, split, and write the shard set."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_folder
from data.kinds.base import RecordKind
from data.prepare.dedup import EXACT_DUPLICATE, NEAR_DUPLICATE, UNIQUE, Deduplicator
from data.prepare.options import DedupOptions
from data.prepare.worker import unit_folder
from data.sequences import SequenceWriter
from data.shards import SHARD_FORMAT, SPLITS
from data.stored_records import RecordWriter
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# A small corpus holds out a larger share than the option says, for about this many documents, up to
# the largest share.
MIN_VALIDATION_DOCUMENTS = 100
MAX_VALIDATION_SHARE = 0.1
# Row lengths for which the report counts the conversations that are longer.
REPORT_ROW_LENGTHS = (512, 1024, 2048)
# The report names this many of the fields that no list has.
MAX_UNLISTED_FIELDS = 12


def write_shard_set(
    out: Path,
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    tokenizer: Tokenizer,
    template: Template,
    kind: RecordKind[Any],
    dedup: DedupOptions,
    validation: float,
    provenance_file: Path,
) -> dict[str, Any]:
    """Write the shard set `out` of all units, whose records are of one kind, and return its report.

    `unit_manifests` are those of the units 0, 1, …; `validation` is the share of the documents to
    hold out; `provenance_file` is copied into the set. Nothing is written if no record is left.
    """
    if not kind.drops_near_duplicates:
        dedup = dedup.model_copy(update={"near": False})
    num_units = len(unit_manifests)
    labels = _find_duplicates(units_folder, num_units, dedup)
    report = _count_records(units_folder, unit_manifests, labels)
    if not report["kept"]:
        return report
    threshold = _validation_threshold(units_folder, unit_manifests, labels, validation)
    manifest: dict[str, Any] = {
        "format": SHARD_FORMAT,
        "kind": kind.name,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocab_size,
        },
    }
    with atomic_folder(out, manifest) as folder:
        tokenizer.save(folder)
        shutil.copy(provenance_file, folder)
        if not kind.is_text:
            template.save(folder)
            report["longer_than"] = _count_longer_than(units_folder, num_units, labels)
        splits = _write_splits(
            folder, units_folder, unit_manifests, labels, threshold, tokenizer.vocab_size, kind
        )
        with (folder / "quarantine.jsonl").open("wb") as file:
            for index in range(num_units):
                file.write((unit_folder(units_folder, index) / "quarantine.jsonl").read_bytes())
        num_tokens = sum(split["tokens"] for split in splits.values())
        report |= {
            "kind": kind.name,
            "tokens": num_tokens,
            "characters_per_token": round(report["characters"] / num_tokens, 4),
        }
        manifest["splits"] = splits
        manifest["report"] = report
    return report


def _load_array(units_folder: Path, index: int, name: str) -> np.ndarray:
    """Return an array of unit number `index`; `data.prepare.worker` lists their names."""
    return np.load(unit_folder(units_folder, index) / f"{name}.npy", allow_pickle=False)


def _find_duplicates(units_folder: Path, num_units: int, options: DedupOptions) -> np.ndarray:
    """Return the label of each record of all units, as `Deduplicator.find_duplicates` does."""
    folder = units_folder.parent / "dedup"
    # Left over from a preparation that was killed in this stage.
    shutil.rmtree(folder, ignore_errors=True)
    deduplicator = Deduplicator(folder, options)
    for index in range(num_units):
        deduplicator.add(
            _load_array(units_folder, index, "digests"),
            _load_array(units_folder, index, "signatures") if options.near else None,
        )
    return deduplicator.find_duplicates()


def _count_records(
    units_folder: Path, unit_manifests: list[dict[str, Any]], labels: np.ndarray
) -> dict[str, Any]:
    """Return the counts of the report: records by source and in total, and why some are dropped.

    `labels` has those of the records of all units, one unit after the other.
    """
    dropped: Counter[str] = Counter()
    unlisted_fields: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    # Number of records in the units before the present one.
    position = 0
    for index, unit_manifest in enumerate(unit_manifests):
        characters = _load_array(units_folder, index, "characters")
        unit_labels = np.asarray(labels[position : position + len(characters)])
        position += len(characters)
        is_unique = unit_labels == UNIQUE
        dropped.update(unit_manifest["dropped"])
        unlisted_fields.update(unit_manifest["unlisted_fields"])
        dropped.update(
            exact_duplicate=int((unit_labels == EXACT_DUPLICATE).sum()),
            near_duplicate=int((unit_labels == NEAR_DUPLICATE).sum()),
        )
        sources.setdefault(unit_manifest["source"], Counter()).update(
            records=unit_manifest["records"],
            quarantined=unit_manifest["quarantined"],
            bytes=unit_manifest["bytes"],
            kept=int(is_unique.sum()),
            characters=int(characters[is_unique].sum()),
        )
    total = sum(sources.values(), Counter())
    return {
        **{key: total[key] for key in ("records", "kept", "quarantined", "bytes", "characters")},
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "unlisted_fields": dict(unlisted_fields.most_common(MAX_UNLISTED_FIELDS)),
        "sources": {name: dict(counts) for name, counts in sources.items()},
    }


def _count_longer_than(units_folder: Path, num_units: int, labels: np.ndarray) -> dict[str, int]:
    """Count, for some usual row lengths, the sequences that training truncates or leaves out."""
    unit_lengths = [_load_array(units_folder, index, "lengths") for index in range(num_units)]
    lengths = np.concatenate(unit_lengths)[np.asarray(labels) == UNIQUE]
    # A row of n positions holds n + 1 ids.
    return {
        str(row_length): int((lengths > row_length + 1).sum()) for row_length in REPORT_ROW_LENGTHS
    }


def _validation_threshold(
    units_folder: Path, unit_manifests: list[dict[str, Any]], labels: np.ndarray, share: float
) -> int:
    """Return the digest (its first 64 bits) below which a record goes to the validation split.

    It applies to the records of units that do not have a split of their own. The digest alone is
    compared, so that the order of the records does not matter. A small corpus holds out a larger
    share: as a corpus grows, documents can move from validation to train, never the other way,
    apart from corpora of a few documents. At least one record is held out if that leaves one to
    train on.
    """
    # The smallest and largest digest of any such record, and their number.
    smallest, largest = 1 << 64, 0
    num_records = 0
    # Number of records in the units before the present one.
    position = 0
    for index, unit_manifest in enumerate(unit_manifests):
        digests = _load_array(units_folder, index, "digests")[:, 0]
        unit_labels = np.asarray(labels[position : position + len(digests)])
        position += len(digests)
        unique_digests = digests[unit_labels == UNIQUE]
        if len(unique_digests) and unit_manifest["split"] is None:
            smallest = min(smallest, int(unique_digests.min()))
            largest = max(largest, int(unique_digests.max()))
            num_records += len(unique_digests)
    if share == 0 or num_records < 2:
        return 0
    share = max(share, min(MAX_VALIDATION_SHARE, MIN_VALIDATION_DOCUMENTS / num_records))
    # Digests are uniformly distributed below 2^64. Above the smallest and not above the largest, so
    # that neither split is empty.
    return min(max(int(share * (1 << 64)), smallest + 1), largest)


def _write_splits(
    folder: Path,
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    labels: np.ndarray,
    validation_threshold: int,
    vocabulary_size: int,
    kind: RecordKind[Any],
) -> dict[str, dict[str, int]]:
    """Copy the unique records into the shards of their splits.

    Return the number of sequences, tokens and characters of each split.
    """
    writers = {
        split: SequenceWriter(folder, split, vocabulary_size)
        if kind.is_text
        else RecordWriter(folder, split)
        for split in SPLITS
    }
    characters: Counter[str] = Counter()
    # Number of records in the units before the present one.
    position = 0
    for index, unit_manifest in enumerate(unit_manifests):
        character_counts = _load_array(units_folder, index, "characters").tolist()
        digests = _load_array(units_folder, index, "digests")[:, 0]
        is_validation = (digests < np.uint64(validation_threshold)).tolist()
        # What `add` of the writer takes of each record.
        if kind.is_text:
            columns = [_load_rows(units_folder, index, "tokens", "lengths")]
        else:
            columns = [
                _load_rows(units_folder, index, "records", "record_bytes"),
                _load_rows(units_folder, index, "spans", "span_counts"),
            ]
        for record, row in enumerate(zip(*columns, strict=True)):
            if labels[position + record] == UNIQUE:
                split = unit_manifest["split"]
                if split is None:
                    split = "validation" if is_validation[record] else "train"
                # Copies: views would hold the whole unit in memory until their shard is written.
                writers[split].add(*(array.copy() for array in row))
                characters[split] += character_counts[record]
        position += len(character_counts)
    return {
        split: {**writer.close(), "characters": characters[split]}
        for split, writer in writers.items()
    }


def _load_rows(units_folder: Path, index: int, values: str, counts: str) -> list[np.ndarray]:
    """Return the part of each record in the array `values` of a unit.

    `values` and `counts` are names of arrays; `counts` has the length of each part.
    """
    array = _load_array(units_folder, index, values)
    ends = np.cumsum(_load_array(units_folder, index, counts)).tolist()
    return [array[start:end] for start, end in zip([0, *ends], ends, strict=False)]
