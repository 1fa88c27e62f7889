"""Find exact and near duplicates in memory that does not grow with the number of documents.

Every document gets a digest of its text without white space and a MinHash signature of its shingles
(Broder, "On the resemblance and containment of documents", 1997), with the permutations of
`datasketch`. `Deduplicator` collects digests and signatures in files and then finds the documents
that repeat an earlier one. Signatures are split into bands (locality-sensitive hashing: Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", ch. 3); documents that agree on a band are
candidates. A candidate is a duplicate if its estimated Jaccard similarity with a leader of its
bucket reaches the threshold. Leaders are the first documents of a bucket that are not similar to
each other.
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
# Shingle hashes permuted at a time: the scratch buffer, 256 kB, stays in the cache.
_HASH_BLOCK_SIZE = 512
# Documents whose bands are sorted at a time.
_PARTITION_SIZE = 1 << 21
# Documents of a bucket that the others are compared with; bounds the work for a huge bucket.
_MAX_LEADERS = 16
# 2^64 / golden ratio (Fibonacci hashing: Knuth, TAOCP vol. 3, 6.4).
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
EMPTY_HASH = np.uint32(0xFFFFFFFF)
UNIQUE, EXACT_DUPLICATE, NEAR_DUPLICATE = 0, 1, 2


def text_digest(text: str) -> np.ndarray:
    """Return a 128-bit digest of a text without its white space, uint64[2]."""
    text_without_space = "".join(text.split())
    digest = hashlib.blake2b(text_without_space.encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype=DIGEST_DTYPE)


@functools.cache
def minhash_permutations() -> np.ndarray:
    """Return the parameters of the MinHash permutations, uint32[2, NUM_PERMUTATIONS].

    They are those of `datasketch` (affine32, seed 1), which is not imported for them: with scipy
    that takes a second and 60 MB.
    """
    generator = np.random.RandomState(1)
    halves = generator.randint(0, 1 << 31, NUM_PERMUTATIONS, dtype=np.uint32)
    # Multiplying by an odd number modulo 2^32 is a permutation.
    a = halves * np.uint32(2) + np.uint32(1)
    b = generator.randint(0, 1 << 32, NUM_PERMUTATIONS, dtype=np.uint32)
    return np.stack([a, b])


def hash_shingles(text: str) -> np.ndarray:
    """Return the hashes of the shingles of a text, uint32[n], n <= MAX_SHINGLES.

    A shingle is SHINGLE_SIZE (5) consecutive characters of the text reduced to its letters and
    digits. A text with fewer than 5 of these has none.

    Of a text with more than MAX_SHINGLES shingles the smallest distinct hashes are returned (a
    bottom-k sketch: Broder 1997): a uniform sample, in which texts that share a passage have the
    same hashes of it. Such sketches underestimate the similarity of texts of different length: a
    text and its first 80% have a Jaccard similarity of 0.8, their sketches one of 0.67. This can
    keep a near duplicate, but drops no other document.
    """
    points = code_points(text)
    classes = character_classes()[points]
    # Classes 1 to 3: Chinese characters, other letters, digits.
    is_letter_or_digit = (classes > 0) & (classes < 4)
    points = points[is_letter_or_digit]
    hashes = hash_windows(points, SHINGLE_SIZE)
    hashes32 = (hashes >> np.uint64(32)).astype(np.uint32)
    return hashes32 if len(hashes32) <= MAX_SHINGLES else _smallest_distinct(hashes32)


def hash_windows(points: np.ndarray, size: int) -> np.ndarray:
    """Return a hash of every `size` consecutive code points, uint64[n]; n is 0 for fewer."""
    points = points.astype(np.uint64)
    hashes = np.zeros(max(len(points) - size + 1, 0), dtype=np.uint64)
    # All windows at once: hash = (hash + code point) * multiplier, modulo 2^64, for each of their
    # characters.
    for position in range(size):
        hashes += points[position : position + len(hashes)]
        hashes *= _HASH_MULTIPLIER
    # The low bits of a product depend on the low bits of its factors only. So mix the high
    # bits into the low ones, and multiply once more (as at the end of MurmurHash3).
    hashes ^= hashes >> np.uint64(29)
    hashes *= _HASH_MULTIPLIER
    return hashes


def _smallest_distinct(hashes: np.ndarray) -> np.ndarray:
    """Return the `MAX_SHINGLES` smallest distinct hashes, or all if there are fewer, sorted."""
    # Sorting all hashes of a long text would take longer: sort the smallest 4,096, and more only if
    # too many of them are equal.
    num_candidates = 4 * MAX_SHINGLES
    while True:
        takes_all = num_candidates >= len(hashes)
        candidates = np.sort(
            hashes if takes_all else np.partition(hashes, num_candidates)[:num_candidates]
        )
        # Faster by a factor of forty than np.unique, which does the same.
        is_first = np.concatenate([[True], candidates[1:] != candidates[:-1]])
        candidates = candidates[is_first]
        if takes_all or len(candidates) >= MAX_SHINGLES:
            return candidates[:MAX_SHINGLES]
        num_candidates *= 4


def minhash_signature(text: str, permutation_parameters: np.ndarray) -> np.ndarray:
    """Return the MinHash signature of a text, uint32[NUM_PERMUTATIONS].

    Permutation i maps a shingle's hash h to a[i] * h + b[i] modulo 2^32, and entry i of the
    signature is the minimum over all shingles. `permutation_parameters`, uint32[2,
    NUM_PERMUTATIONS], are the rows a and b of `minhash_permutations`. The signature of a text
    without shingles is `EMPTY_HASH` throughout.
    """
    a = permutation_parameters[0][:, None]
    b = permutation_parameters[1][:, None]
    hashes = hash_shingles(text)
    scratch = _scratch_buffer()
    signature = np.full(NUM_PERMUTATIONS, EMPTY_HASH)
    # Several times faster than `MinHash.update_batch` of datasketch, which allocates lists of the
    # hashes and one array of all permutations of all of them.
    for start in range(0, len(hashes), _HASH_BLOCK_SIZE):
        block = hashes[None, start : start + _HASH_BLOCK_SIZE]
        # [NUM_PERMUTATIONS, block size]; all arrays are uint32, so that products wrap around.
        permuted = np.multiply(block, a, out=scratch[:, : block.shape[1]])
        permuted += b
        np.minimum(signature, permuted.min(axis=1), out=signature)
    return signature


@functools.cache
def _scratch_buffer() -> np.ndarray:
    """Return a buffer for the permuted hashes of one block, allocated once in a process."""
    return np.empty((NUM_PERMUTATIONS, _HASH_BLOCK_SIZE), dtype=np.uint32)


class Deduplicator:
    """Collect digests and signatures in files of `folder`, then find the duplicates among them.

    A document takes 16 bytes on disk, with near duplicates another 512 and 8 for every band, and
    none in memory. Bands are sorted in partitions of about two million documents.
    """

    def __init__(self, folder: Path, options: DedupOptions) -> None:
        """Create `folder`, which must not exist, and open its files for writing.

        The files are `digests` and, to find near duplicates, `signatures` and `band0`, `band1`, …
        """
        folder.mkdir(parents=True)
        self._folder = folder
        self._options = options
        self._num_documents = 0
        self._num_bands = self._rows_per_band = 0
        file_names = ["digests"]
        if options.near:
            self._num_bands, self._rows_per_band = choose_lsh_bands(options.threshold)
            file_names += ["signatures", *(f"band{band}" for band in range(self._num_bands))]
        self._files = {name: (folder / name).open("wb") for name in file_names}

    def add(self, digests: np.ndarray, signatures: np.ndarray | None) -> None:
        """Append documents: digests uint64[n, 2], signatures uint32[n, NUM_PERMUTATIONS] or None.

        Signatures are required if the options look for near duplicates.
        """
        digests.tofile(self._files["digests"])
        self._num_documents += len(digests)
        if signatures is None:
            return
        signatures.tofile(self._files["signatures"])
        # A text without shingles is not similar to any other: its digest, which only a copy shares,
        # is its key in all bands.
        is_empty = signatures[:, 0] == EMPTY_HASH
        for band in range(self._num_bands):
            # The key of a document in a band is a hash of the band's rows of its signature.
            keys = np.full(len(signatures), band, dtype=np.uint64)
            for column in range(band * self._rows_per_band, (band + 1) * self._rows_per_band):
                keys = (keys ^ signatures[:, column]) * _HASH_MULTIPLIER
                keys ^= keys >> np.uint64(32)
            np.where(is_empty, digests[:, 0], keys).tofile(self._files[f"band{band}"])

    def find_duplicates(self) -> np.ndarray:
        """Return a label for every document, uint8[n], memory-mapped.

        A document is an EXACT_DUPLICATE if it equals an earlier document, a NEAR_DUPLICATE if it is
        similar to an earlier leader of one of its buckets (`_iter_similar`), and else UNIQUE. So a
        document that is similar only to duplicates of an earlier one can be UNIQUE. No document can
        be added afterwards.
        """
        for file in self._files.values():
            file.close()
        path = self._folder / "verdict.npy"
        # Written before it is mapped: on a full disk, writing to the map of a sparse file kills the
        # process.
        np.save(path, np.zeros(self._num_documents, np.uint8), allow_pickle=False)
        labels = np.load(path, mmap_mode="r+", allow_pickle=False)
        if self._num_documents and self._options.near:
            for band in range(self._num_bands):
                self._mark_near_duplicates(f"band{band}", labels)
        # Exact duplicates last: their label overwrites NEAR_DUPLICATE, which an exact copy has too.
        if self._num_documents and self._options.exact:
            self._mark_exact_duplicates(labels)
        return labels

    def _mark_near_duplicates(self, file_name: str, labels: np.ndarray) -> None:
        """Label the documents that are similar to a leader of their bucket in one band.

        `file_name` is the file of the band's keys. `labels`, uint8[documents], is changed in place.
        """
        # Each round has the buckets of one partition.
        for buckets in self._iter_buckets(file_name, width=1):
            # Mapped again for every partition: all pages that were touched through a map count as
            # memory of the process as long as the map exists.
            signatures = np.memmap(self._folder / "signatures", dtype=np.uint32, mode="r").reshape(
                -1, NUM_PERMUTATIONS
            )
            for bucket in buckets:
                for duplicates in _iter_similar(bucket, signatures, self._options.threshold):
                    labels[duplicates] = NEAR_DUPLICATE

    def _mark_exact_duplicates(self, labels: np.ndarray) -> None:
        """Label the documents whose digest an earlier document has, in `labels`, in place."""
        # The buckets share the first half of their digests, so only the second is compared here.
        for buckets in self._iter_buckets("digests", width=2):
            # Mapped again for every partition, as in `_mark_near_duplicates`.
            digests = np.memmap(self._folder / "digests", dtype=np.uint64, mode="r").reshape(-1, 2)
            for bucket in buckets:
                _, first_indices = np.unique(digests[bucket, 1], return_index=True)
                labels[np.delete(bucket, first_indices)] = EXACT_DUPLICATE

    def _iter_buckets(self, file_name: str, width: int) -> Iterator[list[np.ndarray]]:
        """Yield the buckets of each partition: ascending numbers of documents with equal keys.

        The file has `width` numbers for each document, of which the first is its key. Keys are
        sorted a partition at a time, which bounds memory. Buckets of one document are left out.
        """
        num_partitions = -(-self._num_documents // _PARTITION_SIZE)
        for partition in range(num_partitions):
            keys, documents = self._read_partition(file_name, width, num_partitions, partition)
            # A stable sort keeps the documents of a bucket in ascending order.
            order = np.argsort(keys, kind="stable")
            keys, documents = keys[order], documents[order]
            # Where a bucket starts, and the end of the last one.
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
            shared = np.flatnonzero(np.diff(starts) > 1)
            yield [documents[starts[bucket] : starts[bucket + 1]] for bucket in shared]

    def _read_partition(
        self, file_name: str, width: int, num_partitions: int, partition: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys of one partition, uint64[n], and their documents' numbers, int64[n].

        A key belongs to partition `key % num_partitions`, so equal keys are in one partition.
        """
        keys, documents = [], []
        num_read = 0
        with (self._folder / file_name).open("rb") as file:
            while len(block := np.fromfile(file, dtype=np.uint64, count=width * (1 << 18))):
                block_keys = block[::width]
                members = np.flatnonzero(block_keys % num_partitions == partition)
                keys.append(block_keys[members])
                documents.append(members + num_read)
                num_read += len(block_keys)
        return np.concatenate(keys), np.concatenate(documents)


@functools.cache
def choose_lsh_bands(threshold: float) -> tuple[int, int]:
    """Return (number of bands, rows per band) as `datasketch` chooses them.

    Documents whose Jaccard similarity s reaches `threshold` should share a band. With b bands of r
    rows, a pair of similarity s does with probability 1 - (1 - s^r)^b. The choice minimizes the
    weighted sum of two integrals over s: of this probability below the threshold (false
    candidates), and of its complement above (missed pairs). A missed pair weighs 19 times as much
    as a false candidate, which costs only one comparison.
    """
    # Gauss-Legendre quadrature with n points is exact for polynomials of degree 2n - 1; these have
    # degree b * r <= NUM_PERMUTATIONS.
    points, weights = np.polynomial.legendre.leggauss(NUM_PERMUTATIONS // 2 + 1)
    below = threshold * (points + 1) / 2
    above = threshold + (1 - threshold) * (points + 1) / 2
    errors = {}
    for num_bands in range(1, NUM_PERMUTATIONS + 1):
        for num_rows in range(1, NUM_PERMUTATIONS // num_bands + 1):
            candidate_share = weights @ (1 - (1 - below**num_rows) ** num_bands) * threshold
            missed_share = weights @ (1 - above**num_rows) ** num_bands * (1 - threshold)
            errors[num_bands, num_rows] = 0.05 * candidate_share + 0.95 * missed_share
    return min(errors, key=errors.__getitem__)


def _iter_similar(
    bucket: np.ndarray, signatures: np.ndarray, threshold: float
) -> Iterator[np.ndarray]:
    """Yield, in groups, the documents of a bucket that are similar to an earlier leader of it.

    The first document is a leader: those similar to it are yielded, and the first of the others is
    the next leader. After `_MAX_LEADERS` of them the others count as unique, so that the time is
    linear in the size of the bucket.
    """
    remaining = bucket
    for _ in range(_MAX_LEADERS):
        if len(remaining) < 2:
            return
        leader_signature, remaining = signatures[remaining[0]], remaining[1:]
        # The share of equal entries estimates the Jaccard similarity. 4,096 signatures at a time
        # take 2 MB.
        is_similar = np.concatenate(
            [
                (signatures[remaining[start : start + 4096]] == leader_signature).mean(axis=1)
                >= threshold
                for start in range(0, len(remaining), 4096)
            ]
        )
        yield remaining[is_similar]
        remaining = remaining[~is_similar]
