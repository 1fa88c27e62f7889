"""The consensus of samples is that of all pairs by compute_rouge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.base import LetterCase
from evaluate.decoding.consensus import agreements, choose_consensus
from evaluate.metrics.rouge import compute_rouge


@given(st.lists(st.text("小驼过河aA ", max_size=6), min_size=2, max_size=7), st.booleans())
def test_agreements_are_mean_rouge_of_all_pairs(texts: list[str], is_lower: bool) -> None:
    """Prevents other counts than those of ROUGE, a text that agrees with itself, lost copies."""
    case: LetterCase = "lower" if is_lower else "kept"
    expected = [
        np.mean(
            [
                compute_rouge(text, other, case=case)["1"].f
                for number, other in enumerate(texts)
                if number != index
            ]
        )
        for index, text in enumerate(texts)
    ]
    # rouge-chinese adds 1e-8 to the denominator of F.
    assert agreements(texts, case) == pytest.approx(expected, abs=1e-7)


def test_chosen_is_the_middle_and_of_equals_the_first() -> None:
    """Prevents the sample that agrees least, and a choice that depends on rounding."""
    assert choose_consensus(["天气", "小驼过桥", "小驼过河", "小羊过河"], "lower") == 2
    assert choose_consensus(["甲", "乙丙", "乙丙", "丁"], "lower") == 1
    assert choose_consensus(["", "", ""], "lower") == 0
