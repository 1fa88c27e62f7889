"""Expand phrasings, a small template language over UTF-8 text files.

A file has sections, `## name` and one phrasing per line. In a phrasing `{slot}` is a value,
`[a|b|c]` a random choice of one of the variants (brackets may nest), and a literal `\\n` a line
break.
"""

import random
import re
from collections.abc import Mapping
from pathlib import Path

TEXT_FOLDER = Path(__file__).parent / "text"
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")


def read_sections(path: Path) -> dict[str, list[str]]:
    """Return the sections of a phrasing file, name → lines; a name must not occur twice."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for raw in path.read_text(encoding="utf-8").splitlines():
        if raw.startswith("## "):
            name = raw[3:].strip()
            if name in sections:
                raise ValueError(f"{path.name}: section {name} occurs twice")
            lines = sections.setdefault(name, [])
        elif raw.strip():
            lines.append(raw.strip())
    return sections


def read_passages() -> dict[str, str]:
    """Return the hand-written passages of `text/passages.txt`, title → paragraphs."""
    return {
        title: "\n".join(lines)
        for title, lines in read_sections(TEXT_FOLDER / "passages.txt").items()
    }


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of `text/NAME.tsv` as dictionaries by column name."""
    rows = (TEXT_FOLDER / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    header = rows[0].split("\t")
    table = []
    for row in rows[1:]:
        cells = row.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"{name}.tsv: {len(cells)} cells instead of {len(header)}: {row[:40]}")
        table.append(dict(zip(header, cells, strict=True)))
    return table


class Grammar:
    """The phrasings of some files."""

    def __init__(self, *files: str) -> None:
        self.sections: dict[str, list[str]] = {}
        for file in files:
            for name, lines in read_sections(TEXT_FOLDER / file).items():
                if name in self.sections:
                    raise ValueError(f"{file}: section {name} is in another file too")
                self.sections[name] = lines

    def expand(self, section: str, values: Mapping[str, str], rng: random.Random) -> str:
        """Expand one phrasing of `section` whose slots are all in `values`."""
        candidates = [
            line
            for line in self.sections[section]
            if all(slot in values for slot in _SLOT.findall(line))
        ]
        if not candidates:
            raise KeyError(f"no phrasing of {section} fits the slots {sorted(values)}")
        return expand_phrasing(rng.choice(candidates), values, rng)


def expand_phrasing(phrasing: str, values: Mapping[str, str], rng: random.Random) -> str:
    """Choose the variants of one phrasing, then fill in its slots."""
    while _CHOICE.search(phrasing):
        phrasing = _CHOICE.sub(
            lambda match: rng.choice(match.group(1).split("|")), phrasing, count=1
        )
    return _SLOT.sub(lambda match: values[match.group(1)], phrasing).replace("\\n", "\n")
