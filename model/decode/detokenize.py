"""Streaming detokenization: ids in, text out, only whole characters."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from model.tokenizer.base import Tokenizer


class StreamingDetokenizer:
    """Turn the ids of one answer into text, id by id.

    The returned strings together are `tokenizer.decode(ids)`, cut before the first occurrence of a
    stop string. Bytes of an unfinished character, and text that may be the beginning of a stop
    string, are held back until later ids decide.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        self._utf8_decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_prefix_space = tokenizer.adds_prefix_space
        self._pending_text = ""
        self.has_stopped = False
        """True once the text contained a stop string; no more ids may be added after that."""

    def add_token(self, token_id: int) -> str:
        """Return the text that can be shown after this id; often an empty string."""
        self._append(self._utf8_decoder.decode(self._tokenizer.decode_bytes([token_id])))
        return self._release_text(is_final=False)

    def flush(self) -> str:
        """Return the text that was held back; call it after the last id."""
        self._append(self._utf8_decoder.decode(b"", final=True))
        return self._release_text(is_final=True)

    def _append(self, text: str) -> None:
        """Add text to the pending text, without the prefix space of the tokenizer."""
        # The space that a tokenizer adds before the first word is removed before stop strings are
        # searched, so that a stop string cannot match a space that nobody sees.
        if text and self._strip_prefix_space:
            text = text.removeprefix(" ")
            self._strip_prefix_space = False
        self._pending_text += text

    def _release_text(self, *, is_final: bool) -> str:
        """Return the pending text up to a stop string; hold back what may begin one.

        If the text `is_final`, nothing is held back.
        """
        starts = [self._pending_text.find(stop) for stop in self._stop_strings]
        first_start = min((start for start in starts if start >= 0), default=-1)
        if first_start >= 0:
            self.has_stopped = True
            released, self._pending_text = self._pending_text[:first_start], ""
            return released
        num_held_back = 0
        if not is_final:
            for stop in self._stop_strings:
                num_held_back = max(num_held_back, _partial_match_length(self._pending_text, stop))
        split = len(self._pending_text) - num_held_back
        released, self._pending_text = self._pending_text[:split], self._pending_text[split:]
        return released


def _partial_match_length(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    lengths = range(longest, 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yield text as `ids` arrive; the strings together are `tokenizer.decode(ids)`."""
    detokenizer = StreamingDetokenizer(tokenizer)
    for token_id in ids:
        if text := detokenizer.add_token(token_id):
            yield text
    if text := detokenizer.flush():
        yield text
