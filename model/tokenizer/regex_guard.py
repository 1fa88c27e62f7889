"""Regular expressions in an imported tokenizer that could take for ever are refused.

The tokenizers library matches by trying (Oniguruma). Where a repeated part can itself match the same text in several ways,
as in `(a+)+$`, the ways to try double with each character; where several such parts follow one another, they grow with as
high a power of the length. The library gives up after ten million tries, which ends the process.

No text that is tried on import can show that none is slow, and a list of known expressions refuses the next good model. So
the expression itself is looked at: nothing that varies may be repeated, and only a few parts that vary may follow one
another. Expressions that are in use (GPT-2's, Llama 3's, GPT-4o's and their like) are far from both.
"""

import re
from collections.abc import Iterator
from typing import Any

# Parts of one alternative that can match more than one length: GPT-4o's words have as many.
_MAX_VARIABLE_PARTS = 4
_QUANTIFIER = re.compile(r"(?P<sign>[?*+])[?+]?|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\}\??")
_ESCAPE = re.compile(r"\\(?:[pPx]\{[^}]*\}|.)", re.DOTALL)
# Escapes that mean what a group matched, or the group itself once more; and two that match more than one length.
_BACKREFERENCE, _VARIABLE_ESCAPE = re.compile(r"\\[gk1-9]"), re.compile(r"\\[RX]")
# What takes the characters behind it for something else than they look: control characters, comments, free spacing.
_UNSUPPORTED_SYNTAX = re.compile(r"\\(?:c|C-|M-)|\(\?(?:#|[a-wyzA-Z-]*x)")


class SlowRegexError(Exception):
    """Why an expression is refused."""


def iter_regexes(node: Any) -> Iterator[str]:
    """The regular expressions in a part of a `tokenizer.json`."""
    if isinstance(node, dict):
        if isinstance(node.get("Regex"), str):
            yield node["Regex"]
        for inner in node.values():
            yield from iter_regexes(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from iter_regexes(inner)


def check_regex(pattern: str) -> None:
    """SlowPattern if a text could keep the expression busy for ever."""
    at = 0
    while at < len(pattern):
        at = (
            _parse_alternatives(pattern, at)[0] + 1
        )  # beyond a bracket that closes nothing: for the library to refuse


def _parse_alternatives(pattern: str, position: int) -> tuple[int, int, bool]:
    """Read to the bracket that closes a group, or the end: where that is, the most parts that vary in one alternative, and
    whether there are several alternatives."""
    max_variable = num_variable = 0
    has_alternatives = False
    while position < len(pattern) and pattern[position] != ")":
        if pattern[position] == "|":
            has_alternatives, num_variable, position = True, 0, position + 1
            continue
        position, inside = _parse_item(pattern, position)
        position, inside = _parse_quantifiers(pattern, position, inside)
        num_variable += inside
        max_variable = max(max_variable, num_variable)
        if max_variable > _MAX_VARIABLE_PARTS:
            raise SlowRegexError(
                f"more than {_MAX_VARIABLE_PARTS} parts in a row can match texts of several lengths"
            )
    return position, max_variable, has_alternatives


def _parse_item(pattern: str, position: int) -> tuple[int, int]:
    """Read a character, a class or a group: where it ends, and how many parts in it vary."""
    if _UNSUPPORTED_SYNTAX.match(pattern, position):
        raise SlowRegexError(
            "it has a comment, free spacing or a control character, behind which it cannot be read here"
        )
    if pattern[position] == "\\":
        if _BACKREFERENCE.match(pattern, position):
            raise SlowRegexError("it repeats what a group matched, or calls a group")
        escape = _ESCAPE.match(pattern, position)
        return escape.end() if escape else position + 1, int(
            _VARIABLE_ESCAPE.match(pattern, position) is not None
        )
    if pattern[position] == "[":
        return _find_class_end(pattern, position), 0
    if pattern[position] == "(":
        # What follows (? are flags, a name or a sign, which read as characters do no harm.
        end, most, several = _parse_alternatives(
            pattern, position + 1 + pattern.startswith("(?", position)
        )
        return end + 1, most + several
    return position + 1, 0


def _parse_quantifiers(pattern: str, position: int, num_variable: int) -> tuple[int, int]:
    """Read the quantifiers behind an item of which `num_variable` parts vary: where they end, and how many vary now."""
    while (match := _QUANTIFIER.match(pattern, position)) and (
        match["sign"] or match["low"] or match["high"]
    ):
        # Behind a count a question mark makes it all optional.
        fixed = match["sign"] is None and not match["comma"] and not match[0].endswith("?")
        once = match["sign"] == "?" or (match["low"] if fixed else match["high"]) in ("0", "1")
        if num_variable and not once:
            raise SlowRegexError("it repeats a part that can itself match texts of several lengths")
        position, num_variable = match.end(), num_variable or int(not fixed)
    return position, num_variable


def _find_class_end(pattern: str, position: int) -> int:
    """Behind the bracket that closes the class of characters that begins here; classes may hold others."""
    depth, position = 1, position + (2 if pattern.startswith("[^", position) else 1)
    position += pattern.startswith("]", position)  # the first is a character
    while position < len(pattern) and depth:
        step = 2 if pattern[position] == "\\" else 1
        depth += {"[": 1, "]": -1}.get(pattern[position], 0)
        position += step
    return position
