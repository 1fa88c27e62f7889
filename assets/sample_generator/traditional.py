"""Convert a share of the encyclopedia to traditional characters, as Chinese Wikipedia has both.

The table covers this text only: one form per character, and words in which a character takes
another form. For other texts the project uses OpenCC.
"""

import functools
import re

from assets.sample_generator.grammar import TEXT_FOLDER, read_sections


@functools.cache
def _conversion_tables() -> tuple[dict[int, str], dict[str, str], re.Pattern[str]]:
    sections = read_sections(TEXT_FOLDER / "traditional.txt")
    simple, traditional = sections["字"]
    characters = {ord(one): other for one, other in zip(simple, traditional, strict=True)}
    words = dict(line.split(" ") for line in sections["词"])
    # 里 is a unit of length after a number and stays as it is.
    return characters, words, re.compile(r"\d+里|" + "|".join(sorted(words, key=len, reverse=True)))


def to_traditional(text: str) -> str:
    """Return the text in traditional characters."""
    characters, words, pattern = _conversion_tables()
    position, parts = 0, []
    for match in pattern.finditer(text):
        word = match.group()
        parts += [text[position : match.start()].translate(characters), words.get(word, word)]
        position = match.end()
    return "".join([*parts, text[position:].translate(characters)])
