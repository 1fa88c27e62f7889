"""From finished parts to a shard set: duplicates found over all of them, documents split and copied."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_folder
from data.prepare.dedup import EXACT, KEPT, NEAR, Deduplicator, DedupOptions
from data.prepare.worker import part_folder
from data.records import Kind
from data.shards import FORMAT, SPLITS, ShardWriter
from model.chat_template.template import template_of
from model.tokenizer.base import Tokenizer

VALIDATION_DOCUMENTS = 100
VALIDATION_LIMIT = 0.1
# Row lengths for which the report says how many conversations are longer.
ROWS = (512, 1024, 2048)


def assemble(
    out: Path, parts: Path, made: list[dict[str, Any]], tokenizer: Tokenizer, kind: Kind, dedup: DedupOptions,
    validation: float, facts: dict[str, Any],
) -> dict[str, Any]:
    """Write the shard set `out` of the parts numbered 0 … len(made) - 1, all of one kind; returns its report.

    `made` are the parts' facts; `facts` goes into the manifest. Nothing is written if no record is kept.
    """
    verdict = _duplicates(parts, len(made), dedup if kind == "documents" else dedup.model_copy(update={"near": False}))
    report = _counts(parts, made, verdict)
    if not report["kept"]:
        return report
    limit = _validation_limit(parts, made, verdict, validation)
    whole = {
        "format": FORMAT, "kind": kind, **facts,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocabulary_size": tokenizer.vocabulary_size},
    }
    with atomic_folder(out, whole) as folder:
        tokenizer.save(folder)
        if kind == "conversations":
            template_of(tokenizer).save(folder)
            report["longer_than"] = _longer(parts, len(made), verdict)
        whole["splits"] = _copy(folder, parts, made, verdict, limit, tokenizer.vocabulary_size, kind)
        with (folder / "quarantine.jsonl").open("wb") as file:
            for index in range(len(made)):
                file.write((part_folder(parts, index) / "quarantine.jsonl").read_bytes())
        tokens = sum(split["tokens"] for split in whole["splits"].values())
        report |= {"kind": kind, "tokens": tokens, "characters_per_token": round(report["characters"] / tokens, 4)}
        whole["report"] = report
    return report


def _load(parts: Path, index: int, name: str) -> np.ndarray:
    return np.load(part_folder(parts, index) / f"{name}.npy", allow_pickle=False)


def _duplicates(parts: Path, count: int, options: DedupOptions) -> np.ndarray:
    """`Deduplicator.resolve` over the documents of all parts."""
    folder = parts.parent / "dedup"
    shutil.rmtree(folder, ignore_errors=True)
    deduplicator = Deduplicator(folder, options)
    for index in range(count):
        deduplicator.add(_load(parts, index, "digests"), _load(parts, index, "signatures") if options.near else None)
    return deduplicator.resolve()


def _counts(parts: Path, made: list[dict[str, Any]], verdict: np.ndarray) -> dict[str, Any]:
    """What became of the records, over all and by source."""
    dropped: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    position = 0
    for index, facts in enumerate(made):
        characters = _load(parts, index, "characters")
        judged = verdict[position : position + len(characters)]
        position += len(characters)
        dropped.update(facts["dropped"])
        dropped.update(exact_duplicate=int((judged == EXACT).sum()), near_duplicate=int((judged == NEAR).sum()))
        sources.setdefault(facts["source"], Counter()).update(
            records=facts["records"], quarantined=facts["quarantined"], bytes=facts["bytes"],
            kept=int((judged == KEPT).sum()), characters=int(characters[judged == KEPT].sum()),
        )
    total = sum(sources.values(), Counter())
    return {
        **{key: total[key] for key in ("records", "kept", "quarantined", "bytes", "characters")},
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "sources": {name: dict(counts) for name, counts in sources.items()},
    }


def _longer(parts: Path, count: int, verdict: np.ndarray) -> dict[str, int]:
    """How many of the kept sequences are longer than each of some usual rows: training cuts those, or leaves them out."""
    lengths = np.concatenate([_load(parts, index, "lengths") for index in range(count)])[np.asarray(verdict) == KEPT]
    # A row of n positions holds n + 1 ids.
    return {str(row): int((lengths > row + 1).sum()) for row in ROWS}


def _validation_limit(parts: Path, made: list[dict[str, Any]], verdict: np.ndarray, share: float) -> int:
    """The digest (its first 64 bits) below which a record of a part without a split of its own is held out.

    The digest alone is compared, so the order of the documents does not matter. Of a small corpus a larger share is
    held out, for about VALIDATION_DOCUMENTS documents but not above VALIDATION_LIMIT: as a corpus grows, documents can
    move from validation to train, never the other way. At least one is held out, if that leaves one to train on.
    """
    smallest, largest, position, records = 1 << 64, 0, 0, 0
    for index, facts in enumerate(made):
        digests = _load(parts, index, "digests")[:, 0]
        kept = digests[np.asarray(verdict[position : position + len(digests)]) == KEPT]
        position += len(digests)
        if len(kept) and facts["split"] is None:
            smallest, largest = min(smallest, int(kept.min())), max(largest, int(kept.max()))
            records += len(kept)
    if share == 0 or records < 2:
        return 0
    share = max(share, min(VALIDATION_LIMIT, VALIDATION_DOCUMENTS / records))
    return min(max(int(share * (1 << 64)), smallest + 1), largest)


def _copy(
    folder: Path, parts: Path, made: list[dict[str, Any]], verdict: np.ndarray, limit: int, vocabulary_size: int, kind: Kind
) -> dict[str, dict[str, int]]:
    """Copy the kept sequences into the splits' shards; returns the counts of each split."""
    spanned = kind != "documents"
    writers = {split: ShardWriter(folder, split, vocabulary_size, spans=spanned) for split in SPLITS}
    characters: Counter[str] = Counter()
    position = 0
    for index, facts in enumerate(made):
        tokens, sizes = _load(parts, index, "tokens"), _load(parts, index, "characters").tolist()
        ends = np.cumsum(_load(parts, index, "lengths")).tolist()
        held_out = (_load(parts, index, "digests")[:, 0] < np.uint64(limit)).tolist()
        spans = np.split(_load(parts, index, "spans"), np.cumsum(_load(parts, index, "spanned"))[:-1]) if spanned else None
        start = 0
        for row, end in enumerate(ends):
            if verdict[position + row] == KEPT:
                split = facts["split"] or ("validation" if held_out[row] else "train")
                # A copy: a view would keep the whole part in memory until its shard is written.
                writers[split].add(tokens[start:end].copy(), spans[row] if spans else None)
                characters[split] += sizes[row]
            start = end
        position += len(ends)
    return {split: {**writer.close(), "characters": characters[split]} for split, writer in writers.items()}
