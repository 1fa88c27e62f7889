"""Expand phrasings, a small template language over UTF-8 text files.

A file has sections, `## name` and one phrasing per line. In a phrasing `{slot}` is a value,
`[a|b|c]` a random choice of one of the variants (brackets may nest), and a literal `\\n` a line
break.
"""

import functools
import random
import re
from collections.abc import Mapping
from pathlib import Path

TEXT_FOLDER = Path(__file__).parent / "text"
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")


def read_sections(path: Path) -> dict[str, list[str]]:
    """Return the sections of a text file, name → lines, stripped and without blank ones.

    A line `## NAME` begins a section. Raises ValueError if a name occurs twice.
    """
    sections: dict[str, list[str]] = {}
    # The lines of the current section. Lines before the first section are ignored.
    section_lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            name = line.removeprefix("## ").strip()
            if name in sections:
                raise ValueError(f"{path.name}: section {name} occurs twice")
            section_lines = sections.setdefault(name, [])
        elif line.strip():
            section_lines.append(line.strip())
    return sections


def read_passages() -> dict[str, str]:
    """Return the hand-written passages of `text/passages.txt`, title → paragraphs."""
    return {
        title: "\n".join(lines)
        for title, lines in read_sections(TEXT_FOLDER / "passages.txt").items()
    }


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of `text/NAME.tsv` as dictionaries by column name.

    Raises ValueError if a row has more or fewer cells than the header.
    """
    lines = (TEXT_FOLDER / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    table = []
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(
                f"{name}.tsv: {len(cells)} cells instead of {len(header)}: {line[:40]}"
            )
        table.append(dict(zip(header, cells, strict=True)))
    return table


class Grammar:
    """The phrasings of some files in `text/`."""

    def __init__(self, *file_names: str) -> None:
        """Read the files. Raises ValueError if two of them have a section of the same name."""
        self.sections: dict[str, list[str]] = {}
        for file_name in file_names:
            for name, lines in read_sections(TEXT_FOLDER / file_name).items():
                if name in self.sections:
                    raise ValueError(f"{file_name}: section {name} is in another file too")
                self.sections[name] = lines

    def expand(self, section: str, values: Mapping[str, str], rng: random.Random) -> str:
        """Choose a phrasing of `section` at random and expand it with the values of its slots.

        Phrasings with a slot that is not in `values` are passed over: the slot 外乡, for example,
        only has a value for people who moved. Raises KeyError if no phrasing is left.
        """
        candidates = [
            phrasing for phrasing in self.sections[section] if _slots(phrasing) <= values.keys()
        ]
        if not candidates:
            raise KeyError(f"no phrasing of {section} fits the slots {sorted(values)}")
        return expand_phrasing(rng.choice(candidates), values, rng)


@functools.cache
def _slots(phrasing: str) -> frozenset[str]:
    """Return the names of the slots of a phrasing."""
    return frozenset(_SLOT.findall(phrasing))


def expand_phrasing(phrasing: str, values: Mapping[str, str], rng: random.Random) -> str:
    """Choose one variant at random for each `[a|b|c]`, then fill in the slots and line breaks."""
    text = expand_choices(phrasing, rng)
    return _SLOT.sub(lambda match: values[match.group(1)], text).replace("\\n", "\n")


def expand_choices(phrasing: str, rng: random.Random) -> str:
    """Choose one variant at random for each `[a|b|c]`."""
    # The pattern has no bracket inside: of nested choices the innermost is made first.
    while match := _CHOICE.search(phrasing):
        variant = rng.choice(match.group(1).split("|"))
        phrasing = phrasing[: match.start()] + variant + phrasing[match.end() :]
    return phrasing
