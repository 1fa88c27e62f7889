"""The names of derived sets: a derivation, its source and its arguments: `long(wikipedia,4096)`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from data.derivations import derivation_names

_NAME = re.compile(r"([a-z][a-z0-9_]*)\((.*)\)", re.DOTALL)
_MAX_LABEL_CHARACTERS = 20
_BEGINNING = re.compile(r"[a-z][a-z0-9_]*\(")


@dataclass(frozen=True)
class DerivedName:
    """A name in its parts."""

    derivation: str
    source: str  # a name or path as in --data
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.derivation}({','.join((self.source, *self.arguments))})"

    def label(self, source_label: str) -> str:
        """Return a name for files and folders, with `source_label` for the source."""
        arguments = map(_label_argument, self.arguments)
        return "-".join((self.derivation, *arguments, source_label))


def parse_derived_name(name: str) -> DerivedName | None:
    """Return the parts of a derived name; None for any other name, and for a path that exists.

    A source may be a path with commas if it exists. Raises ValueError if the derivation is unknown,
    or if its source is missing, a mixture, or derived itself.
    """
    match = _NAME.fullmatch(name)
    if match is None or not _is_balanced(match[2]) or Path(name).exists():
        return None
    derivation, inner = match.groups()
    if derivation not in derivation_names():
        raise ValueError(
            f"{name}: {derivation} is no derivation; there are {', '.join(derivation_names())}"
        )
    source, arguments = _split_source(inner)
    if not source:
        raise ValueError(f"{name}: names no data: {derivation}(NAME,…)")
    is_path = Path(source).exists()
    if not is_path and "+" in source:
        parts = "+".join(
            str(DerivedName(derivation, part, arguments)) for part in source.split("+")
        )
        raise ValueError(f"{name}: a derivation takes one set: {parts}")
    if not is_path and _BEGINNING.match(source):
        raise ValueError(f"{name}: its source is derived, too: prepare that, and name its folder")
    return DerivedName(derivation, source, arguments)


def _label_argument(argument: str) -> str:
    """Return an argument as a part of a file name: as it is, or what stands for a path."""
    if len(argument) <= _MAX_LABEL_CHARACTERS and re.fullmatch(r"[\w.]*", argument):
        return argument
    return hashlib.sha256(argument.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def _split_source(inner: str) -> tuple[str, tuple[str, ...]]:
    """Return the source and the arguments of what is between the parentheses."""
    parts = inner.split(",")
    # The longest path that exists, or else the text before the first comma.
    for num_parts in range(len(parts), 0, -1):
        source = ",".join(parts[:num_parts]).strip()
        if source and Path(source).exists():
            break
    return source, tuple(part.strip() for part in parts[num_parts:])


def _is_balanced(inner: str) -> bool:
    """Return whether every parenthesis in a text has its other half in the text."""
    depth = 0
    for character in inner:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0
