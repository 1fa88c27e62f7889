"""Which parts of a text are copied from a passage.

Texts are compared word by word, where a Chinese character is a word, and so is a run of other
letters and digits: 1998 is not in 19980, nor 35 in 3.5. White space and punctuation are skipped;
case, width and traditional characters do not matter.

A part of fewer than MIN_COPIED characters may stand in any passage by chance. Of sentences drawn
from 400 paragraphs of DRCD (half of the dev set), all is copied from their own paragraph, by any
minimum. Of the mean one, this share is copied from another paragraph:

    at least        2      3      4      5      6 characters
    of any article  4.3 %  0.5 %  0.2 %  0.1 %  0.0 %
    of the same    19.3 %  8.4 %  4.2 %  2.1 %  0.5 %
"""

import re

import numpy as np

from data.index.tokens import fold_text
from data.prepare.clean import character_classes

# Characters without white space and punctuation.
MIN_COPIED = 4
# A Chinese character, or a run of other letters and digits, in bytes of `character_classes`.
_WORD = re.compile(b"\x01|[\x02\x03]+")
# No word of the passage has this number.
_UNKNOWN = 0


def find_copied_parts(text: str, passage: str) -> list[tuple[int, int]]:
    """Return the spans [start, stop) of `text` that are copied from `passage`, in order.

    They are the extractive fragments of Grusky et al. (2018, arXiv:1804.11283, "Newsroom"), of at
    least MIN_COPIED characters: from left to right the longest part that is in the passage, and on
    from its end. A shorter text is copied as a whole or not at all. No two spans overlap.
    """
    spans = _find_words(text)
    copied = _find_copied_words(text, spans, passage, _minimum(spans))
    return _join_words(spans, copied)


def find_origins(text: str, passage: str) -> list[tuple[int, int]]:
    """Return the spans [start, stop) of `passage` that are copied in `text`, in order.

    Each has at least MIN_COPIED characters or, of a shorter text, all that it has.
    """
    text_spans = _find_words(text)
    if not text_spans:
        return []
    spans = _find_words(passage)
    return _join_words(spans, _find_copied_words(passage, spans, text, _minimum(text_spans)))


def copied_share(text: str, passage: str) -> float | None:
    """Return the share of the characters of `text` that lie in the parts copied from `passage`.

    White space and punctuation do not count; None for a text that has nothing else.
    """
    spans = _find_words(text)
    if not spans:
        return None
    copied = _find_copied_words(text, spans, passage, _minimum(spans))
    num_copied = sum(_count_characters(spans[first:last]) for first, last in copied)
    return num_copied / _count_characters(spans)


def _find_copied_words(
    text: str, spans: list[tuple[int, int]], passage: str, min_characters: int
) -> list[tuple[int, int]]:
    """Return the copied parts of at least so many characters as ranges of words.

    `spans` are those of the words of `text`.
    """
    passage_words = _cut(passage, _find_words(passage))
    # Each word as one character, so that str.find compares whole words.
    symbols = {word: chr(number) for number, word in enumerate(set(passage_words), _UNKNOWN + 1)}
    target = "".join(symbols[word] for word in passage_words)
    words = "".join(symbols.get(word, chr(_UNKNOWN)) for word in _cut(text, spans))
    parts = []
    start = 0
    while start < len(words):
        stop, place = start, 0
        # A longer part begins where the shorter one does, or later.
        while stop < len(words) and (place := target.find(words[start : stop + 1], place)) >= 0:
            stop += 1
        if _count_characters(spans[start:stop]) >= min_characters:
            parts.append((start, stop))
            start = stop
        else:
            start += 1
    return parts


def _find_words(text: str) -> list[tuple[int, int]]:
    """Return the spans of the words of a text."""
    # A text may have lone surrogates.
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return [match.span() for match in _WORD.finditer(character_classes()[points].tobytes())]


def _cut(text: str, spans: list[tuple[int, int]]) -> list[str]:
    folded = fold_text(text)
    return [folded[start:stop] for start, stop in spans]


def _join_words(
    spans: list[tuple[int, int]], ranges: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the spans of ranges of words, of which `spans` are those of the words."""
    return [(spans[first][0], spans[last - 1][1]) for first, last in ranges]


def _minimum(spans: list[tuple[int, int]]) -> int:
    """Return how many characters a part of a text with these words has at least."""
    return min(MIN_COPIED, _count_characters(spans))


def _count_characters(spans: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in spans)
