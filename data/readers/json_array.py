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
    problem in its place. A fault between two elements has the number of the next element, which
    is yielded with the same number; an element that is missing between two commas has a number of
    its own. An element of more than `max_characters` characters is a problem.
    """

    def __init__(self, blocks: Iterator[bytes], max_characters: int) -> None:
        """Read a file that is given as consecutive blocks of bytes."""
        # surrogateescape carries bytes that are not UTF-8 through the text unchanged.
        self._blocks = codecs.iterdecode(blocks, "utf-8", "surrogateescape")
        self._max_characters = max_characters
        # The text that is in memory, and the position in it up to which it has been read.
        self._buffer = ""
        self._position = 0
        # How the elements of this list open, known from the first object on.
        self._opening: re.Pattern[str] | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        """Yield (number, bytes, problem) for every element and for every fault between elements.

        See the class for the numbers.
        """
        number = 0
        # What must come next: a "list" (also after the end of one), its "first element", a "comma"
        # (or the end of the list) or an "element".
        state = "list"
        while character := self._peek_character():
            if (state, character) in _TRANSITIONS:
                state = _TRANSITIONS[state, character]
                self._position += 1
            elif state == "element" and character in ",]":
                yield number + 1, b"", "there is a comma and no element"
                if character == ",":
                    # An element that is missing between two commas has a number of its own.
                    number += 1
                # The character itself is read in the next turn, as what follows an element.
                state = "comma"
            elif state in ("first element", "element") and character not in ",]":
                number += 1
                data, problem = self._read_element()
                state = "comma"
                if problem is not None:
                    # At least one character is skipped, or the faulty element would be found again.
                    problem += self._skip_to_element(min_characters=1)
                    state = self._state_after_skip()
                yield number, data, problem
            else:
                expected = "an element" if state.endswith("element") else f"a {state}"
                problem = f"expected {expected}, not {character!r}"
                # The unexpected character may open an element itself, after a missing comma.
                problem += self._skip_to_element(min_characters=0)
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
        """Read the element at the current position; return (bytes, None), or (b"", problem).

        After a problem the position is unchanged.
        """
        # Decode what the buffer holds; as long as the element may be cut off by the end of the
        # buffer, read more and decode again.
        while True:
            size = len(self._buffer) - self._position
            try:
                _, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                end = len(self._buffer)
                problem = f"not valid JSON: {error.msg}"
                # Text may be missing at the end of the buffer (see _END_MARGIN).
                is_string_open = error.msg.startswith("Unterminated string")
                needs_more = is_string_open or error.pos > end - _END_MARGIN
            except RecursionError:
                end = len(self._buffer)
                problem = "nested too deeply"
                # More text cannot change this.
                needs_more = False
            else:
                problem = ""
                # A number this near the end of the buffer may continue.
                needs_more = end > len(self._buffer) - _END_MARGIN
            if needs_more and size > self._max_characters:
                return b"", f"this element is longer than {self._max_characters:,} characters"
            # Doubling the text each time decodes a long element only a few times. One character
            # more than is allowed is enough to tell that an element is too long.
            if needs_more and self._fill_buffer(min(size, self._max_characters + 1 - size)):
                continue
            if problem:
                return b"", problem
            self._remember_opening(self._position)
            text = self._buffer[self._position : end]
            self._position = end
            # Restores the bytes that are not UTF-8 (see `__init__`).
            return text.encode("utf-8", "surrogateescape"), None

    def _fill_buffer(self, min_characters: int = 1) -> bool:
        """Drop the text before the position and append at least `min_characters` of the file.

        Return whether anything was appended, which is False only at the end of the file.
        """
        blocks = []
        while min_characters > 0 and (block := next(self._blocks, "")):
            blocks.append(block)
            min_characters -= len(block)
        if blocks:
            self._buffer = self._buffer[self._position :] + "".join(blocks)
            self._position = 0
        return bool(blocks)

    def _skip_to_element(self, min_characters: int) -> str:
        """Skip at least `min_characters`, to where an element opens or to the end of the file.

        Return the end of a message: how many characters are left out.
        """
        self._remember_opening(self._position)
        opening = self._opening or _OPENING
        skipped = 0
        search_start = self._position + min_characters
        while (match := opening.search(self._buffer, search_start)) is None:
            # Keep the last characters: an opening may begin in them and end in the next block.
            search_start = max(search_start, len(self._buffer) - _OPENING_OVERLAP)
            skipped += search_start - self._position
            self._position = search_start
            if not self._fill_buffer():
                break
            # Filling the buffer dropped the text before the position.
            search_start = 0
        skip_end = match.start() if match else len(self._buffer)
        skipped += skip_end - self._position
        self._position = skip_end
        if match is None:
            return f"; the {skipped:,} characters from here to the end of the file are left out"
        return f"; {skipped:,} characters are left out here" if skipped else ""

    def _state_after_skip(self) -> str:
        """Return what comes next after `_skip_to_element`: an element, or nothing at the end."""
        # At the end of the file "list" is the one state that does not report an unfinished list:
        # the message about the skipped text says so already.
        return "element" if self._position < len(self._buffer) else "list"

    def _remember_opening(self, position: int) -> None:
        """Remember how the first object of the list opens, if there is an object at `position`."""
        if self._opening is None and (first := _OPENING.match(self._buffer, position)):
            first_key = re.escape(first[1])
            self._opening = re.compile(r"\{[ \t\r\n]*" + first_key + r"[ \t\r\n]*:")
