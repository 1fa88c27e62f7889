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
_OVERLAP = 1 << 10
# A parser that is short of text stops within so many characters of its end, except in a string that is open.
_NEAR_END = 16
# What is expected, and the character that is read → what is expected after it.
_STEPS = {
    ("list", "["): "element or end", ("element or end", "]"): "list", ("comma", "]"): "list", ("comma", ","): "element",
}
_CUT = "the file ends before the list does"
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str)


class Elements:
    """The elements of a list (or of several, one after another) whose bytes come in `blocks`.

    Iterating gives (number, bytes, problem): the element's number in the list, counted from 1, and its bytes, or what is
    wrong in its place. An element of more than `limit` characters is wrong.
    """

    def __init__(self, blocks: Iterator[bytes], limit: int) -> None:
        # Bytes that are no UTF-8 are carried through the text unchanged.
        self._blocks = codecs.iterdecode(blocks, "utf-8", "surrogateescape")
        self._limit = limit
        self._text, self._at = "", 0
        self._opening: re.Pattern[str] | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        number, expected = 0, "list"
        while mark := self._mark():
            if (expected, mark) in _STEPS:
                expected = _STEPS[expected, mark]
                self._at += 1
            elif expected == "element" and mark in ",]":
                yield number + 1, b"", "there is a comma and no element"
                number, expected = number + (mark == ","), "comma"
            elif expected.startswith("element") and mark not in ",]":
                number += 1
                data, problem = self._element()
                expected = "comma"
                if problem is not None:
                    problem += self._skip(1)
                    expected = "element" if self._at < len(self._text) else "list"
                yield number, data, problem
            else:
                yield number + 1, b"", f"where the {expected} should be there is something else" + self._skip(0)
                expected = "element" if self._at < len(self._text) else "list"
        if expected != "list":
            yield number + 1, b"", _CUT

    def _mark(self) -> str:
        """The next character that is not space; none at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._read():
                return self._text[self._at:self._at + 1]

    def _element(self) -> tuple[bytes, str | None]:
        """The bytes of the element that begins here, which is passed; or what is wrong with it."""
        while True:
            size = len(self._text) - self._at
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                short = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _NEAR_END
                problem, end = f"not valid JSON: {error.msg}", len(self._text)
            except (RecursionError, ValueError) as error:
                short, problem, end = False, f"not valid JSON: {error}", len(self._text)
            else:
                # A number this near the end may go on.
                short, problem = end > len(self._text) - _NEAR_END, ""
            if short and size > self._limit:
                return b"", f"this element is longer than {self._limit >> 20} MB"
            # Twice as much each time: an element of any size is parsed a few times at most.
            if short and self._read(min(size, self._limit + 1 - size)):
                continue
            if problem:
                return b"", problem
            self._learn(self._at)
            text, self._at = self._text[self._at:end], end
            return text.encode("utf-8", "surrogateescape"), None

    def _read(self, least: int = 1) -> bool:
        """Take in more text, at least so many characters if there are, dropping what was passed; False at the end."""
        blocks = []
        while least > 0 and (block := next(self._blocks, "")):
            blocks.append(block)
            least -= len(block)
        if blocks:
            self._text, self._at = self._text[self._at:] + "".join(blocks), 0
        return bool(blocks)

    def _skip(self, least: int) -> str:
        """Pass on by at least so many characters to where an element opens, or to the end; says how much was left out."""
        self._learn(self._at)
        opening, skipped, start = self._opening or _OPENING, 0, self._at + least
        while (found := opening.search(self._text, start)) is None:
            start = max(start, len(self._text) - _OVERLAP)
            skipped += start - self._at
            self._at = start
            if not self._read():
                break
            start = 0
        end = found.start() if found else len(self._text)
        skipped, self._at = skipped + end - self._at, end
        if found is None:
            return f"; the {skipped:,} characters from here to the end of the file are left out"
        return f"; {skipped:,} characters are left out here" if skipped else ""

    def _learn(self, at: int) -> None:
        """Remember how the list's first object opens."""
        if self._opening is None and (first := _OPENING.match(self._text, at)):
            self._opening = re.compile(r"\{[ \t\r\n]*" + re.escape(first[1]) + r"[ \t\r\n]*:")
