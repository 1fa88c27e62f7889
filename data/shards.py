"""Prepared shard sets: folders of records that training, evaluation and chat read.

A shard set has the files of its splits, the tokenizer that the records were encoded with
(`tokenizer.model`), for all kinds but text the chat template (`template.json`), and
`manifest.json`, written last: kind of records, counts, how the set was made, and the checksum of
every file. What is stored of a record depends on the kind:

    text         the ids of `<bos> text <eos>`, with a loss on every token (`data.sequences`)
    other kinds  the record itself, and the spans of the answers in its ids (`data.stored_records`)
"""

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import run_layout
from common.errors import UserError
from common.files import MANIFEST, check_manifest, read_checksummed_json, read_json
from data.batching.examples import ExampleLengths, Examples
from data.derivations import derivation_names
from data.derivations.base import Arguments, Derivation, find_derivation
from data.kinds import find_kind, kind_names
from data.kinds.base import RecordKind
from data.sequences import Sequences
from data.stored_records import RECORDS_FILE, StoredRecords
from model.chat_template.template import TEMPLATE_FILE, Template, load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, Tokenizer

_FORMAT_PREFIX = "babyllama-shards-"
SHARD_FORMAT = f"{_FORMAT_PREFIX}3"
SPLITS = ("train", "validation")
# Folder of the sets that `make data` and training prepare, below the working directory.
PREPARED_FOLDER = Path("prepared")
# The report has the time that the preparation took. It is written after the manifest, which
# therefore does not list it.
REPORT_FILE = "report.json"
PROVENANCE_FILE = "made-from.json"
# Endings of the files that training depends on; the other files record how the set was made.
_FINGERPRINT_FILES = (
    ".npy",
    f".{RECORDS_FILE}",
    ".model",
    TEMPLATE_FILE,
    IMPORTED_TOKENIZER_FILE,
)


def read_shard_format(folder: Path) -> str | None:
    """Return the format of the shard set in a folder, None if its manifest is not of a shard set.

    A shard set of another version of this program has another format than SHARD_FORMAT.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    name = manifest.get("format") if isinstance(manifest, dict) else None
    return name if isinstance(name, str) and name.startswith(_FORMAT_PREFIX) else None


class ShardSet:
    """A prepared shard set: manifest, tokenizer and splits."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Use `open`, which checks the folder."""
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, *, checksums: bool = False) -> "ShardSet":
        """Open the shard set in a folder; with `checksums`, read every file and check its checksum.

        Raises UserError if the folder is not a shard set of this format, or if a file is missing,
        has another size than in the manifest, or another checksum.
        """
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"{folder} is not a prepared shard set (no {MANIFEST}): python -m data.prepare "
                "makes one"
            )
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != SHARD_FORMAT:
            if read_shard_format(folder) is not None:
                raise UserError(
                    f"{folder} was prepared by another version of this program: prepare its files "
                    "again (python -m data.prepare --source NAME --input FILE --tokenizer "
                    f"{shlex.quote(str(folder))} --out OTHER_FOLDER), or give the raw files as data"
                )
            raise UserError(
                f"{folder / MANIFEST} does not describe a shard set of format {SHARD_FORMAT}"
            )
        if problem := check_manifest(folder, verify_checksums=checksums):
            raise UserError(f"{problem}: prepare {folder} again")
        # The manifest does not list the report, which has a checksum of itself.
        if checksums and (folder / REPORT_FILE).exists():
            read_checksummed_json(
                folder / REPORT_FILE, advice=f": delete it, or prepare {folder} again"
            )
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """Return a digest of data, tokenizer and template files and derivation, SHA-256 in hex."""
        names_and_checksums = sorted(
            (name, entry["sha256"])
            for name, entry in self.manifest["files"].items()
            if name.endswith(_FINGERPRINT_FILES)
        )
        contents: Any = names_and_checksums
        if "derived" in self.manifest:
            # Two derivations may store the same records and make other examples of them.
            derived = self.manifest["derived"]
            contents = [contents, derived["name"], derived["version"], derived["arguments"]]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

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

    @property
    def derivation(self) -> tuple[Derivation[Any], Arguments] | None:
        """Return the derivation of a derived set and its arguments; None for any other set.

        Raises UserError if this version does not have the derivation.
        """
        derived = self.manifest.get("derived")
        if derived is None:
            return None
        if derived["name"] not in derivation_names():
            raise UserError(f"{self.folder}: {derived['name']} is no derivation of this version")
        derivation = find_derivation(derived["name"])
        # Those that take any kind keep it; the others make the same of every set.
        return derivation.for_kind(self.kind) or derivation, derived["arguments"]

    def examples(
        self,
        split: Any,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return the training examples of a split of this set; see `RecordKind.examples`."""
        if self.derivation is None:
            return self.kind.examples(split, length, tokenizer, template, seed)
        derivation, arguments = self.derivation
        return derivation.examples(split, length, tokenizer, template, seed, arguments)

    def example_lengths(
        self, split: Any, tokenizer: Tokenizer, template: Template, seed: int | None
    ) -> ExampleLengths:
        """Return the lengths of `examples` of a split for rows of any length; not for text."""
        if self.derivation is None:
            return self.kind.example_lengths(tokenizer, template, seed)
        derivation, arguments = self.derivation
        return derivation.example_lengths(split, tokenizer, template, seed, arguments)

    def matches_template(self, template: Template) -> bool:
        """Return whether the spans are those of records in `template`, or the set is text.

        Lead-ins are not compared: they are added when examples are built, and have no spans.
        """
        if not (self.folder / TEMPLATE_FILE).is_file():
            return True
        return replace(load_template(self.folder), lead_ins=template.lead_ins) == template

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer that made the ids."""
        return load_tokenizer(self.folder)

    def load_text(self, split: str) -> Sequences:
        """Open the split `train` or `validation` of text."""
        return Sequences(self.folder, split)

    def load_records(self, split: str) -> StoredRecords[Any]:
        """Open the split `train` or `validation` of a kind other than text."""
        return StoredRecords(self.folder, split, self.kind.record_type)

    def load_split(self, name: str) -> Sequences | StoredRecords[Any]:
        """Open the split `train` or `validation`, as `examples` of its kind takes it."""
        return self.load_text(name) if self.kind.is_text else self.load_records(name)


def load_run_shard_set(run: Path, hint: str = "name a shard set with --data") -> ShardSet:
    """Return the one shard set that a run was trained on; `run` may also be one of its steps.

    Raises UserError as `load_run_shard_sets` does, and if the run was trained on a mix of several.
    """
    shard_sets = load_run_shard_sets(run, hint)
    if len(shard_sets) != 1:
        raise UserError(f"{run} was trained on {len(shard_sets)} shard sets: {hint}")
    return shard_sets[0]


def load_run_shard_sets(run: Path, hint: str = "name a shard set with --data") -> list[ShardSet]:
    """Return the shard sets that a run was trained on; `run` may also be one of its steps.

    If the project was moved or copied since, the sets are looked for in its new folder and in the
    working directory. Raises UserError if `run` does not exist, if the run does not record its
    sets, or if a set is gone, is damaged or has changed. Messages about a record that is missing,
    damaged or incomplete, and about a set that is gone or has changed, end with `hint`.
    """
    if not run.exists():
        raise UserError(
            f"{run} does not exist: name a run, such as runs/pretrain-sample, or one of its steps"
        )
    run_folder = run_layout.find_run(run)
    if run_folder is None:
        raise UserError(f"{run} does not say what it was trained on: {hint}")
    run_file = run_folder / run_layout.RUN_FILE
    run_record = read_checksummed_json(run_file, advice=f": {hint}")
    try:
        folders = [Path(folder) for folder in run_record["shards"]]
        fingerprints = [entry["set"] for entry in run_record["fingerprints"]["data"]]
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
    """Open the shard set in `folder`, or a copy of it, that a run was trained on.

    `run` is the path that the user gave, for messages; `run_file` is the run's `run.json`. Raises
    UserError with `hint` if the set is gone or if its fingerprint is not `fingerprint`.
    """
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


def _find_moved_set(name: str, fingerprint: str, run_folder: Path) -> ShardSet | None:
    """Return the shard set with this folder name and fingerprint, or None if it is not found.

    It is looked for in the working directory and in the project that the run now lies in. Raises
    UserError if a shard set of this name in one of them is damaged.
    """
    # Runs lie in PROJECT/runs/NAME.
    for project in (Path(), run_folder.resolve().parent.parent):
        for folder in (project / PREPARED_FOLDER / name, project / name):
            if (folder / MANIFEST).is_file():
                shards = ShardSet.open(folder)
                if shards.fingerprint == fingerprint:
                    return shards
    return None
