"""Read the sentence forms of reading passages from `text/reading/*.txt`.

A file has kinds of passages. A kind has openings, one of which begins a passage, and further
blocks, some of which follow in any order. A block is a sentence with slots, and questions for some
of the slots. The answer to a question is the clause of the sentence that contains the slot.
"""

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from assets.sample_generator.grammar import TEXT_FOLDER

SLOT = re.compile(r"\{([^{}]+)\}")
# What ends a clause. 、 does not.
CLAUSE_END = re.compile(r"[，。；：！？“”]")


@dataclass
class Block:
    """A sentence with slots and choices, and the phrasings of the questions for some slots."""

    sentence: str
    questions: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Kind:
    """A kind of passage: the slots that its blocks share, its openings, and its other blocks."""

    name: str
    subjects: list[str] = field(default_factory=list)
    openings: list[Block] = field(default_factory=list)
    body: list[Block] = field(default_factory=list)


@functools.cache
def read_forms(folder: Path = TEXT_FOLDER / "reading") -> tuple[Kind, ...]:
    """Return the kinds of passages of all files of a folder."""
    return tuple(kind for path in sorted(folder.glob("*.txt")) for kind in read_file(path))


def read_file(path: Path) -> list[Kind]:
    """Return the kinds of passages of a file. Raises ValueError, with the line, if it is broken."""
    kinds: list[Kind] = []
    blocks: list[Block] = []
    is_new_block = True
    for number, raw_line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw_line.strip()
        if not line:
            is_new_block = True
        elif line.startswith("# "):
            continue
        elif line.startswith("= "):
            kinds.append(Kind(line.removeprefix("= ").strip()))
            is_new_block = True
        elif not kinds:
            raise ValueError(f"{path.name}:{number}: no kind (= NAME) before {line}")
        elif line.startswith("@"):
            kinds[-1].subjects = line.removeprefix("@").split()
        elif line.startswith("## "):
            section = line.removeprefix("## ").strip()
            blocks = {"开头": kinds[-1].openings, "正文": kinds[-1].body}[section]
            is_new_block = True
        elif line.startswith("?"):
            slot, _, questions = line.removeprefix("?").partition(" ")
            if not blocks or f"{{{slot}}}" not in blocks[-1].sentence or not questions:
                raise ValueError(f"{path.name}:{number}: no such slot: {line}")
            phrasings = [each.strip().rstrip("？?") for each in re.split(r"\s/\s", questions)]
            blocks[-1].questions.setdefault(slot, []).extend(phrasings)
        elif is_new_block:
            blocks.append(Block(line))
            is_new_block = False
        else:
            raise ValueError(f"{path.name}:{number}: two sentences in one block: {line}")
    return kinds
