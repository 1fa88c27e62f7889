"""A shard set on disk: memory-mapped token arrays whose size never shows in the process's memory.

A shard set is a folder with, for each split, numbered pairs of files

    train-00000.tokens.npy    the ids of many sequences, one after another (uint16 while the vocabulary fits, else uint32)
    train-00000.offsets.npy   where each begins, and where the last ends (int64, one more than there are sequences)

beside the tokenizer that made them (`tokenizer.model`) and `manifest.json`, written last: its kind, counts, how it was
made, and the checksum of every file. What a sequence is depends on the kind:

    documents      `<bos> text <eos>`, loss on all of it
    conversations  a conversation in the words of its template (`template.json`), loss on the spans of its answers
    summaries      an article and its title, without anything around them but what the template puts around every answer;
                   the span is the title

The two kinds with spans have, besides,

    train-00000.spans.npy        start and stop of each span within its sequence, int32[k, 2]
    train-00000.span_offsets.npy where each sequence's spans begin, and where the last one's end (int64)
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from common.errors import UserError
from common.files import MANIFEST, check_manifest, read_checksummed_json, read_json
from data.records import Kind
from model.tokenizer import load_tokenizer
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, Tokenizer

SHARD_FORMAT = "babyllama-shards-1"
SPLITS = ("train", "validation")
SHARD_TOKENS = 1 << 25
# Where `make data` and training put the sets that they prepare, below the folder that the command runs in.
PREPARED_FOLDER = Path("prepared")
# Written after the manifest, which therefore does not list it: it says how long the preparation took.
REPORT_FILE = "report.json"
PROVENANCE_FILE = "made-from.json"


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The narrowest type on disk that holds every id."""
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<u4")


class ShardWriter:
    """Writes the sequences of one split into a folder, a shard at a time; memory stays within one shard."""

    def __init__(
        self,
        folder: Path,
        split: str,
        vocabulary_size: int,
        shard_tokens: int = SHARD_TOKENS,
        *,
        has_spans: bool = False,
    ) -> None:
        """`has_spans`: whether sequences have spans."""
        self._folder, self._split, self._max_shard_tokens, self._has_spans = (
            folder,
            split,
            shard_tokens,
            has_spans,
        )
        self._spans: list[np.ndarray] = []
        self._span_offsets = [0]
        self._dtype = token_dtype(vocabulary_size)
        self._token_arrays: list[np.ndarray] = []
        self._offsets = [0]
        self._num_shards = self._num_sequences = self._num_tokens = 0

    def add(self, ids: np.ndarray, spans: np.ndarray | None = None) -> None:
        """Append one sequence, int[n], with its spans, int[k, 2]."""
        self._token_arrays.append(np.asarray(ids, dtype=self._dtype))
        self._offsets.append(self._offsets[-1] + len(ids))
        self._num_sequences += 1
        self._num_tokens += len(ids)
        if spans is not None:
            self._spans.append(spans.astype(np.int32))
            self._span_offsets.append(self._span_offsets[-1] + len(spans))
        if self._offsets[-1] >= self._max_shard_tokens:
            self._flush()

    def close(self) -> dict[str, int]:
        """Write what is left; return the counts of the split."""
        if self._token_arrays:
            self._flush()
        return {"sequences": self._num_sequences, "tokens": self._num_tokens}

    def _flush(self) -> None:
        stem = self._folder / f"{self._split}-{self._num_shards:05d}"
        np.save(f"{stem}.tokens.npy", np.concatenate(self._token_arrays), allow_pickle=False)
        np.save(
            f"{stem}.offsets.npy", np.asarray(self._offsets, dtype=np.int64), allow_pickle=False
        )
        if self._has_spans:
            np.save(f"{stem}.spans.npy", np.concatenate(self._spans), allow_pickle=False)
            np.save(
                f"{stem}.span_offsets.npy",
                np.asarray(self._span_offsets, dtype=np.int64),
                allow_pickle=False,
            )
        self._token_arrays, self._offsets = [], [0]
        self._spans, self._span_offsets = [], [0]
        self._num_shards += 1


class Sequences:
    """The sequences of one split, read through memory maps."""

    def __init__(self, folder: Path, split: str) -> None:
        paths = sorted(folder.glob(f"{split}-*.tokens.npy"))
        self._tokens = _load_arrays(paths, "tokens", "u")
        self._offsets = _load_offsets(paths, "offsets", self._tokens)
        spans = [
            path
            for path in paths
            if path.with_name(path.name.replace(".tokens.", ".spans.")).exists()
        ]
        self._spans = _load_arrays(spans, "spans", "i", columns=2)
        self._span_offsets = _load_offsets(spans, "span_offsets", self._spans)
        self._first_sequences = np.cumsum([0] + [len(offsets) - 1 for offsets in self._offsets])
        self._first_positions = np.cumsum([0] + [len(tokens) for tokens in self._tokens])

    def __len__(self) -> int:
        return int(self._first_sequences[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences together."""
        return int(self._first_positions[-1])

    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64[len(self)]."""
        return np.concatenate(
            [np.diff(offsets) for offsets in self._offsets] or [np.zeros(0, np.int64)]
        )

    def tokens(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The ids `[start, stop)` of sequence `index`, a view in the on-disk type."""
        shard = int(np.searchsorted(self._first_sequences, index, side="right")) - 1
        begin, end = (
            int(value) for value in self._offsets[shard][index - self._first_sequences[shard] :][:2]
        )
        return self._tokens[shard][begin + start : end if stop is None else min(begin + stop, end)]

    def spans(self, index: int) -> np.ndarray:
        """The spans of sequence `index`, int32[k, 2]."""
        shard = int(np.searchsorted(self._first_sequences, index, side="right")) - 1
        first, last = self._span_offsets[shard][index - self._first_sequences[shard] :][:2]
        return self._spans[shard][first:last]

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each shard all its spans, int32[k, 2], and where each sequence's begin, int64[n]."""
        for spans, offsets in zip(self._spans, self._span_offsets, strict=True):
            yield spans, np.asarray(offsets[:-1])

    def read_stream(self, start: int, stop: int) -> np.ndarray:
        """Positions `[start, stop)` of all sequences written one after another, int64."""
        parts = []
        for tokens, begin in zip(self._tokens, self._first_positions[:-1], strict=True):
            low, high = max(start - int(begin), 0), min(stop - int(begin), len(tokens))
            if low < high:
                parts.append(tokens[low:high].astype(np.int64))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class InMemorySequences:
    """Sequences with spans in memory, for a few records that are in no shard set."""

    def __init__(self, records: Sequence[tuple[list[int], list[tuple[int, int]]]]) -> None:
        self._ids = [np.array(ids, dtype=np.int64) for ids, _ in records]
        self._spans = [np.array(spans, dtype=np.int32).reshape(-1, 2) for _, spans in records]

    def lengths(self) -> np.ndarray:
        """See `Sequences`."""
        return np.array([len(ids) for ids in self._ids], dtype=np.int64)

    def tokens(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `Sequences`."""
        return self._ids[index][start:stop]

    def spans(self, index: int) -> np.ndarray:
        """See `Sequences`."""
        return self._spans[index]

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Sequences`."""
        if self._spans:
            yield (
                np.concatenate(self._spans),
                np.cumsum([0] + [len(spans) for spans in self._spans[:-1]]),
            )


def _load_arrays(
    paths: list[Path], name: str, dtype_kind: str, *, columns: int | None = None
) -> list[np.ndarray]:
    """The arrays called `name` of the shards whose tokens lie at `paths`, memory-mapped.

    UserError where one is no array of this kind of numbers ("u", "i"), or its header promises more than the file holds.
    """
    loaded = []
    for path in (path.with_name(path.name.replace(".tokens.", f".{name}.")) for path in paths):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
            raise UserError(
                f"{path} cannot be read: {' '.join(str(error).split())}: prepare {path.parent} again"
            ) from None
        if (
            not isinstance(array, np.ndarray)
            or array.dtype.kind != dtype_kind
            or array.shape[1:] != ((columns,) if columns else ())
        ):
            raise UserError(f"{path} does not hold {name}: prepare {path.parent} again")
        loaded.append(array)
    return loaded


def _load_offsets(paths: list[Path], name: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Where the sequences of each shard begin in its array. UserError where they lead outside of it."""
    offset_arrays = _load_arrays(paths, name, "i")
    for path, offsets, array in zip(paths, offset_arrays, arrays, strict=True):
        if (
            not len(offsets)
            or offsets[0] != 0
            or offsets[-1] != len(array)
            or (np.diff(offsets) < 0).any()
        ):
            raise UserError(f"{path}: its {name} do not fit it: prepare {path.parent} again")
    return offset_arrays


class ShardSet:
    """A prepared shard set: its manifest, its tokenizer, its splits."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path, *, checksums: bool = False) -> "ShardSet":
        """Open a folder; `checksums=True` reads every byte and compares. UserError if it is not a whole shard set."""
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"{folder} is not a prepared shard set (no {MANIFEST}): python -m data.prepare makes one"
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
        """Changes when any byte of the set's data or tokenizer changes, not with where or how it was made."""
        files = self.manifest["files"].items()
        kinds = (".npy", ".model", "template.json", IMPORTED_TOKENIZER_FILE)
        listing = sorted((name, entry["sha256"]) for name, entry in files if name.endswith(kinds))
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @property
    def kind(self) -> Kind:
        """What its sequences are. UserError for a manifest that does not say it."""
        kind = self.manifest.get("kind")
        if kind not in get_args(Kind):
            raise UserError(
                f"{self.folder / MANIFEST} does not say what the set holds: prepare {self.folder} again"
            )
        return cast(Kind, kind)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids these are."""
        return load_tokenizer(self.folder)

    def load_split(self, name: str) -> Sequences:
        """`train` or `validation`."""
        return Sequences(self.folder, name)


def load_run_shard_set(run: Path, hint: str = "name a shard set with --data") -> ShardSet:
    """The one shard set that a run, or the run of a step, was trained on.

    UserError as of `shard_sets_of_run`, and if it was a mix of several.
    """
    sets = load_run_shard_sets(run, hint)
    if len(sets) != 1:
        raise UserError(f"{run} was trained on {len(sets)} shard sets: {hint}")
    return sets[0]


def load_run_shard_sets(run: Path, hint: str = "name a shard set with --data") -> list[ShardSet]:
    """The shard sets that a run, or the run of a step, was trained on, also after the project's folder was moved or copied.

    UserError, which ends with `hint`, if there is no such record, or a set is gone or has changed since.
    """
    if not run.exists():
        raise UserError(
            f"{run} does not exist: name a run, such as runs/pretrain-sample, or one of its steps"
        )
    # A step's folder lies two below its run.
    run_file = run / "run.json"
    if not run_file.is_file():
        run_file = run.resolve().parent.parent / "run.json"
    if not run_file.is_file():
        raise UserError(f"{run} does not say what it was trained on: {hint}")
    run_record = read_checksummed_json(run_file, f": {hint}")
    try:
        folders, expected_fingerprints = (
            [Path(folder) for folder in run_record["shards"]],
            [each["set"] for each in run_record["fingerprints"]["data"]],
        )
    except (KeyError, TypeError):
        raise UserError(f"{run_file} does not say what the run was trained on: {hint}") from None
    if len(folders) != len(expected_fingerprints):
        raise UserError(
            f"{run_file} names {len(folders)} shard sets and {len(expected_fingerprints)} fingerprints: {hint}"
        )
    sets = []
    for folder, fingerprint in zip(folders, expected_fingerprints, strict=True):
        shards = (
            ShardSet.open(folder)
            if (folder / MANIFEST).exists()
            else _find_moved_set(folder.name, fingerprint, run_file.parent)
        )
        if shards is None:
            copy = PREPARED_FOLDER / folder.name
            raise UserError(
                f"{folder}, which {run} was trained on, is gone, and {copy} is no copy of it: {hint}"
            )
        if shards.fingerprint != fingerprint:
            raise UserError(f"{shards.folder} is no longer what {run} was trained on: {hint}")
        sets.append(shards)
    return sets


def _find_moved_set(name: str, fingerprint: str, run: Path) -> ShardSet | None:
    """The set of this name and these bytes where a project keeps one: the project that the command runs in, or the run's."""
    for project in (Path(), run.resolve().parent.parent):
        for folder in (project / PREPARED_FOLDER / name, project / name):
            if (folder / MANIFEST).is_file() and (
                shards := ShardSet.open(folder)
            ).fingerprint == fingerprint:
                return shards
    return None
