"""Split a file that is one JSON list into the bytes of its elements, in flat memory.

Elements are yielded as written: no number passes through a float, and parsing is left to the
source, which runs in another process. A faulty element costs only itself: reading continues at the
next place that opens as the first element of the list did (`{"first key":`). A streaming parser
such as ijson stops at the first fault, and at the first byte that is not UTF-8; it also replaces
half surrogate pairs silently and uses memory without limit for nested brackets.
"""

import codecs
import json
import re
from collections.abc import Iterator

_SPACE = re.compile(r"[ \t\r\n]*")
_OPENING = re.compile(r'\{[ \t\r\n]*("(?:[^"\\\n]|\\.){0,200}")[ \t\r\n]*:')
# More than the longest opening: text that a search must see again, because an opening may continue
# in the next block.
_OPENING_OVERLAP = 1 << 10
# A decoder that lacks text reports an error within this many characters of the end, except in an
# open string.
_END_MARGIN = 16
# (state, next character) → next state. The state is what is expected next.
_TRANSITIONS = {
    ("list", "["): "first element",
    ("first element", "]"): "list",
    ("comma", "]"): "list",
    ("comma", ","): "element",
}
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str)


class JsonArrayReader:
    """Iterate over the elements of a JSON list, or of several concatenated ones.

    Yields (number, bytes, problem): the element's number, counted from 1, and its bytes or else a
    problem in its place. An element of more than `max_characters` characters is a problem.
    """

    def __init__(self, blocks: Iterator[bytes], max_characters: int) -> None:
        # surrogateescape carries bytes that are not UTF-8 through the text unchanged.
        self._blocks = codecs.iterdecode(blocks, "utf-8", "surrogateescape")
        self._max_characters = max_characters
        self._buffer = ""
        self._position = 0
        self._opening: re.Pattern[str] | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        number = 0
        state = "list"
        while character := self._peek_character():
            if (state, character) in _TRANSITIONS:
                state = _TRANSITIONS[state, character]
                self._position += 1
            elif state == "element" and character in ",]":
                yield number + 1, b"", "there is a comma and no element"
                # Between two commas an element is missing, which has a number; before the end of
                # the list none is.
                number += character == ","
                state = "comma"
            elif state in ("first element", "element") and character not in ",]":
                number += 1
                data, problem = self._read_element()
                state = "comma"
                if problem is not None:
                    problem += self._skip_to_element(1)
                    state = self._state_after_skip()
                yield number, data, problem
            else:
                problem = f"there is something else than the {state} that should be here"
                problem += self._skip_to_element(0)
                yield number + 1, b"", problem
                state = self._state_after_skip()
        if state != "list":
            yield number + 1, b"", "the file ends before the list does"

    def _peek_character(self) -> str:
        """Return the next character that is not white space; an empty string at the end."""
        while True:
            self._position = _SPACE.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer) or not self._fill_buffer():
                return self._buffer[self._position : self._position + 1]

    def _read_element(self) -> tuple[bytes, str | None]:
        """Read the element at the current position: return its bytes, or what is wrong with it."""
        while True:
            size = len(self._buffer) - self._position
            try:
                _, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                end = len(self._buffer)
                problem = f"not valid JSON: {error.msg}"
                is_string_open = error.msg.startswith("Unterminated string")
                needs_more = is_string_open or error.pos > end - _END_MARGIN
            except (RecursionError, ValueError) as error:
                end = len(self._buffer)
                problem = f"not valid JSON: {error}"
                needs_more = False
            else:
                problem = ""
                # A number this near the end of the buffer may continue.
                needs_more = end > len(self._buffer) - _END_MARGIN
            if needs_more and size > self._max_characters:
                return b"", f"this element is longer than {self._max_characters >> 20} MB"
            # The buffer doubles every time, so that an element of any size is decoded only a few
            # times.
            if needs_more and self._fill_buffer(min(size, self._max_characters + 1 - size)):
                continue
            if problem:
                return b"", problem
            self._remember_opening(self._position)
            text = self._buffer[self._position : end]
            self._position = end
            return text.encode("utf-8", "surrogateescape"), None

    def _fill_buffer(self, min_characters: int = 1) -> bool:
        """Drop the text before the position, append more; return False at the end of the file."""
        blocks = []
        while min_characters > 0 and (block := next(self._blocks, "")):
            blocks.append(block)
            min_characters -= len(block)
        if blocks:
            self._buffer = self._buffer[self._position :] + "".join(blocks)
            self._position = 0
        return bool(blocks)

    def _skip_to_element(self, min_characters: int) -> str:
        """Skip to where an element opens, or to the end; return a message with what was skipped."""
        self._remember_opening(self._position)
        opening = self._opening or _OPENING
        skipped = 0
        start = self._position + min_characters
        while (match := opening.search(self._buffer, start)) is None:
            start = max(start, len(self._buffer) - _OPENING_OVERLAP)
            skipped += start - self._position
            self._position = start
            if not self._fill_buffer():
                break
            start = 0
        end = match.start() if match else len(self._buffer)
        skipped += end - self._position
        self._position = end
        if match is None:
            return f"; the {skipped:,} characters from here to the end of the file are left out"
        return f"; {skipped:,} characters are left out here" if skipped else ""

    def _state_after_skip(self) -> str:
        return "element" if self._position < len(self._buffer) else "list"

    def _remember_opening(self, position: int) -> None:
        """Remember how the first object of the list opens."""
        if self._opening is None and (first := _OPENING.match(self._buffer, position)):
            self._opening = re.compile(r"\{[ \t\r\n]*" + re.escape(first[1]) + r"[ \t\r\n]*:")
