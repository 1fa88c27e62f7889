"""Segments of an index: some ten thousand passages and where their tokens occur, never changed.

    passages.jsonl         {"title", "text", "source"} of each passage, a line each
    passage_offsets.npy    where the lines begin, and the end of the last, int64[n + 1]
    lengths.npy            tokens of each passage, int32[n]
    tokens.npy             the different tokens, sorted, uint64[t]
    posting_offsets.npy    where the postings of each token begin, and the end, int64[t + 1]
    postings.npy           numbers of the passages with the token, sorted, uint16[p]
    counts.npy             how often it occurs in them, uint8[p], or wider if a count needs it
    digests.npy            `document_digest` of the documents that begin here, sorted, uint64[d]

There are counts and not scores in a segment, because a score also depends on the other segments:
on how many passages of all have the token, and on their mean length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from common.errors import UserError
from common.files import atomic_folder
from data.index.passages import Passage
from data.index.tokens import TOKEN_BITS, Tokenize
from data.prepare.dedup import text_digest

# Bounds the memory of building: some 20 kB a passage. A number of a passage has 16 bits at most,
# which fill 64 with a token.
MAX_PASSAGES = 1 << 15
_NUMBER_BITS = 64 - TOKEN_BITS
# Passages that are tokenized at a time.
_CHUNK_PASSAGES = 256
# What np.load raises for a file that is missing or has a damaged header.
_LOAD_ERRORS = (OSError, ValueError, EOFError, SyntaxError, OverflowError)


def document_digest(text: str) -> int:
    """Return a 64-bit digest of a document without its white space."""
    return int(text_digest(text)[0])


def write_segment(
    folder: Path,
    passages: Sequence[Passage],
    digests: Sequence[int],
    tokenize: Tokenize,
    metadata: dict[str, Any],
) -> None:
    """Write a segment of at most MAX_PASSAGES passages, atomically.

    `digests` are those of the documents that begin in it; `metadata` goes into the manifest.
    """
    lines = dump_passages(passages)
    lengths, postings = _count_tokens(passages, tokenize)
    arrays = {
        "passage_offsets": np.cumsum([0, *map(len, lines)], dtype=np.int64),
        "lengths": lengths,
        "digests": np.sort(np.array(digests, dtype=np.uint64)),
        **postings,
    }
    _write_files(folder, lines, arrays, metadata)


def merge_segments(folder: Path, segments: Sequence["Segment"], metadata: dict[str, Any]) -> None:
    """Write a segment of the passages of several, in their order, atomically.

    Its files are those that `write_segment` would write. There are MAX_PASSAGES at most.
    """
    line_lengths = [np.diff(segment.line_offsets) for segment in segments]
    arrays = {
        "passage_offsets": np.cumsum(np.concatenate([[0], *line_lengths]), dtype=np.int64),
        "lengths": np.concatenate([segment.lengths for segment in segments]),
        "digests": np.sort(np.concatenate([segment.digests for segment in segments])),
        **_merge_postings(segments),
    }
    _write_files(folder, [segment.lines.data for segment in segments], arrays, metadata)


def _write_files(
    folder: Path,
    lines: Sequence[bytes | memoryview],
    arrays: dict[str, np.ndarray],
    metadata: dict[str, Any],
) -> None:
    """Write the files of a segment: `passages.jsonl`, and the arrays by name."""
    with atomic_folder(folder, metadata) as partial_folder:
        with (partial_folder / "passages.jsonl").open("wb") as file:
            file.writelines(lines)
        for name, array in arrays.items():
            np.save(partial_folder / f"{name}.npy", array, allow_pickle=False)


def dump_passages(passages: Sequence[Passage]) -> list[bytes]:
    """Return the lines of `passages.jsonl`."""
    return [orjson.dumps(passage) + b"\n" for passage in passages]


def _count_tokens(
    passages: Sequence[Passage], tokenize: Tokenize
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the tokens of each passage, int32[n], and the arrays of the postings by name."""
    occurrences = []
    lengths = [np.zeros(0, np.int32)]
    for start in range(0, len(passages), _CHUNK_PASSAGES):
        texts = [passage.titled_text for passage in passages[start : start + _CHUNK_PASSAGES]]
        tokens, numbers = tokenize(texts)
        lengths.append(np.bincount(numbers, minlength=len(texts)).astype(np.int32))
        occurrences.append(_pack(tokens, start + numbers))
    # Sorted in place, the occurrences of a token are side by side, those in one passage too.
    packed = np.concatenate([np.zeros(0, np.uint64), *occurrences])
    occurrences.clear()
    packed.sort()
    starts = _run_starts(packed)
    counts = np.diff(starts, append=np.int32(len(packed)))
    return np.concatenate(lengths), _posting_arrays(packed[starts], counts)


def _merge_postings(segments: Sequence["Segment"]) -> dict[str, np.ndarray]:
    """Return the arrays of the postings of several segments, by name."""
    packed = np.empty(sum(len(segment.postings) for segment in segments), np.uint64)
    place = start = 0
    for segment in segments:
        tokens = np.repeat(segment.tokens, np.diff(segment.posting_offsets))
        packed[place : place + len(tokens)] = _pack(
            tokens, start + segment.postings.astype(np.int64)
        )
        place += len(tokens)
        start += len(segment)
    # The postings of each segment are sorted, and a stable sort merges sorted parts in linear time.
    order = np.argsort(packed, kind="stable")
    counts = np.concatenate([segment.counts for segment in segments])
    return _posting_arrays(packed[order], counts[order])


def _pack(tokens: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return tokens and numbers of passages as one number each, uint64[n]."""
    return (tokens << np.uint64(_NUMBER_BITS)) | numbers.astype(np.uint64)


def _posting_arrays(packed: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of sorted and packed postings, by name."""
    tokens = packed >> np.uint64(_NUMBER_BITS)
    token_starts = _run_starts(tokens)
    return {
        "tokens": tokens[token_starts],
        "posting_offsets": np.append(token_starts, len(tokens)).astype(np.int64),
        "postings": packed.astype(np.uint16),  # the lowest bits
        "counts": counts.astype(np.min_scalar_type(counts.max(initial=0))),
    }


def _run_starts(values: np.ndarray) -> np.ndarray:
    """Return where a value differs from the one before it, 0 included, int32[k]."""
    is_start = np.append(True, values[1:] != values[:-1])[: len(values)]
    return np.flatnonzero(is_start).astype(np.int32)


class Segment:
    """A segment on disk, read through memory maps."""

    def __init__(self, folder: Path) -> None:
        """Map the files. Raises UserError if they do not hold arrays that fit each other."""
        self._folder = folder
        self.lengths = self._load("lengths", "i")
        self.digests = self._load("digests", "u")
        self.tokens = self._load("tokens", "u")
        self.posting_offsets = self._load("posting_offsets", "i")
        self.postings = self._load("postings", "u")
        self.counts = self._load("counts", "u")
        self.line_offsets = self._load("passage_offsets", "i")
        try:
            lines = np.memmap(folder / "passages.jsonl", np.uint8, mode="r")
        except _LOAD_ERRORS as error:
            raise self._error("passages.jsonl", str(error)) from None
        self.lines = lines.view(np.ndarray)
        fits = (
            len(self.line_offsets) == len(self.lengths) + 1
            and self.line_offsets[-1] == len(lines)
            and len(self.posting_offsets) == len(self.tokens) + 1
            and self.posting_offsets[-1] == len(self.postings) == len(self.counts)
        )
        if not fits:
            raise self._error("its files", "their lengths do not fit each other")

    def _load(self, name: str, kind: str) -> np.ndarray:
        """Map a one-dimensional array of the NumPy kind "i" or "u"."""
        file = f"{name}.npy"
        try:
            array = np.load(self._folder / file, mmap_mode="r", allow_pickle=False)
        except _LOAD_ERRORS as error:
            raise self._error(file, " ".join(str(error).split())) from None
        if not isinstance(array, np.ndarray) or array.dtype.kind != kind or array.ndim != 1:
            raise self._error(file, "it does not hold what its name says")
        # A plain view: slices of a memmap, which is a subclass, take several times as long.
        return array.view(np.ndarray)

    def _error(self, file: str, problem: str) -> UserError:
        index = self._folder.parent
        return UserError(
            f"{self._folder / file} cannot be read: {problem}: delete {index} and build it again"
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def find_postings(self, tokens: np.ndarray) -> np.ndarray:
        """Return start and stop of the postings of each token, int64[len(tokens), 2].

        They are equal for a token that no passage has.
        """
        if not len(self.tokens):
            return np.zeros((len(tokens), 2), np.int64)
        places = np.searchsorted(self.tokens, tokens).clip(max=len(self.tokens) - 1)
        spans = np.stack([self.posting_offsets[places], self.posting_offsets[places + 1]], axis=1)
        spans[self.tokens[places] != tokens] = 0
        return spans

    def read_postings(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers of passages, and how often the token is in each of them."""
        return self.postings[start:stop], self.counts[start:stop]

    def passage(self, number: int) -> Passage:
        """Return a passage of the segment. Raises UserError if its line is damaged."""
        start, stop = self.line_offsets[number : number + 2].tolist()
        try:
            row = orjson.loads(self.lines[start:stop].tobytes())
            return Passage(row["title"], row["text"], row["source"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise self._error("passages.jsonl", f"passage {number} is damaged") from None

    def contains_document(self, digest: int) -> bool:
        """Return whether a document with this digest begins in the segment."""
        place = np.searchsorted(self.digests, np.uint64(digest))
        return place < len(self.digests) and self.digests[place] == np.uint64(digest)
