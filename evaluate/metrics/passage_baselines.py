"""Answers to questions about a passage without a model: what reading has to beat.

Neither knows what a question asks for. The first finds where the answer may be, the second takes
from there what looks most like one.
"""

import re

from evaluate.metrics.baselines import split_sentences

# Numbers with units of time and a percent sign, as in 1786年2月2日.
_NUMBER = re.compile(r"(?:\d+(?:[.,]\d+)*(?:年代|[年月日号號时時分秒点點%％])?)+")
# Text in title marks or quotation marks.
_QUOTED = re.compile(r"[《「『“]([^《》「」『』“”]+)[》」』”]")
_LATIN = re.compile(r"[A-Za-z][A-Za-z'.-]*(?: [A-Za-z][A-Za-z'.-]*)*")


def most_similar_sentence(passage: str, question: str) -> str:
    """Return the sentence of the passage that has the most character bigrams of the question.

    Of several, the first; the whole passage if it has no sentences.
    """
    bigrams = _bigrams(question)
    return max(
        split_sentences(passage),
        key=lambda sentence: len(bigrams & _bigrams(sentence)),
        default=passage,
    )


def longest_number_or_name(sentence: str, question: str) -> str:
    """Return the longest number or name in the sentence that is not in the question.

    Numbers have their units of time. Names are what can be told without a dictionary: text in title
    or quotation marks, and Latin words. Of several, the first; the sentence itself without any.
    """
    candidates = [
        (match.start(), match[match.lastindex or 0].strip())
        for pattern in (_NUMBER, _QUOTED, _LATIN)
        for match in pattern.finditer(sentence)
    ]
    texts = [text for _, text in sorted(candidates) if text and text not in question]
    return max(texts, key=len, default=sentence)


def _bigrams(text: str) -> set[str]:
    characters = "".join(text.split())
    return {characters[start : start + 2] for start in range(len(characters) - 1)}
