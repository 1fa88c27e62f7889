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
_MOST = 4
_QUANTIFIER = re.compile(r"(?P<sign>[?*+])[?+]?|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\}\??")
_ESCAPE = re.compile(r"\\(?:[pPx]\{[^}]*\}|.)", re.DOTALL)
# Escapes that mean what a group matched, or the group itself once more; and two that match more than one length.
_CALLS, _VARYING = re.compile(r"\\[gk1-9]"), re.compile(r"\\[RX]")
# What takes the characters behind it for something else than they look: control characters, comments, free spacing.
_DISGUISES = re.compile(r"\\(?:c|C-|M-)|\(\?(?:#|[a-wyzA-Z-]*x)")


class SlowPattern(Exception):
    """Why an expression is refused."""


def patterns(part: Any) -> Iterator[str]:
    """The regular expressions in a part of a `tokenizer.json`."""
    if isinstance(part, dict):
        if isinstance(part.get("Regex"), str):
            yield part["Regex"]
        for inner in part.values():
            yield from patterns(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from patterns(inner)


def check_pattern(pattern: str) -> None:
    """SlowPattern if a text could keep the expression busy for ever."""
    at = 0
    while at < len(pattern):
        at = _alternatives(pattern, at)[0] + 1  # beyond a bracket that closes nothing: for the library to refuse


def _alternatives(pattern: str, at: int) -> tuple[int, int, bool]:
    """Read to the bracket that closes a group, or the end: where that is, the most parts that vary in one alternative, and
    whether there are several alternatives."""
    most = varying = 0
    several = False
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            several, varying, at = True, 0, at + 1
            continue
        at, inside = _item(pattern, at)
        at, inside = _repeated(pattern, at, inside)
        varying += inside
        most = max(most, varying)
        if most > _MOST:
            raise SlowPattern(f"more than {_MOST} parts in a row can match texts of several lengths")
    return at, most, several


def _item(pattern: str, at: int) -> tuple[int, int]:
    """Read a character, a class or a group: where it ends, and how many parts in it vary."""
    if _DISGUISES.match(pattern, at):
        raise SlowPattern("it has a comment, free spacing or a control character, behind which it cannot be read here")
    if pattern[at] == "\\":
        if _CALLS.match(pattern, at):
            raise SlowPattern("it repeats what a group matched, or calls a group")
        escape = _ESCAPE.match(pattern, at)
        return escape.end() if escape else at + 1, int(_VARYING.match(pattern, at) is not None)
    if pattern[at] == "[":
        return _class_end(pattern, at), 0
    if pattern[at] == "(":
        # What follows (? are flags, a name or a sign, which read as characters do no harm.
        end, most, several = _alternatives(pattern, at + 1 + pattern.startswith("(?", at))
        return end + 1, most + several
    return at + 1, 0


def _repeated(pattern: str, at: int, inside: int) -> tuple[int, int]:
    """Read the quantifiers behind an item of which `inside` parts vary: where they end, and how many vary now."""
    while (found := _QUANTIFIER.match(pattern, at)) and (found["sign"] or found["low"] or found["high"]):
        # Behind a count a question mark makes it all optional.
        fixed = found["sign"] is None and not found["comma"] and not found[0].endswith("?")
        once = found["sign"] == "?" or (found["low"] if fixed else found["high"]) in ("0", "1")
        if inside and not once:
            raise SlowPattern("it repeats a part that can itself match texts of several lengths")
        at, inside = found.end(), inside or int(not fixed)
    return at, inside


def _class_end(pattern: str, at: int) -> int:
    """Behind the bracket that closes the class of characters that begins here; classes may hold others."""
    depth, at = 1, at + (2 if pattern.startswith("[^", at) else 1)
    at += pattern.startswith("]", at)  # the first is a character
    while at < len(pattern) and depth:
        step = 2 if pattern[at] == "\\" else 1
        depth += {"[": 1, "]": -1}.get(pattern[at], 0)
        at += step
    return at
