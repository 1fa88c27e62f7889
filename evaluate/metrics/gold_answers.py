"""Exact match and F1 of an answer and its gold answers, as CMRC 2018 and DRCD are scored.

The convention is that of the evaluation script of CMRC 2018 (Cui et al. 2019, arXiv:1810.07366),
which is used for DRCD too. Letters are lower-cased. Exact match compares the texts without
punctuation. F1 is of tokens without punctuation, where a Chinese character is a token and so is a
Latin word or a number; the overlap is the longest run of tokens that both have, not, as for SQuAD,
the multiset that they share. Of several gold answers the best counts.

The punctuation is the list of the script: `,` and `.` are not in it, so that 3.5 stays one number,
and neither is `…`, which the list has doubled and so never finds in single characters.
Where the script cuts Latin text with NLTK, this has a regular expression.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# A Chinese character, a number with separators, a run of letters and digits, or another character.
_TOKEN = re.compile(r"[\u4e00-\u9fa5]|\d+(?:[.,]\d+)+|[^\W\u4e00-\u9fa5]+|[^\w\s]")


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Return whether the prediction is one of the answers, except for case and punctuation."""
    text = _strip_punctuation(prediction)
    return any(_strip_punctuation(answer) == text for answer in answers)


def overlap_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1 of the prediction and one of the answers, 0 without any.

    See the module for how it is counted.
    """
    tokens = split_tokens(prediction)
    return max((_f1(tokens, split_tokens(answer)) for answer in answers), default=0.0)


def split_tokens(text: str) -> list[str]:
    """Return the tokens of a text that F1 is counted on."""
    return _TOKEN.findall(_strip_punctuation(text))


def _strip_punctuation(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in _PUNCTUATION)


def _f1(prediction: list[str], answer: list[str]) -> float:
    # autojunk would ignore tokens that occur often in a long answer.
    matcher = SequenceMatcher(None, prediction, answer, autojunk=False)
    overlap = matcher.find_longest_match().size
    if not overlap:
        return 0.0
    precision, recall = overlap / len(prediction), overlap / len(answer)
    return 2 * precision * recall / (precision + recall)
