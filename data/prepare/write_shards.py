"""The last stage of preparation: drop duplicates, split, and write the shard set."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_folder
from data.kinds.base import RecordKind
from data.prepare.dedup import EXACT_DUPLICATE, NEAR_DUPLICATE, UNIQUE, Deduplicator
from data.prepare.options import DedupOptions
from data.prepare.paragraphs import ParagraphDivider
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
# A document of more than this part of the tokens to hold out is long: held out whole, it alone
# would change the size of the validation split.
LONG_DOCUMENT_PART = 0.25
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

    `unit_manifests` are those of the units 0, 1, …; `validation` is the share to hold out;
    `provenance_file` is copied into the set. Nothing is written if no record is left.
    """
    if not kind.drops_near_duplicates:
        dedup = dedup.model_copy(update={"near": False})
    num_units = len(unit_manifests)
    labels = _find_duplicates(units_folder, num_units, dedup)
    report = _count_records(units_folder, unit_manifests, labels)
    if not report["kept"]:
        return report
    divider = ParagraphDivider(tokenizer)
    held_out = _select_validation(units_folder, unit_manifests, labels, validation, kind, divider)
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
            folder, units_folder, unit_manifests, labels, held_out, divider, tokenizer, kind
        )
        with (folder / "quarantine.jsonl").open("wb") as file:
            for index in range(num_units):
                file.write((unit_folder(units_folder, index) / "quarantine.jsonl").read_bytes())
        num_tokens = sum(split["tokens"] for split in splits.values())
        report |= {
            "kind": kind.name,
            "tokens": num_tokens,
            "characters_per_token": round(report["characters"] / num_tokens, 4),
            "splits": splits,
            # Documents of which only the end is held out: they are in both splits.
            "divided": sum(split["sequences"] for split in splits.values()) - report["kept"],
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
    counts = dict.fromkeys(REPORT_ROW_LENGTHS, 0)
    # Number of records in the units before the present one.
    position = 0
    for index in range(num_units):
        lengths = _load_array(units_folder, index, "lengths")
        unique_lengths = lengths[labels[position : position + len(lengths)] == UNIQUE]
        position += len(lengths)
        for row_length in REPORT_ROW_LENGTHS:
            # A row of n positions holds n + 1 ids.
            counts[row_length] += int((unique_lengths > row_length + 1).sum())
    return {str(row_length): count for row_length, count in counts.items()}


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """What is held out of the records of units that have no split of their own.

    The digest of a record (its first 64 bits) decides, so that the order of the records does not
    matter.
    """

    # Records of smaller digests are held out whole.
    threshold: int
    # Whatever the threshold, this many tokens at most of the documents of these digests, from their
    # ends.
    max_tokens: dict[int, int] = field(default_factory=dict)


def _select_validation(
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    labels: np.ndarray,
    share: float,
    kind: RecordKind[Any],
    divider: ParagraphDivider,
) -> _HeldOut:
    """Select what is held out: a share of the tokens of text, of the number of other records.

    A small corpus holds out a larger share: as a corpus grows, records can move from validation to
    train, never the other way, apart from corpora of a few records and from long documents. At
    least one record, or the end of one, is held out if that leaves something to train on.
    """
    # The smallest and largest digest of any record.
    smallest, largest = 1 << 64, 0
    num_records = num_tokens = 0
    for _, _, digests, lengths in _iter_undecided(units_folder, unit_manifests, labels):
        smallest = min(smallest, int(digests.min()))
        largest = max(largest, int(digests.max()))
        num_records += len(digests)
        num_tokens += int(lengths.sum())
    # Copies of one record, which stay if the user wants them, are all in one split.
    if share == 0 or num_records == 0 or (smallest == largest and num_records > 1):
        return _HeldOut(threshold=0)
    share = max(share, min(MAX_VALIDATION_SHARE, MIN_VALIDATION_DOCUMENTS / num_records))
    # Digests are uniformly distributed below 2^64. Above the smallest and not above the largest, so
    # that neither split is empty.
    threshold = min(max(int(share * (1 << 64)), smallest + 1), largest)
    if not kind.is_text:
        return _HeldOut(threshold)
    max_tokens = _limit_long_documents(
        units_folder, unit_manifests, labels, threshold, int(share * num_tokens), divider
    )
    return _HeldOut(threshold, max_tokens)


def _limit_long_documents(
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    labels: np.ndarray,
    threshold: int,
    share_tokens: int,
    divider: ParagraphDivider,
) -> dict[int, int]:
    """Return how many tokens of long documents are held out at most, by digest.

    `share_tokens` are to be held out. Short documents below the threshold are. Long ones then give
    what is missing, in the order of their digests: those below the threshold if more is missing
    than a short document has, the others only if less than that is held out.
    """
    max_short_tokens = int(LONG_DOCUMENT_PART * share_tokens)
    num_tokens = num_held_out = 0
    # Unit and index of each long document; of copies, which have the same digest, of one of them.
    long_documents: dict[int, tuple[int, int]] = {}
    for unit, records, digests, lengths in _iter_undecided(units_folder, unit_manifests, labels):
        num_tokens += int(lengths.sum())
        is_long = lengths > max_short_tokens
        num_held_out += int(lengths[~is_long & (digests < np.uint64(threshold))].sum())
        places = [(unit, record) for record in records[is_long].tolist()]
        long_documents.update(zip(digests[is_long].tolist(), places, strict=True))
    max_tokens: dict[int, int] = {}
    for digest, (unit, record) in sorted(long_documents.items()):
        missing = share_tokens - num_held_out
        limit = max_short_tokens if digest < threshold else share_tokens - max_short_tokens
        max_tokens[digest] = missing if missing > limit else 0
        if max_tokens[digest]:
            ids = _load_rows(units_folder, unit, "tokens", "lengths")[record]
            _beginning, end = divider.divide(ids, max_tokens[digest])
            num_held_out += len(end)
    if num_held_out == 0:
        # Every document, and every last paragraph of one, is longer than the share. The shortest is
        # held out, unless that leaves less to train on.
        sizes = [
            (divider.count_smallest_end(rows[record]), digest)
            for unit, records, digests, _ in _iter_undecided(units_folder, unit_manifests, labels)
            for rows in [_load_rows(units_folder, unit, "tokens", "lengths")]
            for record, digest in zip(records.tolist(), digests.tolist(), strict=True)
        ]
        size, digest = min(sizes)
        if size <= num_tokens / 2:
            max_tokens[digest] = size
    return max_tokens


def _iter_undecided(
    units_folder: Path, unit_manifests: list[dict[str, Any]], labels: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the unique records of each unit that has any, and that has no split of its own.

    They are the number of the unit, and index, digest (its first 64 bits) and length of each
    record. `labels` has those of the records of all units, one unit after the other.
    """
    # Number of records in the units before the present one.
    position = 0
    for unit, unit_manifest in enumerate(unit_manifests):
        digests = _load_array(units_folder, unit, "digests")[:, 0]
        records = np.flatnonzero(labels[position : position + len(digests)] == UNIQUE)
        position += len(digests)
        if len(records) and unit_manifest["split"] is None:
            lengths = _load_array(units_folder, unit, "lengths")
            yield unit, records, digests[records], lengths[records]


def _write_splits(
    folder: Path,
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    labels: np.ndarray,
    held_out: _HeldOut,
    divider: ParagraphDivider,
    tokenizer: Tokenizer,
    kind: RecordKind[Any],
) -> dict[str, dict[str, int]]:
    """Copy the unique records into the shards of their splits.

    Return the number of sequences, tokens and characters of each split.
    """
    writers = {
        split: SequenceWriter(folder, split, tokenizer.vocab_size)
        if kind.is_text
        else RecordWriter(folder, split)
        for split in SPLITS
    }
    characters: Counter[str] = Counter()
    # Number of records in the units before the present one.
    position = 0
    for index, unit_manifest in enumerate(unit_manifests):
        character_counts = _load_array(units_folder, index, "characters").tolist()
        digests = _load_array(units_folder, index, "digests")[:, 0].tolist()
        # What `add` of the writer takes of each record.
        if kind.is_text:
            columns = [_load_rows(units_folder, index, "tokens", "lengths")]
        else:
            columns = [
                _load_rows(units_folder, index, "records", "record_bytes"),
                _load_rows(units_folder, index, "spans", "span_counts"),
            ]
        for record, row in enumerate(zip(*columns, strict=True)):
            if labels[position + record] != UNIQUE:
                continue
            split, digest = unit_manifest["split"], digests[record]
            if split is None:
                split = "validation" if digest < held_out.threshold else "train"
            parts = [(split, row, character_counts[record])]
            if unit_manifest["split"] is None and digest in held_out.max_tokens:
                beginning, end = divider.divide(row[0], held_out.max_tokens[digest])
                num_characters = int(tokenizer.characters_per_id[end].sum())
                parts = [
                    ("train", (beginning,), character_counts[record] - num_characters),
                    ("validation", (end,), num_characters),
                ]
            for part_split, arrays, num_characters in parts:
                # Copies: views would hold the whole unit in memory until their shard is written.
                if len(arrays[0]):
                    writers[part_split].add(*(array.copy() for array in arrays))
                characters[part_split] += num_characters
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
