"""Write the shard sets of derived names: `long(wikipedia,4096)` from the set of `wikipedia`.

A derived set lies beside the others, in `prepared/long-4096-wikipedia-<first 8 digits of the
tokenizer's fingerprint>`, and is one like any other. Its manifest has the derivation and the
fingerprint of its source; it is reused while both are the same, and replaced otherwise.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import (
    MANIFEST,
    atomic_folder,
    check_manifest,
    read_json,
    remove_temporary_files,
    sha256_file,
)
from common.locks import exclusive_lock
from data.corpora.derived_rows import write_splits
from data.derivations.base import Derivation, find_derivation
from data.derived_name import DerivedName
from data.prepare.contamination import write_ngrams
from data.prepare.provenance import printable_name
from data.shards import PREPARED_FOLDER, PROVENANCE_FILE, SHARD_FORMAT, ShardSet
from data.sources import find_source, squad
from data.usable_records import UsableRecords
from model.chat_template.template import load_template


def derive_if_outdated(name: DerivedName, resolve_source: Callable[[str], Path]) -> Path:
    """Return the folder of a derived set, written again if it is outdated.

    `resolve_source` returns the shard set that the name of a source means; it is called after the
    arguments have been checked. Raises UserError if the arguments are wrong, if the source is not
    of the right kind, or if no record is left to train on.
    """
    found = find_derivation(name.derivation)
    try:
        arguments = found.parse_arguments(name.arguments)
    except ValueError as error:
        raise UserError(f"{name}: {error}: {found.usage}") from None
    source = ShardSet.open(resolve_source(name.source))
    derivation = found.for_kind(source.kind)
    if derivation is None:
        raise UserError(
            f"{name}: {name.source} holds {source.kind.name}, and {found.usage} is for "
            f"{found.source_kind.name}"
        )
    out = PREPARED_FOLDER / name.label(_label_source(source.folder.resolve()))
    derived = {
        "name": name.derivation,
        "arguments": arguments,
        "version": derivation.version,
        "source": source.fingerprint,
        "held_out": [
            {"name": printable_name(path), "sha256": sha256_file(path)}
            for _, path in derivation.held_out_files(arguments)
        ],
    }
    with exclusive_lock(PREPARED_FOLDER / f".{out.name}.lock"):
        if not _is_current(out, derived):
            # Left over from a process that was killed.
            remove_temporary_files(PREPARED_FOLDER, f".{out.name}.????????.*")
            _write(out, str(name), source, derivation, derived)
    return out


def _label_source(folder: Path) -> str:
    """Return what tells the shard set of a source from all others, for the name of a folder."""
    if folder.parent == PREPARED_FOLDER.resolve():
        return folder.name
    # Folders elsewhere may have equal names.
    return f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}"


def _is_current(out: Path, derived: dict[str, Any]) -> bool:
    """Return whether `out` holds this derivation. Raises UserError if it is no shard set."""
    if not out.exists():
        return False
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out}: exists and is not a shard set: move it elsewhere")
    if check_manifest(out) is not None:
        return False
    manifest = read_json(out / MANIFEST)
    return bool(manifest["format"] == SHARD_FORMAT and manifest.get("derived") == derived)


def _write(
    out: Path, name: str, source: ShardSet, derivation: Derivation[Any], derived: dict[str, Any]
) -> None:
    """Write the derived set `out`, and print how much of the source is in it.

    Raises UserError if nothing is left to train on.
    """
    tokenizer = source.load_tokenizer()
    kind = derivation.kind
    manifest: dict[str, Any] = {
        "format": SHARD_FORMAT,
        "kind": kind.name,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocab_size,
        },
        "derived": derived,
    }
    with atomic_folder(out, manifest) as folder:
        tokenizer.save(folder)
        if (source.folder / PROVENANCE_FILE).is_file():
            # The test split of a derived set is that of its source.
            shutil.copy(source.folder / PROVENANCE_FILE, folder)
        if not kind.is_text:
            load_template(source.folder).save(folder)
        held_out = _write_held_out(folder, derivation.held_out_files(derived["arguments"]))
        report = write_splits(folder, source, derivation, derived["arguments"], held_out)
        if held_out is not None:
            held_out.unlink()
        if not report["splits"]["train"]["sequences"]:
            reasons = [f"{count:,} {reason}" for reason, count in report["dropped"].items()]
            hint = derivation.describe_source(source.load_split("train"), derived["arguments"])
            raise UserError(
                f"{name}: nothing is left to train on: {'; '.join(filter(None, [*reasons, hint]))}"
            )
        manifest["splits"] = report["splits"]
        manifest["report"] = report
    source_counts = source.manifest["splits"].values()
    print(
        f"{name}: {report['kept']:,} {kind.name} of {report['records']:,} records, "
        f"{report['tokens']:,} tokens (in {source.folder}: "
        f"{sum(counts['tokens'] for counts in source_counts):,}); held out: "
        f"{report['splits']['validation']['sequences']:,}",
        flush=True,
    )


def _write_held_out(folder: Path, files: list[tuple[str, Path]]) -> Path | None:
    """Write the n-grams of held-out files, each with its source, and return the path if any are.

    Raises UserError if a file cannot be read.
    """
    if not files:
        return None
    path = folder / "held-out.npy"
    write_ngrams(itertools.chain.from_iterable(itertools.starmap(_iter_texts, files)), path)
    return path


def _iter_texts(source: str, path: Path) -> Iterator[str]:
    """Yield the texts of a held-out file. Raises UserError if too many cannot be read."""
    records = UsableRecords(find_source(source).iter_records(path))
    for record in records:
        yield record.plain_text()
    if source == squad.NAME:
        # Those whose questions have no answer are no records, but are asked about all the same.
        items = squad.iter_passages(path)
        yield from (item.context for item in items if isinstance(item, squad.Passage))
    records.check_bad_share(f"correct the file, or whatever is in it may be trained on: {path}")
