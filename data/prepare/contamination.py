"""Find texts that share a long passage with a test set: no model is tested on what it has learned.

A text is contaminated if it has `NGRAM_SIZE` consecutive units of a test text, whatever the case,
the width, the script (traditional or simplified), spaces and punctuation. A unit is a character, or
a word of Latin letters and digits. The hashes of all n-grams of the test texts are in one sorted
file, which the processes of a preparation map: eight bytes for each character of the test sets.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.prepare.dedup import hash_windows
from data.sources.wikipedia import simplified_converter

_UNIT = re.compile("[a-z0-9]+|[^\\W_]")
# Long enough that Chinese texts hardly share it by chance, apart from set phrases.
NGRAM_SIZE = 13
# Their hashes take half a gigabyte.
MAX_NGRAMS = 1 << 26


def hash_ngrams(text: str) -> np.ndarray:
    """Return the hashes of the n-grams of a text, uint64[n]; it may have none."""
    folded = unicodedata.normalize("NFKC", simplified_converter().convert(text)).lower()
    units = [
        ord(unit) if len(unit) == 1 else zlib.crc32(unit.encode()) + (1 << 32)
        for unit in _UNIT.findall(folded)
    ]
    return hash_windows(np.array(units, np.uint64), NGRAM_SIZE)


def write_ngrams(texts: Iterable[str], path: Path) -> None:
    """Write the hashes of all n-grams of the texts of test sets, sorted, without repetitions.

    Raises UserError if there are more than `MAX_NGRAMS`.
    """
    ngrams = np.zeros(0, np.uint64)
    pending: list[np.ndarray] = []
    num_pending = 0
    for text in texts:
        pending.append(hash_ngrams(text))
        num_pending += len(pending[-1])
        # A merge for every doubling.
        if num_pending > len(ngrams) + (1 << 20):
            ngrams = np.unique(np.concatenate([ngrams, *pending]))
            pending, num_pending = [], 0
            _check_number(ngrams)
    ngrams = np.unique(np.concatenate([ngrams, *pending]))
    _check_number(ngrams)
    np.save(path, ngrams, allow_pickle=False)


def _check_number(ngrams: np.ndarray) -> None:
    """Raise UserError if there are more than `MAX_NGRAMS`."""
    if len(ngrams) > MAX_NGRAMS:
        raise UserError(
            f"the test sets have more than {MAX_NGRAMS:,} different passages of {NGRAM_SIZE} "
            "characters, too many to look for: name fewer files"
        )


class HeldOutNgrams:
    """The n-grams of test sets, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Map a file that `write_ngrams` wrote."""
        self._ngrams = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._ngrams)

    def has_any(self, text: str) -> bool:
        """Return whether a text shares an n-gram with a test set."""
        hashes = hash_ngrams(text)
        if not len(self._ngrams) or not len(hashes):
            return False
        places = np.minimum(np.searchsorted(self._ngrams, hashes), len(self._ngrams) - 1)
        return bool((self._ngrams[places] == hashes).any())
