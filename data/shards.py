"""Prepared shard sets: folders of token arrays that training, evaluation and chat read.

A shard set has the arrays of its splits (`data.sequences`), the tokenizer that made the ids
(`tokenizer.model`), for some kinds the chat template in the ids (`template.json`), and
`manifest.json`, written last: kind of records, counts, how the set was made, and the checksum of
every file. What a sequence is depends on the kind:

    documents      `<bos> text <eos>`, loss on every token
    conversations  a conversation in the words of `template.json`, loss on the spans of the answers
    summaries      an article and its title, without a template; the span is the title
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import run_layout
from common.errors import UserError
from common.files import MANIFEST, check_manifest, read_checksummed_json, read_json
from data.kinds import find_kind, kind_names
from data.kinds.base import RecordKind
from data.sequences import Sequences
from model.chat_template.template import TEMPLATE_FILE, Template, load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, Tokenizer

SHARD_FORMAT = "babyllama-shards-1"
SPLITS = ("train", "validation")
# Folder of the sets that `make data` and training prepare, below the working directory.
PREPARED_FOLDER = Path("prepared")
# Written after the manifest, which therefore does not list it: it says how long the preparation
# took.
REPORT_FILE = "report.json"
PROVENANCE_FILE = "made-from.json"
# What of a set training depends on; the rest of its files says how it was made.
_FINGERPRINT_FILES = (".npy", ".model", TEMPLATE_FILE, IMPORTED_TOKENIZER_FILE)


class ShardSet:
    """A prepared shard set: manifest, tokenizer and splits."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, *, checksums: bool = False) -> "ShardSet":
        """Open a folder; `checksums=True` reads and compares every byte.

        Raises UserError if it is not a whole shard set.
        """
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"{folder} is not a prepared shard set (no {MANIFEST}): python -m data.prepare "
                "makes one"
            )
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != SHARD_FORMAT:
            raise UserError(
                f"{folder / MANIFEST} does not describe a shard set of format {SHARD_FORMAT}"
            )
        if problem := check_manifest(folder, verify_checksums=checksums):
            raise UserError(f"{problem}: prepare {folder} again")
        if checksums and (folder / REPORT_FILE).exists():
            read_checksummed_json(folder / REPORT_FILE, f": delete it, or prepare {folder} again")
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """Return a digest of the bytes of data, tokenizer and template."""
        listing = sorted(
            (name, entry["sha256"])
            for name, entry in self.manifest["files"].items()
            if name.endswith(_FINGERPRINT_FILES)
        )
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @property
    def kind(self) -> RecordKind[Any]:
        """Return the kind of the records. Raises UserError if the manifest does not name one."""
        name = self.manifest.get("kind")
        if name not in kind_names():
            raise UserError(
                f"{self.folder / MANIFEST} does not name the kind of its records: prepare "
                f"{self.folder} again"
            )
        return find_kind(name)

    def matches_template(self, template: Template) -> bool:
        """Return whether the chat template in the ids, if there is one, is `template`.

        Lead-ins are not compared: they are not in the ids.
        """
        if not (self.folder / TEMPLATE_FILE).is_file():
            return True
        return replace(load_template(self.folder), lead_ins=template.lead_ins) == template

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer that made the ids."""
        return load_tokenizer(self.folder)

    def load_split(self, name: str) -> Sequences:
        """Open the split `train` or `validation`."""
        return Sequences(self.folder, name)


def load_run_shard_set(run: Path, hint: str = "name a shard set with --data") -> ShardSet:
    """Return the one shard set that a run, or the run of a step, was trained on.

    Raises UserError as `load_run_shard_sets` does, and if the run was trained on a mix of several.
    """
    sets = load_run_shard_sets(run, hint)
    if len(sets) != 1:
        raise UserError(f"{run} was trained on {len(sets)} shard sets: {hint}")
    return sets[0]


def load_run_shard_sets(run: Path, hint: str = "name a shard set with --data") -> list[ShardSet]:
    """Return the shard sets that a run, or the run of a step, was trained on.

    Sets whose project was moved or copied since are looked for in the new places. Raises UserError,
    which ends with `hint`, if the run has no such record or if a set is gone or has changed.
    """
    if not run.exists():
        raise UserError(
            f"{run} does not exist: name a run, such as runs/pretrain-sample, or one of its steps"
        )
    run_folder = run_layout.find_run(run)
    if run_folder is None:
        raise UserError(f"{run} does not say what it was trained on: {hint}")
    run_file = run_folder / run_layout.RUN_FILE
    run_record = read_checksummed_json(run_file, f": {hint}")
    try:
        folders = [Path(folder) for folder in run_record["shards"]]
        fingerprints = [each["set"] for each in run_record["fingerprints"]["data"]]
    except (KeyError, TypeError):
        raise UserError(f"{run_file} does not say what the run was trained on: {hint}") from None
    if len(folders) != len(fingerprints):
        raise UserError(
            f"{run_file} names {len(folders)} shard sets and {len(fingerprints)} fingerprints: "
            f"{hint}"
        )
    return [
        _open_run_set(folder, fingerprint, run, run_file, hint)
        for folder, fingerprint in zip(folders, fingerprints, strict=True)
    ]


def _open_run_set(folder: Path, fingerprint: str, run: Path, run_file: Path, hint: str) -> ShardSet:
    """Open one shard set of a run. Raises UserError with `hint` if it is gone or has changed."""
    if (folder / MANIFEST).exists():
        shards: ShardSet | None = ShardSet.open(folder)
    else:
        shards = _find_moved_set(folder.name, fingerprint, run_file.parent)
    if shards is None:
        copy = PREPARED_FOLDER / folder.name
        raise UserError(
            f"{folder}, which {run} was trained on, is gone, and {copy} is not a copy of it: {hint}"
        )
    if shards.fingerprint != fingerprint:
        raise UserError(f"{shards.folder} is no longer what {run} was trained on: {hint}")
    return shards


def _find_moved_set(name: str, fingerprint: str, run: Path) -> ShardSet | None:
    """Return the set of this name and content in the working directory or the run's project."""
    for project in (Path(), run.resolve().parent.parent):
        for folder in (project / PREPARED_FOLDER / name, project / name):
            if (folder / MANIFEST).is_file():
                shards = ShardSet.open(folder)
                if shards.fingerprint == fingerprint:
                    return shards
    return None
