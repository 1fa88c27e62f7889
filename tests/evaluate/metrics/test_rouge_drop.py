"""The drop between conditions, and its interval, against NumPy."""

import numpy as np
import pytest

from evaluate.metrics.rouge import NUM_RESAMPLES, compute_rouge
from evaluate.metrics.rouge_drop import (
    ANSWER_TEXTS,
    FLAGS,
    ConditionScores,
    score_f,
    summarize_f_scores,
    summarize_flags,
)


@pytest.mark.slow
def test_interval_of_the_drop_is_that_of_pairs() -> None:
    """Prevents an interval of unpaired means, other records, mixed-up texts and variants."""
    generator = np.random.default_rng(7)
    canonical = generator.uniform(size=(40, 2, 3))
    # Much the same as the canonical scores: pairs differ far less than records do.
    first = canonical[:25] - generator.normal(0.05, 0.01, (25, 2, 3))
    second = generator.uniform(size=(25, 2, 3))
    draws = np.random.default_rng(0)
    indices = np.stack([draws.integers(25, size=25) for _ in range(NUM_RESAMPLES)])
    all_figures = summarize_f_scores([first, second], canonical)
    for scores, figures in zip((first, second), all_figures, strict=True):
        assert figures["records"] == 25
        for text_index, text in enumerate(ANSWER_TEXTS):
            for variant_index, variant in enumerate(("rouge-1", "rouge-2", "rouge-l")):
                condition_scores = scores[:, text_index, variant_index]
                canonical_scores = canonical[:, text_index, variant_index]
                means = condition_scores[indices].mean(1)
                drops = canonical_scores[indices].mean(1) - means
                for name, resampled, mean in (
                    ("rouge", means, condition_scores.mean()),
                    ("drop", drops, canonical_scores[:25].mean() - condition_scores.mean()),
                ):
                    figure = figures[name][text][variant]
                    low, high = np.quantile(resampled, (0.025, 0.975))
                    assert (figure["mean"], figure["low"], figure["high"]) == pytest.approx(
                        (mean, low, high)
                    )
    figure = all_figures[0]["drop"]["stripped"]["rouge-1"]
    assert 0.04 < figure["low"] < figure["high"] < 0.06


def test_mean_over_conditions_keeps_records_apart() -> None:
    """Prevents an interval of answers, which are many for one record, instead of records."""
    zeros, ones = np.zeros((3, len(FLAGS))), np.ones((3, len(FLAGS)))
    zeros[0, FLAGS.index("loops")] = 1
    mean = ConditionScores.mean(
        [ConditionScores(np.zeros((3, 2, 3)), zeros), ConditionScores(np.ones((3, 2, 3)), ones)]
    )
    assert (mean.f_scores == 0.5).all()
    rates = summarize_flags(mean.flags)
    assert list(rates) == list(FLAGS)
    assert (rates["stopped"].rate, rates["stopped"].total) == (0.5, 3)
    assert rates["loops"].count == 2


def test_scores_are_f_on_characters() -> None:
    """Prevents scores of words, of recall, or in another letter case."""
    scores = compute_rouge("IPHONE发布会", "iphone新品发布", case="kept")
    assert score_f("IPHONE发布会", "iphone新品发布", "kept") == [
        scores["1"].f,
        scores["2"].f,
        scores["l"].f,
    ]
    assert score_f("IPHONE", "iphone", "lower") == pytest.approx([1, 1, 1])
