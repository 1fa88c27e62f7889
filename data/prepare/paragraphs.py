"""Divide the ids of a document at a paragraph, so that only its end is held out."""

import numpy as np

from model.tokenizer.base import Tokenizer

_SENTENCE_ENDS = tuple(mark.encode() for mark in "。！？…!?")
# An end of fewer tokens is not worth dividing a line for.
MIN_SENTENCE_TOKENS = 64
# What belongs to the sentence before it.
_CLOSING_MARKS = tuple(mark.encode() for mark in '”’」』）》】")')


class ParagraphDivider:
    """Divides documents by their ids alone: units of preparation do not store the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look up, for each id, whether its text ends a line, a blank line or a sentence."""
        texts = [tokenizer.decode_bytes([index]) for index in range(tokenizer.vocab_size)]
        self._texts = texts
        self._is_line_end = np.array([bool(text) and not text.strip(b"\n") for text in texts])
        self._ends_line = np.array([text.endswith(b"\n") for text in texts])
        self._ends_blank_line = np.array([text.endswith(b"\n\n") for text in texts])
        self._ends_sentence = np.array([text.endswith(_SENTENCE_ENDS) for text in texts])

    def divide(self, ids: np.ndarray, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the beginning of a document, and its end of at most `max_tokens` tokens.

        `ids`, int[n], are `<bos> text <eos>`, and so are both parts. One of them is empty, without
        `<bos>` and `<eos>`, if the whole document or no part of it is such an end. Line ends
        between the two are left out, as they are around every document.
        """
        if len(ids) <= max_tokens:
            return ids[:0], ids
        start = self._find_end(ids, max_tokens)
        if start is None:
            return ids, ids[:0]
        stop = start
        while self._is_line_end[ids[stop - 1]]:
            stop -= 1
        return np.append(ids[:stop], ids[-1:]), np.append(ids[:1], ids[start:])

    def count_smallest_end(self, ids: np.ndarray) -> int:
        """Return the tokens of the last line as its own document, n if it is the only line."""
        line_starts = self._find_lines(ids)
        return len(ids) + 1 - int(line_starts[-1]) if len(line_starts) else len(ids)

    def _find_end(self, ids: np.ndarray, max_tokens: int) -> int | None:
        """Return where the end of at most `max_tokens` tokens begins, None if nothing fits.

        It begins after a blank line; if that fills less than half of `max_tokens`, after any line;
        if that fills less than half, too, after a sentence.
        """
        line_starts = self._find_lines(ids)
        is_after_blank_line = self._ends_blank_line[ids[line_starts - 1]] | (
            self._is_line_end[ids[line_starts - 1]] & self._ends_line[ids[line_starts - 2]]
        )
        # The end has a <bos> of its own.
        first_start = len(ids) + 1 - max_tokens
        last_start = len(ids) + 1 - max_tokens / 2
        levels = [line_starts[is_after_blank_line], line_starts]
        if max_tokens >= MIN_SENTENCE_TOKENS:
            levels.append(self._find_sentences(ids))
        for starts in levels:
            fitting = starts[(starts >= first_start) & (starts <= last_start)]
            if len(fitting):
                return int(fitting[0])
        # No sentence fills half, either: a line is better than nothing.
        fitting = line_starts[line_starts >= first_start]
        return int(fitting[0]) if len(fitting) else None

    def _find_lines(self, ids: np.ndarray) -> np.ndarray:
        """Return where the lines begin that are not blank, except the first, int64[k]."""
        # `ids` without <bos> and <eos>: each id with the one after it.
        return np.flatnonzero(self._ends_line[ids[1:-2]] & ~self._is_line_end[ids[2:-1]]) + 2

    def _find_sentences(self, ids: np.ndarray) -> np.ndarray:
        """Return where the sentences begin that follow another one in their line, int64[k]."""
        starts = np.flatnonzero(self._ends_sentence[ids[1:-2]]) + 2
        # A mark without an id of its own is three of a byte each.
        texts = [b"".join([self._texts[i] for i in ids[start : start + 3]]) for start in starts]
        begins_sentence = [
            not text.startswith((b"\n", *_SENTENCE_ENDS, *_CLOSING_MARKS)) for text in texts
        ]
        return starts[np.array(begins_sentence, dtype=bool)]
