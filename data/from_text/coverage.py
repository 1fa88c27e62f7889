"""How much of an article a text says: the share of it that repeats the text's characters.

One of each character is not counted: it stands for the text itself, which may be a part of the
article. Sentences that say most of the rest are the summaries of gap-sentence generation (Zhang et
al. 2020, arXiv:1912.08777). Here the unit is a letter or digit, lower-cased: marks say nothing.
"""

from collections import Counter


def count_characters(article: str) -> Counter[str]:
    """Return how often an article has each of its letters and digits, lower-cased."""
    return Counter(character for character in article.lower() if character.isalnum())


def coverage(text: str, article: Counter[str]) -> float:
    """Return the share of the article that repeats characters of the text, 0 to 1.

    For each different character of the text, count how often it occurs in the article, minus one;
    divide the sum by the number of letters and digits in the article. `article` is from
    `count_characters`.
    """
    said = sum(max(article[character] - 1, 0) for character in set(text.lower()))
    return said / max(article.total(), 1)
