"""A file that is one JSON list → the bytes of its elements, one after another, in flat memory.

The parser only finds where an element ends; its bytes are handed on as they are written, so that no number passes
through a float, and what they mean is for whoever parses them. A streaming parser would give up at the first fault and
lose all that follows; here a faulty element costs itself, and reading goes on at the next place that opens as the
list's first element did (`{"first key":`).
"""

import codecs
import json
import re
from collections.abc import Iterator

_SPACE = re.compile(r"[ \t\r\n]*")
_OPENING = re.compile(r'\{[ \t\r\n]*("(?:[^"\\\n]|\\.){0,200}")[ \t\r\n]*:')
# More than any opening is long: what must be kept of a text in which none was found.
_OPENING_OVERLAP = 1 << 10
# A parser that is short of text stops within so many characters of its end, except in a string that is open.
_END_MARGIN = 16
# What is expected, and the character that is read → what is expected after it.
_TRANSITIONS = {
    ("list", "["): "element or end",
    ("element or end", "]"): "list",
    ("comma", "]"): "list",
    ("comma", ","): "element",
}
_TRUNCATION_PROBLEM = "the file ends before the list does"
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str)


class JsonArrayReader:
    """The elements of a list (or of several, one after another) whose bytes come in `blocks`.

    Iterating gives (number, bytes, problem): the element's number in the list, counted from 1, and its bytes, or what is
    wrong in its place. An element of more than `limit` characters is wrong.
    """

    def __init__(self, blocks: Iterator[bytes], max_characters: int) -> None:
        # Bytes that are no UTF-8 are carried through the text unchanged.
        self._blocks = codecs.iterdecode(blocks, "utf-8", "surrogateescape")
        self._max_characters = max_characters
        self._buffer, self._position = "", 0
        self._opening: re.Pattern[str] | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        number, expected = 0, "list"
        while character := self._peek_character():
            if (expected, character) in _TRANSITIONS:
                expected = _TRANSITIONS[expected, character]
                self._position += 1
            elif expected == "element" and character in ",]":
                yield number + 1, b"", "there is a comma and no element"
                number, expected = number + (character == ","), "comma"
            elif expected.startswith("element") and character not in ",]":
                number += 1
                data, problem = self._read_element()
                expected = "comma"
                if problem is not None:
                    problem += self._skip_to_element(1)
                    expected = "element" if self._position < len(self._buffer) else "list"
                yield number, data, problem
            else:
                yield (
                    number + 1,
                    b"",
                    f"where the {expected} should be there is something else"
                    + self._skip_to_element(0),
                )
                expected = "element" if self._position < len(self._buffer) else "list"
        if expected != "list":
            yield number + 1, b"", _TRUNCATION_PROBLEM

    def _peek_character(self) -> str:
        """The next character that is not space; none at the end."""
        while True:
            self._position = _SPACE.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer) or not self._fill_buffer():
                return self._buffer[self._position : self._position + 1]

    def _read_element(self) -> tuple[bytes, str | None]:
        """The bytes of the element that begins here, which is passed; or what is wrong with it."""
        while True:
            size = len(self._buffer) - self._position
            try:
                _, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                needs_more = (
                    error.msg.startswith("Unterminated string")
                    or error.pos > len(self._buffer) - _END_MARGIN
                )
                problem, end = f"not valid JSON: {error.msg}", len(self._buffer)
            except (RecursionError, ValueError) as error:
                needs_more, problem, end = False, f"not valid JSON: {error}", len(self._buffer)
            else:
                # A number this near the end may go on.
                needs_more, problem = end > len(self._buffer) - _END_MARGIN, ""
            if needs_more and size > self._max_characters:
                return b"", f"this element is longer than {self._max_characters >> 20} MB"
            # Twice as much each time: an element of any size is parsed a few times at most.
            if needs_more and self._fill_buffer(min(size, self._max_characters + 1 - size)):
                continue
            if problem:
                return b"", problem
            self._remember_opening(self._position)
            text, self._position = self._buffer[self._position : end], end
            return text.encode("utf-8", "surrogateescape"), None

    def _fill_buffer(self, min_characters: int = 1) -> bool:
        """Take in more text, at least so many characters if there are, dropping what was passed; False at the end."""
        blocks = []
        while min_characters > 0 and (block := next(self._blocks, "")):
            blocks.append(block)
            min_characters -= len(block)
        if blocks:
            self._buffer, self._position = self._buffer[self._position :] + "".join(blocks), 0
        return bool(blocks)

    def _skip_to_element(self, min_characters: int) -> str:
        """Pass on by at least so many characters to where an element opens, or to the end; says how much was left out."""
        self._remember_opening(self._position)
        opening, skipped, start = self._opening or _OPENING, 0, self._position + min_characters
        while (match := opening.search(self._buffer, start)) is None:
            start = max(start, len(self._buffer) - _OPENING_OVERLAP)
            skipped += start - self._position
            self._position = start
            if not self._fill_buffer():
                break
            start = 0
        end = match.start() if match else len(self._buffer)
        skipped, self._position = skipped + end - self._position, end
        if match is None:
            return f"; the {skipped:,} characters from here to the end of the file are left out"
        return f"; {skipped:,} characters are left out here" if skipped else ""

    def _remember_opening(self, position: int) -> None:
        """Remember how the list's first object opens."""
        if self._opening is None and (first := _OPENING.match(self._buffer, position)):
            self._opening = re.compile(r"\{[ \t\r\n]*" + re.escape(first[1]) + r"[ \t\r\n]*:")
