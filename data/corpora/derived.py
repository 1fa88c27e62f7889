"""Write the shard sets of derived names: `long(wikipedia,4096)` from the set of `wikipedia`.

A derived set lies beside the others, in `prepared/long-4096-wikipedia-<first 8 digits of the
tokenizer's fingerprint>`, and is one like any other. Its manifest has the derivation and the
fingerprint of its source; it is reused while both are the same, and replaced otherwise.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, check_manifest, read_json, remove_temporary_files
from common.locks import exclusive_lock
from data.corpora.derived_rows import write_splits
from data.derivations.base import Derivation, find_derivation
from data.derived_name import DerivedName
from data.shards import PREPARED_FOLDER, PROVENANCE_FILE, SHARD_FORMAT, ShardSet
from model.chat_template.template import load_template


def derive_if_outdated(name: DerivedName, resolve_source: Callable[[str], Path]) -> Path:
    """Return the folder of a derived set, written again if it is outdated.

    `resolve_source` returns the shard set that the name of a source means; it is called after the
    arguments have been checked. Raises UserError if the arguments are wrong, if the source is not
    of the right kind, or if no record is left to train on.
    """
    derivation = find_derivation(name.derivation)
    try:
        arguments = derivation.parse_arguments(name.arguments)
    except ValueError as error:
        raise UserError(f"{name}: {error}: {derivation.usage}") from None
    source = ShardSet.open(resolve_source(name.source))
    if source.kind is not derivation.source_kind:
        raise UserError(
            f"{name}: {name.source} holds {source.kind.name}, and {derivation.usage} is for "
            f"{derivation.source_kind.name}"
        )
    out = PREPARED_FOLDER / name.label(source.folder.resolve().name)
    derived = {
        "name": name.derivation,
        "arguments": arguments,
        "version": derivation.version,
        "source": source.fingerprint,
    }
    with exclusive_lock(PREPARED_FOLDER / f".{out.name}.lock"):
        if not _is_current(out, derived):
            # Left over from a process that was killed.
            remove_temporary_files(PREPARED_FOLDER, f".{out.name}.????????.*")
            _write(out, str(name), source, derivation, derived)
    return out


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
        report = write_splits(folder, source, derivation, derived["arguments"])
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
