"""The consensus of samples is that of all pairs by compute_rouge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.base import LetterCase
from evaluate.decoding.consensus import agreements, choose_consensus
from evaluate.metrics.rouge import compute_rouge

TEXTS = st.text("小驼过河aA ", max_size=6)


@given(st.lists(TEXTS, min_size=2, max_size=7), st.lists(TEXTS, max_size=3), st.booleans())
def test_agreements_are_mean_rouge_with_the_samples(
    samples: list[str], others: list[str], is_lower: bool
) -> None:
    """Prevents other counts than those of ROUGE, a text that agrees with itself, lost copies."""
    case: LetterCase = "lower" if is_lower else "kept"
    expected = [
        np.mean(
            [
                compute_rouge(text, other, case=case)["1"].f
                for number, other in enumerate(samples)
                if number != index
            ]
        )
        for index, text in enumerate([*samples, *others])
    ]
    # rouge-chinese adds 1e-8 to the denominator of F.
    assert agreements(samples, case, others) == pytest.approx(expected, abs=1e-7)


def test_chosen_is_the_middle_and_of_equals_the_first() -> None:
    """Prevents the sample that agrees least, and a choice that depends on rounding."""
    assert choose_consensus(["天气", "小驼过桥", "小驼过河", "小羊过河"], "lower") == 2
    assert choose_consensus(["甲", "乙丙", "乙丙", "丁"], "lower") == 1
    assert choose_consensus(["", "", ""], "lower") == 0


def test_coverage_and_extracts_can_be_chosen() -> None:
    """Prevents a weight without effect, and parts of the article with the index of a sample."""
    samples, article = ["天气", "小驼过桥", "小驼过河"], "桥上有桥，桥边有桥，小驼过河"
    assert choose_consensus(samples, "lower") == 1
    assert choose_consensus(samples[::-1], "lower") == 0
    # 桥 is there three times more: 3 of 12 characters.
    assert choose_consensus(samples[::-1], "lower", article=article, coverage_weight=0.1) == 1
    extracts = ["桥上有桥", "桥边有桥"]
    options = {"extracts": extracts, "article": article}
    assert choose_consensus(samples, "lower", **options) == 1
    assert choose_consensus(samples, "lower", coverage_weight=9.0, **options) == 3
