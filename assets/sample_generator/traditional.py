"""Convert a share of the encyclopedia to traditional characters, as Chinese Wikipedia has both.

The table covers this text only: one form per character, and words in which a character takes
another form. For other texts the project uses OpenCC.
"""

import functools
import re

from assets.sample_generator.grammar import TEXT_FOLDER, read_sections


@functools.cache
def _conversion_tables() -> tuple[dict[int, str], dict[str, str], re.Pattern[str]]:
    """Return the table of characters for `str.translate`, that of words, and a pattern of words."""
    sections = read_sections(TEXT_FOLDER / "traditional.txt")
    simplified, traditional = sections["字"]
    characters = {ord(one): other for one, other in zip(simplified, traditional, strict=True)}
    words = dict(line.split(" ") for line in sections["词"])
    # Longer words first, because a word may begin with another. The pattern also has numbers with
    # 里, which is a unit of length there and stays as it is.
    longest_first = sorted(words, key=len, reverse=True)
    return characters, words, re.compile(r"\d+里|" + "|".join(longest_first))


def to_traditional(text: str) -> str:
    """Return the text in traditional characters: words by one table, the rest by character."""
    characters, words, pattern = _conversion_tables()
    position, parts = 0, []
    for match in pattern.finditer(text):
        word = match.group()
        parts.append(text[position : match.start()].translate(characters))
        # The pattern also matches a number followed by 里, the unit of length, which must not
        # become 裡 (inside). It has no entry in `words` and stays as it is.
        parts.append(words.get(word, word))
        position = match.end()
    return "".join([*parts, text[position:].translate(characters)])
