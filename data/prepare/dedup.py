"""Removal of exact and near duplicates, in memory that does not grow with the number of documents.

A document is signed where it is cleaned: a digest of its text without white space, and a MinHash signature of its
shingles (Broder, "On the resemblance and containment of documents", 1997), with the permutations of `datasketch`.
`Deduplicator` collects what was signed in files and then finds the documents that repeat an earlier one: signatures
are cut into bands (locality-sensitive hashing: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", ch. 3),
documents that agree on a band are candidates, and a candidate counts when its estimated Jaccard similarity with the
first of its bucket reaches the threshold.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.prepare.clean import character_classes, code_points
from data.prepare.options import DedupOptions

NUM_PERMUTATIONS = 128
SHINGLE_SIZE = 5
MAX_SHINGLES = 1024
DIGEST_DTYPE = np.dtype("<u8")
_HASH_BLOCK_SIZE = 512
_PARTITION_SIZE = 1 << 21
_MAX_LEADERS = 16
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
EMPTY_HASH = np.uint32(0xFFFFFFFF)
UNIQUE, EXACT_DUPLICATE, NEAR_DUPLICATE = 0, 1, 2


def text_digest(text: str) -> np.ndarray:
    """128 bits of a text without its white space, uint64[2]: equal for what counts as the same text."""
    squeezed = "".join(text.split())
    return np.frombuffer(
        hashlib.blake2b(squeezed.encode(), digest_size=16).digest(), dtype=DIGEST_DTYPE
    )


@functools.cache
def minhash_permutations() -> np.ndarray:
    """The parameters of the MinHash permutations, uint32[2, PERMUTATIONS]: `datasketch`'s (affine32, seed 1)."""
    # Asked once and handed to the workers: importing datasketch takes seconds and, for scipy, 60 MB.
    from datasketch import MinHash

    return MinHash(num_perm=NUM_PERMUTATIONS, seed=1, scheme="affine32").permutations


def hash_shingles(text: str) -> np.ndarray:
    """Hashes of the 5-character shingles of a text's letters and digits, uint32[at most SHINGLE_LIMIT], evenly spread.

    Of a longer text the smallest hashes are taken: the same choice in every copy of a passage, and so an even sample.
    A pair whose lengths differ is then judged a little less similar than it is (0.8 by containment as 0.67): the
    cautious side. Texts without a shingle have no hashes.
    """
    points = code_points(text)
    kind = character_classes()[points]
    points = points[(kind > 0) & (kind < 4)].astype(np.uint64)
    if len(points) < SHINGLE_SIZE:
        return np.zeros(0, dtype=np.uint32)
    count = len(points) - SHINGLE_SIZE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for position in range(SHINGLE_SIZE):
        hashes += points[position : position + count]
        hashes *= _HASH_MULTIPLIER
    # The high half of a product depends on all bits of its factor, the low half does not: fold, multiply once more.
    hashes ^= hashes >> np.uint64(29)
    hashes *= _HASH_MULTIPLIER
    short = (hashes >> np.uint64(32)).astype(np.uint32)
    return short if count <= MAX_SHINGLES else _smallest_distinct(short)


def _smallest_distinct(hashes: np.ndarray) -> np.ndarray:
    """The SHINGLE_LIMIT smallest distinct hashes (fewer if there are not so many), sorted."""
    num_candidates = 4 * MAX_SHINGLES
    while True:
        takes_all = num_candidates >= len(hashes)
        candidates = np.sort(
            hashes if takes_all else np.partition(hashes, num_candidates)[:num_candidates]
        )
        # np.unique would do, at forty times the time.
        candidates = candidates[np.concatenate([[True], candidates[1:] != candidates[:-1]])]
        if takes_all or len(candidates) >= MAX_SHINGLES:
            return candidates[:MAX_SHINGLES]
        num_candidates *= 4


def minhash_signature(text: str, permutation_parameters: np.ndarray) -> np.ndarray:
    """The MinHash signature of a text, uint32[PERMUTATIONS]; of a text without shingles the largest value throughout.

    `permutation_parameters` are `permutations()`, applied to the shingle hashes as they are.
    """
    a, b = permutation_parameters[0][:, None], permutation_parameters[1][:, None]
    hashes, scratch = hash_shingles(text), _scratch_buffer()
    result = np.full(NUM_PERMUTATIONS, EMPTY_HASH)
    for start in range(0, len(hashes), _HASH_BLOCK_SIZE):
        # In blocks that stay in the cache, in memory that is there already: several times faster than
        # `MinHash.update_batch`, which makes lists of the hashes and a new array of all permutations of all of them.
        block = hashes[None, start : start + _HASH_BLOCK_SIZE]
        permuted = np.multiply(block, a, out=scratch[:, : block.shape[1]])
        permuted += b
        np.minimum(result, permuted.min(axis=1), out=result)
    return result


@functools.cache
def _scratch_buffer() -> np.ndarray:
    return np.empty((NUM_PERMUTATIONS, _HASH_BLOCK_SIZE), dtype=np.uint32)


class Deduplicator:
    """Collects signed documents in files of `folder`, then tells which repeat an earlier one.

    On disk a document takes 16 bytes, with near duplicates 528 and 8 for each band more; in memory nothing. Bands are
    sorted in partitions of about two million documents.
    """

    def __init__(self, folder: Path, options: DedupOptions) -> None:
        folder.mkdir(parents=True)
        self._folder, self._options, self._num_documents = folder, options, 0
        self._num_bands, self._rows_per_band = (
            choose_lsh_bands(options.threshold) if options.near else (0, 0)
        )
        names = [
            "digests",
            *(["signatures"] if options.near else []),
            *(f"band{band}" for band in range(self._num_bands)),
        ]
        self._files = {name: (folder / name).open("wb") for name in names}

    def add(self, digests: np.ndarray, signatures: np.ndarray | None) -> None:
        """Add documents in order: digests uint64[n, 2], signatures uint32[n, PERMUTATIONS] or None if not `near`."""
        digests.tofile(self._files["digests"])
        self._num_documents += len(digests)
        if signatures is None:
            return
        signatures.tofile(self._files["signatures"])
        # A text without shingles resembles nothing: its bands are its digest, which only a copy shares.
        is_empty = signatures[:, 0] == EMPTY_HASH
        for band in range(self._num_bands):
            keys = np.full(len(signatures), band, dtype=np.uint64)
            for column in range(band * self._rows_per_band, (band + 1) * self._rows_per_band):
                keys = (keys ^ signatures[:, column]) * _HASH_MULTIPLIER
                keys ^= keys >> np.uint64(32)
            np.where(is_empty, digests[:, 0], keys).tofile(self._files[f"band{band}"])

    def find_duplicates(self) -> np.ndarray:
        """For each document 0 (kept), 1 (equal to an earlier one) or 2 (similar to one), uint8[n], memory-mapped.

        A document goes if it repeats any earlier one, itself kept or not: of each group the first stays.
        """
        for file in self._files.values():
            file.close()
        path = self._folder / "verdict.npy"
        # Written, then mapped: a map of a file without bytes kills the process when the disk is full.
        np.save(path, np.zeros(self._num_documents, np.uint8), allow_pickle=False)
        labels = np.load(path, mmap_mode="r+", allow_pickle=False)
        if self._num_documents and self._options.near:
            for band in range(self._num_bands):
                self._mark_near_duplicates(f"band{band}", labels)
        if self._num_documents and self._options.exact:
            self._mark_exact_duplicates(labels)
        return labels

    def _mark_near_duplicates(self, name: str, labels: np.ndarray) -> None:
        for members in self._iter_buckets(name, width=1):
            # Opened anew for each bucket group: a map that lives on keeps every page it ever touched.
            signatures = np.memmap(self._folder / "signatures", dtype=np.uint32, mode="r").reshape(
                -1, NUM_PERMUTATIONS
            )
            for bucket in members:
                for later in _iter_similar(bucket, signatures, self._options.threshold):
                    labels[later] = NEAR_DUPLICATE

    def _mark_exact_duplicates(self, labels: np.ndarray) -> None:
        for members in self._iter_buckets("digests", width=2):
            digests = np.memmap(self._folder / "digests", dtype=np.uint64, mode="r").reshape(-1, 2)
            for bucket in members:
                _, first = np.unique(digests[bucket, 1], return_index=True)
                labels[np.delete(bucket, first)] = EXACT_DUPLICATE

    def _iter_buckets(self, name: str, width: int) -> Iterator[list[np.ndarray]]:
        """Groups of documents with the same key, each in ascending order, a partition of the keys at a time."""
        partitions = np.uint64(-(-self._num_documents // _PARTITION_SIZE))
        for partition in range(int(partitions)):
            keys, documents = self._read_partition(name, width, partitions, np.uint64(partition))
            order = np.argsort(keys, kind="stable")
            keys, documents = keys[order], documents[order]
            borders = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
            shared = np.flatnonzero(np.diff(borders) > 1)
            yield [documents[borders[bucket] : borders[bucket + 1]] for bucket in shared]

    def _read_partition(
        self, name: str, width: int, num_partitions: np.uint64, partition: np.uint64
    ) -> tuple[np.ndarray, np.ndarray]:
        keys, documents, position = [], [], 0
        with (self._folder / name).open("rb") as file:
            while len(block := np.fromfile(file, dtype=np.uint64, count=width * (1 << 18))):
                column = block[::width]
                chosen = np.flatnonzero(column % num_partitions == partition)
                keys.append(column[chosen])
                documents.append(chosen + position)
                position += len(column)
        return np.concatenate(keys), np.concatenate(documents)


def choose_lsh_bands(threshold: float) -> tuple[int, int]:
    """(bands, rows a band) for a threshold, as `datasketch` chooses them if a missed pair weighs 19 times a false one.

    False candidates cost one comparison each and are then dismissed.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.05, 0.95))
    return index.b, index.r


def _iter_similar(
    bucket: np.ndarray, signatures: np.ndarray, threshold: float
) -> Iterator[np.ndarray]:
    """The documents of a bucket that resemble an earlier one of it; work is linear in the size of the bucket."""
    rest = bucket
    for _ in range(_MAX_LEADERS):
        if len(rest) < 2:
            return
        leader, rest = signatures[rest[0]], rest[1:]
        is_similar = np.concatenate(
            [
                (signatures[rest[start : start + 4096]] == leader).mean(axis=1) >= threshold
                for start in range(0, len(rest), 4096)
            ]
        )
        yield rest[is_similar]
        rest = rest[~is_similar]
