"""Headlines in the words of the article: the clauses that say most of the title and of the article.

A small model that is fine-tuned on headlines as people write them answers with phrases that the
article does not have. One that is fine-tuned to copy a part of the article stays with its words,
and ROUGE as the reward can then teach it which part (docs/log.md has the comparison). The part of a
text with the highest ROUGE against its summary is the usual label for training an extractive
summarizer (Nallapati et al. 2017, arXiv:1611.04230; they take sentences). Here a part is a run of
clauses, and what it says of the rest of the article counts, too: nobody can tell from an article
which of its clauses the title took, but one can see which of them the others repeat. ROUGE is that
of `evaluate.metrics.rouge` on lower-cased characters.
"""

import re
from collections import Counter
from collections.abc import Iterator

from data.from_text.coverage import count_characters, coverage
from data.from_text.title_pairs import make_headlines
from data.records import SkippedRecord, Summary

MIN_EXTRACT_CHARACTERS = 10
MAX_EXTRACT_CHARACTERS = 60
# How much the coverage of a part counts beside its ROUGE-1 F (docs/log.md has others).
COVERAGE_WEIGHT = 0.75
# Below this ROUGE-1 F a part does not say what the title says.
MIN_EXTRACT_ROUGE = 0.2
# By how much the score of a part inside the article has to be above that of its beginning. The
# first sentences of news usually say most, and a small model learns to begin there more easily.
MIN_GAIN_INSIDE = 0.1

# A comma between digits is part of a number.
_CLAUSE = re.compile(
    r"(?:[^，。；：！？!?;,\n]|(?<=[0-9]),(?=[0-9]))+[，。；：！？!?;,\n”’」』）》)]*"
)
_OPENING, _CLOSING = "“‘「『《（(", "”’」』》）)"
_OUTER_MARKS = "，。；：！？!?;,\n "


def make_extracts(text: str, *, has_title_line: bool = False) -> Iterator[Summary | SkippedRecord]:
    """Yield the records of `headlines(NAME)`, each with an extract of its article as the title.

    For those that have none a `SkippedRecord` says why. `text` is cleaned; `has_title_line` is as
    in `read_outline`.
    """
    for record in make_headlines(text, has_title_line=has_title_line):
        if isinstance(record, SkippedRecord):
            yield record
        else:
            extract = choose_extract(record.article, record.title)
            yield Summary(record.article, extract) if extract else SkippedRecord("no_extract")


def choose_extract(article: str, title: str) -> str:
    """Return the consecutive clauses that say most of the title and the article, "" if none do.

    Clauses at the beginning of the article are preferred. The first is taken among equal ones.
    """
    counts = count_characters(article)
    best_score, best = 0.0, ""
    first_score, first = 0.0, ""
    for start, extract in iter_extracts(article):
        score = _score(extract, title, counts)
        if score > best_score:
            best_score, best = score, extract
        if start == 0 and score > first_score:
            first_score, first = score, extract
    if first and best_score <= first_score + MIN_GAIN_INSIDE:
        best = first
    return " ".join(best.split())


def iter_extracts(article: str) -> Iterator[tuple[int, str]]:
    """Yield the runs of clauses that are as long as a title, each with its first clause's index."""
    clauses = _CLAUSE.findall(article)
    for start in range(len(clauses)):
        joined = ""
        for clause in clauses[start:]:
            joined += clause
            extract = joined.strip(_OUTER_MARKS)
            if len(extract) > MAX_EXTRACT_CHARACTERS:
                break
            if len(extract) >= MIN_EXTRACT_CHARACTERS and _closes_quotes(extract):
                yield start, extract


def _closes_quotes(text: str) -> bool:
    """Return whether quotation marks and brackets are there in pairs."""
    return all(text.count(a) == text.count(b) for a, b in zip(_OPENING, _CLOSING, strict=True))


def _score(extract: str, title: str, article: Counter[str]) -> float:
    """Return how well an extract stands for a title and the article, 0 if not for the title.

    For ROUGE a character counts once, and white space does not. `article` is from
    `count_characters`.
    """
    said, wanted = (set("".join(text.lower().split())) for text in (extract, title))
    rouge = 2 * len(said & wanted) / max(len(said) + len(wanted), 1)
    return rouge + COVERAGE_WEIGHT * coverage(extract, article) if rouge >= MIN_EXTRACT_ROUGE else 0
