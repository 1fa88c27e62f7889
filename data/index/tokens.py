"""Tokens of texts as numbers: Chinese characters and pairs of them, other words as wholes.

No dictionary of words is needed: two characters side by side are about as specific as a word, and
one finds what is cut otherwise. A token is a number below 2 ** 48:

    a Chinese character     its code point
    two side by side        both code points, 21 bits each
    a word or a number      47 bits of its hash, and bit 47

Case, width and traditional characters do not matter.
"""

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from data.prepare.clean import character_classes
from data.sources.wikipedia import simplified_converter

# Returns the tokens of several texts, uint64[n], each below 2 ** TOKEN_BITS, and the number of the
# text that each is in, int64[n]; in any order.
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

TOKEN_BITS = 48
_CODE_POINT_BITS = 21
_CHINESE, _LETTER, _DIGIT = 1, 2, 3  # of `character_classes`
# Above these code points there are neither letters with a case nor full-width forms.
_FOLD_STOP = 0x20000


def character_tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return Chinese characters, pairs of them and other words of texts; see `Tokenize`."""
    # The line ends between texts are in no word or pair.
    points = _fold_points("\n".join(texts))
    owners = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])[: len(points)]
    classes = character_classes()[points]
    is_chinese = classes == _CHINESE
    is_pair = is_chinese[:-1] & is_chinese[1:]
    is_word = (classes == _LETTER) | (classes == _DIGIT)
    # Where a word begins or ends.
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False)).reshape(-1, 2)
    encoded = points.tobytes()
    words = [hash_token(encoded[4 * start : 4 * stop]) for start, stop in edges.tolist()]
    wide = points.astype(np.uint64)
    pairs = (wide[:-1][is_pair] << np.uint64(_CODE_POINT_BITS)) | wide[1:][is_pair]
    tokens = np.concatenate([wide[is_chinese], pairs, np.array(words, dtype=np.uint64)])
    numbers = [owners[is_chinese], owners[:-1][is_pair], owners[edges[:, 0]]]
    return tokens, np.concatenate(numbers)


@functools.lru_cache(maxsize=1 << 16)
def hash_token(word: bytes) -> int:
    """Return the token of a word in any encoding.

    Of a million words, two have the same token with a probability below 1 %; they then count as
    one word.
    """
    digest = hashlib.blake2b(word, digest_size=8).digest()
    flag = 1 << (TOKEN_BITS - 1)
    return int.from_bytes(digest, "little") % flag | flag


def fold_text(text: str) -> str:
    """Return a text of the same length in lower case and simplified characters of usual width."""
    return _fold_points(text).tobytes().decode("utf-32-le", "surrogatepass")


def _fold_points(text: str) -> np.ndarray:
    """Return the code points of `fold_text`, little-endian uint32[len(text)]."""
    # A query may have lone surrogates: bytes on a command line that are not UTF-8.
    return _fold_table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")]


@functools.cache
def _fold_table() -> np.ndarray:
    """Return the folded code point of every code point, uint32[0x110000].

    Characters are folded one by one, so that a character of a query is folded as in any passage;
    OpenCC would look at the characters beside it.
    """
    table = np.arange(0x110000, dtype="<u4")
    simplified_points = table.copy()
    for code in range(_FOLD_STOP):
        folded = unicodedata.normalize("NFKC", chr(code)).lower()
        if len(folded) == 1:
            table[code] = ord(folded)
    chinese = np.flatnonzero(character_classes() == _CHINESE).tolist()
    # A line a character, so that OpenCC sees no phrases. It may simplify one to several.
    simplified = simplified_converter().convert("\n".join(map(chr, chinese))).split("\n")
    for code, character in zip(chinese, simplified, strict=True):
        if len(character) == 1:
            simplified_points[code] = ord(character)
    return simplified_points[table]
