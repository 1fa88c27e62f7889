"""Search an index with BM25 over all of its passages, whichever segment they lie in.

The score is that of Lucene (Kamphuis et al. 2020, "Which BM25 do you mean?"; `method="lucene"` of
bm25s), the sum over the tokens of the query of

    ln(1 + (N - df + 1/2) / (df + 1/2)) · tf / (tf + k1 · (1 - b + b · length / mean length))

N passages, df of them with the token, tf its occurrences in the passage. N, df and the mean length
are counted over all segments when a query comes, so that adding passages changes no file.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import CHECKSUM_KEY, MANIFEST, check_manifest, read_checksummed_json, read_json
from data.index.options import WindowOptions
from data.index.passages import Passage
from data.index.segment import Segment, document_digest
from data.index.tokens import Tokenize, character_tokens

INDEX_FILE = "index.json"
# Raise it when the same records give other passages or tokens, or files of another layout.
INDEX_VERSION = 1
# The names of many input files take megabytes.
MAX_INDEX_FILE_BYTES = 1 << 30
K1 = 1.2
B = 0.75
# The share of a segment's passages from which on a token is frequent.
_FREQUENT_SHARE = 1 / 8
# How many times as long looking up a passage among postings takes as adding a posting to a score.
_LOOKUP_COST = 4


class UnknownQueryError(UserError):
    """No token of the query is in any passage: a search would find nothing."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, with its score; `source` is `FILE:LINE` of its record.

    `share` is the score divided by the sum of the weights of the query's tokens, which it cannot
    reach: unlike scores, the shares of different queries are comparable.
    """

    title: str
    text: str
    score: float
    source: str
    share: float


class PassageIndex:
    """An index on disk, open for searching. Threads may share it."""

    def __init__(
        self, segments: list[Segment], fingerprint: str, windows: WindowOptions, tokenize: Tokenize
    ) -> None:
        """Use `open` for an index on disk. `tokenize` is what the segments were written with."""
        self.fingerprint = fingerprint
        self.windows = windows
        self._segments = segments
        self._tokenize = tokenize
        lengths = [segment.lengths for segment in segments]
        self._num_passages = sum(map(len, lengths))
        num_tokens = sum(int(array.sum(dtype=np.int64)) for array in lengths)
        mean_length = max(num_tokens, 1) / max(self._num_passages, 1)
        # What a count is compared with in each passage, float32[n] of each segment.
        self._saturations = [
            (K1 * (1 - B + B * array / mean_length)).astype(np.float32) for array in lengths
        ]

    @classmethod
    def open(cls, folder: Path, *, checksums: bool = False) -> "PassageIndex":
        """Open the index in a folder; with `checksums`, read and verify all files.

        Raises UserError if it is not an index, or is damaged.
        """
        while True:
            record = read_index_file(folder)
            try:
                segments = _open_segments(folder, record["segments"], checksums)
                break
            except (UserError, FileNotFoundError):
                # Who adds passages deletes the segments that it has merged into another.
                if read_index_file(folder) == record:
                    raise
        fingerprint = _fingerprint(record["segments"])
        return cls(segments, fingerprint, WindowOptions(**record["windows"]), character_tokens)

    def __len__(self) -> int:
        return self._num_passages

    def passages(self) -> Iterator[Passage]:
        """Yield all passages in the order in which they were added."""
        for segment in self._segments:
            for number in range(len(segment)):
                yield segment.passage(number)

    def contains_document(self, text: str) -> bool:
        """Return whether the passages of this whole document are in the index."""
        digest = document_digest(text)
        return any(segment.contains_document(digest) for segment in self._segments)

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the `k` passages with the highest scores, the best first; fewer if others have 0.

        Of equal scores the passage that was added first comes first. Raises UnknownQueryError if no
        passage has any token of the query.
        """
        tokens, repeats = np.unique(self._tokenize([query])[0], return_counts=True)
        spans = [segment.find_postings(tokens) for segment in self._segments]
        frequencies = sum(
            (stops - starts for starts, stops in (span.T for span in spans)),
            start=np.zeros(len(tokens), np.int64),
        )
        if not frequencies.any():
            raise UnknownQueryError(
                f"no passage has a word of {query[:40]!r}: ask in the language of the passages"
            )
        idf = np.log1p((self._num_passages - frequencies + 0.5) / (frequencies + 0.5))
        weights = (repeats * idf).astype(np.float32)
        # Rare tokens first: those of most passages then matter to few of them.
        order = np.argsort(frequencies, kind="stable")
        # (score, minus number of the segment, minus that of the passage): the largest are best.
        best: list[tuple[float, int, int]] = []
        for index, segment_spans in enumerate(spans):
            threshold = best[k - 1][0] if len(best) == k else 0.0
            scores = self._score(index, segment_spans[order], weights[order], threshold)
            numbers = np.flatnonzero((scores > 0) & (scores >= threshold))
            numbers = numbers[scores[numbers] >= _kth_largest(scores[numbers], k)]
            found = zip(scores[numbers].tolist(), numbers.tolist(), strict=True)
            ranked = [(score, -index, -number) for score, number in found]
            best = heapq.nlargest(k, best + ranked)
        total = float(weights.sum())
        return [self._hit(score, score / total, -index, -number) for score, index, number in best]

    def _score(
        self, index: int, spans: np.ndarray, weights: np.ndarray, threshold: float
    ) -> np.ndarray:
        """Return the scores of the passages of a segment, float32[n].

        A score below `threshold` may be too low: frequent tokens are looked up only in passages
        that can still reach it (Turtle and Flood 1995, "Query evaluation: strategies and
        optimizations").
        """
        segment, saturation = self._segments[index], self._saturations[index]
        scores = np.zeros(len(segment), np.float32)
        # No more than the weights of the tokens that are left is added to a score.
        bounds = np.cumsum(weights[::-1])[::-1]
        for (start, stop), weight, bound in zip(spans.tolist(), weights, bounds, strict=True):
            if start == stop:
                continue
            numbers, counts = segment.read_postings(start, stop)
            # Less than the threshold, because sums of float32 are rounded.
            least = 0.9999 * threshold - bound
            if least > 0 and len(numbers) > len(segment) * _FREQUENT_SHARE:
                candidates = np.flatnonzero(scores >= least).astype(np.uint16)
                if len(candidates) < len(numbers) / _LOOKUP_COST:
                    found = np.searchsorted(numbers, candidates).clip(max=len(numbers) - 1)
                    found = found[numbers[found] == candidates]
                    numbers, counts = numbers[found], counts[found]
            frequencies = counts.astype(np.float32)
            places = numbers.astype(np.intp)  # indexing is twice as fast by these
            np.add.at(scores, places, weight * frequencies / (frequencies + saturation[places]))
        return scores

    def _hit(self, score: float, share: float, index: int, number: int) -> Hit:
        passage = self._segments[index].passage(number)
        return Hit(passage.title, passage.text, score, passage.source, share)


def _kth_largest(scores: np.ndarray, k: int) -> float:
    """Return the k-th largest score, or the smallest of fewer than `k`."""
    if len(scores) <= k:
        return float(scores.min(initial=0))
    return float(np.partition(scores, -k)[-k])


def read_index_file(folder: Path) -> dict[str, Any]:
    """Return what `index.json` says of an index.

    Raises UserError if the folder is not an index, or if the file is damaged or of another version.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not an index: build one with python -m data.index")
    advice = f": delete {folder} and build it again"
    record = read_checksummed_json(path, advice, max_bytes=MAX_INDEX_FILE_BYTES)
    if record.get("version") != INDEX_VERSION:
        raise UserError(f"{path} is from another version of this program{advice}")
    return record


def _open_segments(folder: Path, entries: list[dict[str, Any]], checksums: bool) -> list[Segment]:
    """Return the segments that `index.json` names, after checking them."""
    segments = []
    for entry in entries:
        segment_folder = folder / entry["name"]
        problem = check_manifest(segment_folder, verify_checksums=checksums)
        if problem is None and manifest_checksum(segment_folder) != entry["manifest"]:
            problem = f"{segment_folder} is not the segment that {folder / INDEX_FILE} names"
        if problem is not None:
            raise UserError(f"{problem}: delete {folder} and build it again")
        segments.append(Segment(segment_folder))
    return segments


def manifest_checksum(segment_folder: Path) -> str:
    """Return the checksum of a segment's manifest, which has the checksums of its files."""
    return str(read_json(segment_folder / MANIFEST)[CHECKSUM_KEY])


def _fingerprint(segments: list[dict[str, Any]]) -> str:
    """Return a digest of the contents of all segments, SHA-256 in hex."""
    checksums = [segment["manifest"] for segment in segments]
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
