"""Exact match and F1 of answers and gold answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.gold_answers import exact_match, overlap_f1, split_tokens

# As the evaluation script of CMRC 2018 lists it.
PUNCTUATION = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
TEXTS = st.text(alphabet="张三的 aB1２.,，。-·《》é%\n", max_size=14)


def tokens_by_definition(text: str) -> list[str]:
    """Return the tokens, character by character."""
    kept = "".join(char for char in text.lower().strip() if char not in PUNCTUATION)
    tokens: list[str] = []
    kinds: list[str] = []
    for place, char in enumerate(kept):
        kind = "word" if char.isalnum() else "other"
        if "一" <= char <= "\u9fa5":
            kind = "chinese"
        token = tokens[-1] if kinds[-1:] == ["word"] else ""
        has_separator = "." in token or "," in token
        # A separator belongs to a number that goes on after it; letters do not follow one.
        is_inside = char in ".," and kept[place + 1 : place + 2].isdigit()
        is_number = token.replace(".", "").replace(",", "").isdigit()
        goes_on = kind == "word" and (char.isdigit() or not has_separator)
        if token and (goes_on or (is_inside and is_number)):
            tokens[-1] += char
        else:
            tokens.append(char)
            kinds.append(kind)
    return [token for token in tokens if token.strip()]


def f1_by_definition(prediction: str, answers: list[str]) -> float:
    """Return the best F1, with the longest common run by dynamic programming."""
    scores = [0.0]
    for answer in answers:
        first, second = tokens_by_definition(prediction), tokens_by_definition(answer)
        runs = np.zeros((len(first) + 1, len(second) + 1))
        for row, left in enumerate(first, 1):
            for column, right in enumerate(second, 1):
                runs[row, column] = runs[row - 1, column - 1] + 1 if left == right else 0
        # 2 / (1 / precision + 1 / recall), written as one fraction.
        scores.append(2 * runs.max() / max(len(first) + len(second), 1))
    return max(scores)


@pytest.mark.slow
@given(prediction=TEXTS, answers=st.lists(TEXTS, max_size=3))
def test_f1_is_that_of_the_definition(prediction: str, answers: list[str]) -> None:
    """Prevents another overlap, other tokens, or another answer than the best."""
    assert split_tokens(prediction) == tokens_by_definition(prediction)
    assert overlap_f1(prediction, answers) == pytest.approx(f1_by_definition(prediction, answers))


def test_f1_counts_the_longest_run_and_not_all_that_is_shared() -> None:
    """Prevents SQuAD's F1, which would be higher for an answer in pieces."""
    # Shared are 北京大学, in runs of two: SQuAD's F1 would be 8 / 9.
    assert overlap_f1("北京的大学", ["北京大学"]) == pytest.approx(4 / 9)
    assert overlap_f1("1786年", ["1786 年"]) == 1
    assert overlap_f1("17年", ["1786年"]) == 0.5
    assert split_tokens("4G网速covid19 3.5kg") == ["4g", "网", "速", "covid19", "3.5", "kg"]
    # Tokens that are frequent in a long answer count as well.
    assert overlap_f1("天" + "山水" * 150, ["山水" * 150]) == pytest.approx(600 / 601)


def test_exact_match_ignores_case_and_the_punctuation_of_the_script() -> None:
    """Prevents a right answer from being wrong for a full stop, and 3.5 from being 35."""
    assert exact_match("《本草纲目》。", ["李时珍", "本草纲目"])
    assert exact_match("iPhone", ["IPHONE"])
    assert not exact_match("35", ["3.5"])
    assert not exact_match("本草", ["本草纲目"])
    # The list has …… , which no single character is.
    assert not exact_match("本草…", ["本草"])
    assert not exact_match("答", [])
