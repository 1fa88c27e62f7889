"""Split a JSON list, or JSON objects over several lines, into elements, in flat memory.

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
from typing import Literal

# What the text is: a list; an object of which one key has the list, and which begins there; or
# values one after the other, as jq prints them.
JsonLayout = Literal["list", "list in object", "values"]

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
# Names under which an object has the list of all records: of Hugging Face, SQuAD,
# database tools (Navicat's RECORDS) and web services. No source has a list of objects under them.
_LIST_KEY = re.compile(
    "data|dataset|rows|records|examples|samples|items|instances|entries|results|list"
    "|train|validation|valid|dev|test",
    re.IGNORECASE,
)
_LIST_START = re.compile(r"\[[ \t\r\n]*\{")


class JsonArrayReader:
    """Iterate over the elements of a JSON list, of several concatenated ones, or of none.

    Yields (number, bytes, problem): the element's number, counted from 1, and its bytes or else a
    problem in its place. A fault between two elements has the number of the next element, which
    is yielded with the same number; an element that is missing between two commas has a number of
    its own. An element of more than `max_characters` characters is a problem.
    """

    def __init__(
        self, blocks: Iterator[bytes], max_characters: int, layout: JsonLayout = "list"
    ) -> None:
        """Read a file that is given as consecutive blocks of bytes.

        With the layout "list in object" the first block begins with the list; the keys after it
        are left out, and are a problem if one of them has another list of objects.
        """
        # surrogateescape carries bytes that are not UTF-8 through the text unchanged.
        self._blocks = codecs.iterdecode(blocks, "utf-8", "surrogateescape")
        self._max_characters = max_characters
        self._layout = layout
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
        # (or the end of the list) or an "element"; without a list, a "value" or the end.
        outer_state = state = "value" if self._layout == "values" else "list"
        is_object_open = self._layout == "list in object"
        while character := self._peek_character():
            if (state, character) in _TRANSITIONS:
                state = _TRANSITIONS[state, character]
                self._position += 1
            elif state == "list" and is_object_open and character in ",}":
                is_object_open = False
                if object_problem := self._skip_rest_of_object():
                    yield number + 1, b"", object_problem
            elif state == "element" and character in ",]":
                yield number + 1, b"", "there is a comma and no element"
                if character == ",":
                    # An element that is missing between two commas has a number of its own.
                    number += 1
                # The character itself is read in the next turn, as what follows an element.
                state = "comma"
            elif state in ("first element", "element", "value") and character not in ",]":
                number += 1
                data, problem = self._read_element()
                state = "value" if outer_state == "value" else "comma"
                if problem is not None:
                    # At least one character is skipped, or the faulty element would be found again.
                    problem += self._skip_to_element(min_characters=1)
                    state = self._state_after_skip(outer_state)
                yield number, data, problem
            else:
                expected = "an element" if state.endswith("element") else f"a {state}"
                problem = f"expected {expected}, not {character!r}"
                # The unexpected character may open an element itself, after a missing comma.
                problem += self._skip_to_element(min_characters=0)
                yield number + 1, b"", problem
                state = self._state_after_skip(outer_state)
        if state != outer_state or is_object_open:
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
                problem = f"not valid JSON: {error.msg}{_describe_fault(self._buffer, error.pos)}"
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

    def _state_after_skip(self, outer_state: str) -> str:
        """Return what comes next after `_skip_to_element`: an element, or nothing at the end."""
        # At the end of the file the outer state is the one that does not report an unfinished list:
        # the message about the skipped text says so already.
        is_in_list = outer_state == "list" and self._position < len(self._buffer)
        return "element" if is_in_list else outer_state

    def _skip_rest_of_object(self) -> str:
        """Skip the keys after the list, up to the end of the object around it.

        Return a problem if that is not what comes, or if a key has another list of objects, or "".
        """
        problem = ""
        while self._peek_character() == ",":
            self._position += 1
            self._peek_character()
            key, key_problem = self._read_element()
            is_pair = not key_problem and key.startswith(b'"') and self._peek_character() == ":"
            if is_pair:
                self._position += 1
                first_character = self._peek_character()
                value, value_problem = self._read_element()
            if not is_pair or value_problem:
                return "the object around the list is damaged" + self._skip_to_element(0)
            if first_character == "[" and value[1:].lstrip().startswith(b"{"):
                name = key.decode("utf-8", "replace")
                problem = f"the list {name} is left out: give each list a file of its own"
        if self._peek_character() != "}":
            return problem or "the file ends before the object around the list does"
        self._position += 1
        return problem

    def _remember_opening(self, position: int) -> None:
        """Remember how the first object of the list opens, if there is an object at `position`."""
        if self._opening is None and (first := _OPENING.match(self._buffer, position)):
            first_key = re.escape(first[1])
            self._opening = re.compile(r"\{[ \t\r\n]*" + first_key + r"[ \t\r\n]*:")


def _describe_fault(text: str, position: int) -> str:
    """Return the end of a message that says what is at a place where JSON is faulty, or ""."""
    fault = text[position : position + 1]
    if fault == "'":
        return "; this is Python's notation: write it with json.dumps"
    if fault and fault in "}]" and text[:position].rstrip().endswith(","):
        return f"; there is a comma before {fault}: remove it"
    return ""


def find_layout(head: bytes) -> tuple[JsonLayout, int] | None:
    """Return how a file that begins with these bytes is JSON over several lines, or None.

    The number is that of the bytes before a list. None stands for JSON lines, and for other text.
    """
    text = head.decode("utf-8", "surrogateescape")
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        return None if _has_lines_of_objects(text) else ("list", 0)
    if text[start : start + 1] != "{":
        # One bad line, such as a message of a program, may come before JSON over several lines.
        rest = text.partition("\n")[2] if text[start : start + 1] else ""
        if _LIST_START.match(rest):
            return None if _has_lines_of_objects(rest) else ("list", 0)
        return ("values", 0) if _is_over_several_lines(rest) else None
    list_start = _find_list_in_object(text, start)
    if list_start is not None:
        return "list in object", len(text[:list_start].encode("utf-8", "surrogateescape"))
    return ("values", 0) if _is_over_several_lines(text) else None


def _is_over_several_lines(text: str) -> bool:
    """Return whether a text begins with an object that goes on from its first line into the second.

    A first line that is damaged does not: its fault is at its end, where the second begins, or
    before. One that ends with a colon takes the second for a value, and lines of objects follow.
    """
    start = _skip_space(text, 0)
    first_line_end = text.find("\n", start)
    if text[start : start + 1] != "{" or first_line_end < 0:
        return False
    try:
        _, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return error.pos > _skip_space(text, first_line_end) and not _has_lines_of_objects(text)
    except RecursionError:
        return False
    return end > _skip_space(text, first_line_end)


def _has_lines_of_objects(text: str) -> bool:
    """Return whether two lines in a row are a whole object each, as they are not in a list."""
    was_object = False
    for line in text.split("\n"):
        if not line.strip():
            continue
        is_object = line.lstrip().startswith("{") and line.rstrip().endswith("}")
        if is_object:
            try:
                _DECODER.decode(line.strip())
            except (json.JSONDecodeError, RecursionError):
                is_object = False
        if is_object and was_object:
            return True
        was_object = is_object
    return False


def _find_list_in_object(text: str, start: int) -> int | None:
    """Return where the list of records begins in an object that has one under a usual name.

    The object begins at `start`. The result is None if there is no such list, or if another object
    follows, so that objects are records themselves.
    """
    if _is_before_object(text, start):
        return None
    position = start + 1
    while True:
        position = _skip_space(text, position)
        try:
            key, position = _DECODER.raw_decode(text, position)
            position = _skip_space(text, position)
            if not isinstance(key, str) or text[position : position + 1] != ":":
                return None
            position = _skip_space(text, position + 1)
            if _LIST_KEY.fullmatch(key) and _LIST_START.match(text, position):
                return None if _has_lines_of_objects(text) else position
            _, position = _DECODER.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError):
            return None
        position = _skip_space(text, position)
        if text[position : position + 1] != ",":
            return None
        position += 1


def _is_before_object(text: str, start: int) -> bool:
    """Return whether the value that begins at `start` is whole and an object comes after it."""
    try:
        _, end = _DECODER.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return False
    end = _skip_space(text, end)
    return text[end : end + 1] == "{"


def _skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is not white space."""
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]
