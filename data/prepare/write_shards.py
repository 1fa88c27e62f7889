"""From finished parts to a shard set: duplicates found over all of them, documents split and copied."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_folder
from data.prepare.dedup import EXACT_DUPLICATE, NEAR_DUPLICATE, UNIQUE, Deduplicator
from data.prepare.options import DedupOptions
from data.prepare.worker import unit_folder
from data.records import Kind
from data.shards import SHARD_FORMAT, SPLITS, ShardWriter
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

MIN_VALIDATION_DOCUMENTS = 100
MAX_VALIDATION_SHARE = 0.1
# Row lengths for which the report says how many conversations are longer.
REPORT_ROW_LENGTHS = (512, 1024, 2048)


def write_shard_set(
    out: Path,
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    tokenizer: Tokenizer,
    template: Template,
    kind: Kind,
    dedup: DedupOptions,
    validation: float,
    manifest_fields: dict[str, Any],
) -> dict[str, Any]:
    """Write the shard set `out` of the parts numbered 0 … len(made) - 1, all of one kind; returns its report.

    `unit_manifests` are the parts' facts; `manifest_fields` goes into the manifest. Nothing is written if no record is kept.
    """
    labels = _find_duplicates(
        units_folder,
        len(unit_manifests),
        dedup if kind == "documents" else dedup.model_copy(update={"near": False}),
    )
    report = _count_records(units_folder, unit_manifests, labels)
    if not report["kept"]:
        return report
    limit = _validation_threshold(units_folder, unit_manifests, labels, validation)
    manifest = {
        "format": SHARD_FORMAT,
        "kind": kind,
        **manifest_fields,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocab_size,
        },
    }
    with atomic_folder(out, manifest) as folder:
        tokenizer.save(folder)
        if kind == "conversations":
            template.save(folder)
            report["longer_than"] = _count_longer_than(units_folder, len(unit_manifests), labels)
        manifest["splits"] = _write_splits(
            folder, units_folder, unit_manifests, labels, limit, tokenizer.vocab_size, kind
        )
        with (folder / "quarantine.jsonl").open("wb") as file:
            for index in range(len(unit_manifests)):
                file.write((unit_folder(units_folder, index) / "quarantine.jsonl").read_bytes())
        tokens = sum(split["tokens"] for split in manifest["splits"].values())
        report |= {
            "kind": kind,
            "tokens": tokens,
            "characters_per_token": round(report["characters"] / tokens, 4),
        }
        manifest["report"] = report
    return report


def _load_array(units_folder: Path, index: int, name: str) -> np.ndarray:
    return np.load(unit_folder(units_folder, index) / f"{name}.npy", allow_pickle=False)


def _find_duplicates(units_folder: Path, num_units: int, options: DedupOptions) -> np.ndarray:
    """`Deduplicator.resolve` over the documents of all parts."""
    folder = units_folder.parent / "dedup"
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
    """What became of the records, over all and by source."""
    dropped: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    position = 0
    for index, unit_manifest in enumerate(unit_manifests):
        characters = _load_array(units_folder, index, "characters")
        unit_labels = labels[position : position + len(characters)]
        position += len(characters)
        dropped.update(unit_manifest["dropped"])
        dropped.update(
            exact_duplicate=int((unit_labels == EXACT_DUPLICATE).sum()),
            near_duplicate=int((unit_labels == NEAR_DUPLICATE).sum()),
        )
        sources.setdefault(unit_manifest["source"], Counter()).update(
            records=unit_manifest["records"],
            quarantined=unit_manifest["quarantined"],
            bytes=unit_manifest["bytes"],
            kept=int((unit_labels == UNIQUE).sum()),
            characters=int(characters[unit_labels == UNIQUE].sum()),
        )
    total = sum(sources.values(), Counter())
    return {
        **{key: total[key] for key in ("records", "kept", "quarantined", "bytes", "characters")},
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "sources": {name: dict(counts) for name, counts in sources.items()},
    }


def _count_longer_than(units_folder: Path, num_units: int, labels: np.ndarray) -> dict[str, int]:
    """How many of the kept sequences are longer than each of some usual rows: training cuts those, or leaves them out."""
    lengths = np.concatenate(
        [_load_array(units_folder, index, "lengths") for index in range(num_units)]
    )[np.asarray(labels) == UNIQUE]
    # A row of n positions holds n + 1 ids.
    return {str(row): int((lengths > row + 1).sum()) for row in REPORT_ROW_LENGTHS}


def _validation_threshold(
    units_folder: Path, unit_manifests: list[dict[str, Any]], labels: np.ndarray, share: float
) -> int:
    """The digest (its first 64 bits) below which a record of a part without a split of its own is held out.

    The digest alone is compared, so the order of the documents does not matter. Of a small corpus a larger share is
    held out, for about VALIDATION_DOCUMENTS documents but not above VALIDATION_LIMIT: as a corpus grows, documents can
    move from validation to train, never the other way. At least one is held out, if that leaves one to train on.
    """
    smallest, largest, position, num_records = 1 << 64, 0, 0, 0
    for index, unit_manifest in enumerate(unit_manifests):
        digests = _load_array(units_folder, index, "digests")[:, 0]
        kept = digests[np.asarray(labels[position : position + len(digests)]) == UNIQUE]
        position += len(digests)
        if len(kept) and unit_manifest["split"] is None:
            smallest, largest = min(smallest, int(kept.min())), max(largest, int(kept.max()))
            num_records += len(kept)
    if share == 0 or num_records < 2:
        return 0
    share = max(share, min(MAX_VALIDATION_SHARE, MIN_VALIDATION_DOCUMENTS / num_records))
    return min(max(int(share * (1 << 64)), smallest + 1), largest)


def _write_splits(
    folder: Path,
    units_folder: Path,
    unit_manifests: list[dict[str, Any]],
    labels: np.ndarray,
    validation_threshold: int,
    vocabulary_size: int,
    kind: Kind,
) -> dict[str, dict[str, int]]:
    """Copy the kept sequences into the splits' shards; returns the counts of each split."""
    has_spans = kind != "documents"
    writers = {
        split: ShardWriter(folder, split, vocabulary_size, has_spans=has_spans) for split in SPLITS
    }
    characters: Counter[str] = Counter()
    position = 0
    for index, unit_manifest in enumerate(unit_manifests):
        tokens, sizes = (
            _load_array(units_folder, index, "tokens"),
            _load_array(units_folder, index, "characters").tolist(),
        )
        ends = np.cumsum(_load_array(units_folder, index, "lengths")).tolist()
        is_validation = (
            _load_array(units_folder, index, "digests")[:, 0] < np.uint64(validation_threshold)
        ).tolist()
        spans = (
            np.split(
                _load_array(units_folder, index, "spans"),
                np.cumsum(_load_array(units_folder, index, "spanned"))[:-1],
            )
            if has_spans
            else None
        )
        start = 0
        for row, end in enumerate(ends):
            if labels[position + row] == UNIQUE:
                split = unit_manifest["split"] or ("validation" if is_validation[row] else "train")
                # A copy: a view would keep the whole part in memory until its shard is written.
                writers[split].add(tokens[start:end].copy(), spans[row] if spans else None)
                characters[split] += sizes[row]
            start = end
        position += len(ends)
    return {
        split: {**writer.close(), "characters": characters[split]}
        for split, writer in writers.items()
    }
