"""A file that is one JSON list → the bytes of its elements, one after another, in flat memory.

Elements are found by their brackets and strings alone and handed on as they are written: no number passes through a
float, and what an element means is for whoever parses it. A streaming parser stops at the first fault, and all that
follows is lost; here a faulty element costs itself, and reading goes on at the next place that opens as the list's
first element opened (`{"first key":`).
"""

import re
from collections.abc import Iterator

_STRING = rb'"[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*'
_SPACE = rb"[ \t\r\n]*"
_TOKEN = re.compile(
    _SPACE + rb"(?:(?P<open>[\[{])|(?P<close>[\]}])|(?P<comma>,)|(?P<colon>:)|(?P<value>" + _STRING + rb'"|[\w.+-]+))'
)
# What is no token yet and may become one with the bytes that follow.
_UNFINISHED = re.compile(_SPACE + rb"(?:" + _STRING + rb"\\?)?\Z")
_OPENING = re.compile(rb"\{" + _SPACE + rb'("[^"\\\x00-\x1f]*")' + _SPACE + rb":")
_CLOSER = {b"[": b"]", b"{": b"}"}
# More than any opening is long: what must be kept of a block in which none was found.
_OVERLAP = 1 << 10
_CUT = "the file ends before the list does"


class Elements:
    """The elements of a list (or of several, one after another) whose bytes come in `blocks`.

    Iterating gives (number, bytes, problem): the element's number in the list, counted from 1, and its bytes, or what is
    wrong in its place. An element of more than `limit` bytes is wrong.
    """

    def __init__(self, blocks: Iterator[bytes], limit: int) -> None:
        self._blocks, self._limit = blocks, limit
        # The text in memory, where the current element begins and how far it was read; where the text lies in the file.
        self._text, self._start, self._at, self._offset = b"", 0, 0, 0
        self._opening: re.Pattern[bytes] | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        number, expected = 0, "list"
        while True:
            self._start = self._at
            token = self._token()
            kind = token.lastgroup if token else None
            mark = token[0].strip() if token else b""
            if token is None and not self._text[self._at:].strip():
                if expected != "list":
                    yield number + 1, b"", _CUT
                return
            if expected == "list" and mark == b"[":
                expected = "element or end"
            elif expected in ("element or end", "comma") and mark == b"]":
                expected = "list"
            elif expected == "comma" and kind == "comma":
                expected = "element"
            elif expected == "element" and (mark == b"]" or kind == "comma"):
                number += kind == "comma"
                yield number + (kind != "comma"), b"", "there is a comma and no element"
                expected = "list" if mark == b"]" else "element"
            elif expected.startswith("element"):
                number += 1
                problem = self._element(token)
                if problem is None:
                    yield number, self._text[self._start:self._at].strip(), None
                else:
                    yield number, b"", problem + self._skip(self._start + 1)
                expected = "element or end" if problem else "comma"
            else:
                wrong = "there is more after the list's end" if expected == "list" else "there is no comma before this"
                yield number + 1, b"", wrong + self._skip(self._start)
                expected = "element or end"

    def _element(self, token: re.Match[bytes] | None) -> str | None:
        """Read on to the end of the element that begins with `token`; what is wrong with it, None if nothing is."""
        open_, before = bytearray(), ""
        start = self._text[self._start:self._start + _OVERLAP].strip()
        if self._opening is None and (first := _OPENING.match(start)):
            self._opening = re.compile(rb"\{" + _SPACE + re.escape(first[1]) + _SPACE + rb":")
        while token is not None:
            kind, mark = str(token.lastgroup), token[0][-1:]
            if kind == "open":
                if before != "colon" and open_.endswith(b"}"):
                    return "an object begins or ends in the wrong place in this element"
                open_ += _CLOSER[mark]
            elif kind == "close":
                if not open_.endswith(mark):
                    return "the brackets of this element do not match"
                open_.pop()
            elif not open_ and kind != "value":
                return "this is no JSON"
            if not open_:
                return None
            if self._at - self._start > self._limit:
                return f"this element is longer than {self._limit >> 20} MB"
            before, token = kind, self._token()
        return _CUT if _UNFINISHED.match(self._text, self._at) else "this element is no JSON"

    def _token(self) -> re.Match[bytes] | None:
        """The next token, which is passed; None where the text has ended or is no JSON."""
        while True:
            match = _TOKEN.match(self._text, self._at)
            whole = match is not None and match.end() < len(self._text)
            if whole or (match is None and not _UNFINISHED.match(self._text, self._at)) or not self._read():
                break
        if match is not None:
            self._at = match.end()
        return match

    def _read(self) -> bool:
        """Take in another block, dropping what lies before the current element; False at the end or past the limit."""
        if len(self._text) - self._start > self._limit:
            return False
        block = next(self._blocks, b"")
        self._offset += self._start
        self._text = self._text[self._start:] + block
        self._at -= self._start
        self._start = 0
        return bool(block)

    def _skip(self, at: int) -> str:
        """Go to the next opening of an element from `at` on, or to the end; says how much was left out."""
        opening = self._opening or _OPENING
        fault = self._offset + self._start
        while (found := opening.search(self._text, at)) is None:
            at = max(at, len(self._text) - _OVERLAP)
            self._start = self._at = at
            if not self._read():
                break
            at = 0
        self._at = found.start() if found else len(self._text)
        return f"; {self._offset + self._at - fault:,} bytes are left out here"
