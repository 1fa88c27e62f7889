"""ROUGE F of the same records under several conditions, and the drop against one of them.

All intervals are bootstrap intervals over records. The drop is that of pairs: the difference of the
two scores of each record is resampled, so that both means of a resample are of the same records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.sources.base import LetterCase
from evaluate.metrics.proportion import Proportion
from evaluate.metrics.rouge import ROUGE_VARIANTS, bootstrap_mean_interval, compute_rouge

# The texts of an answer that are scored: all of it, and what is left without the lead-in.
ANSWER_TEXTS = ("whole", "stripped")
# What is counted among the answers.
FLAGS = ("stopped", "loops", "lead_in", "trimmed")


@dataclass(frozen=True)
class ConditionScores:
    """The scores and flags of N records under one condition, or their means over several."""

    f_scores: np.ndarray
    """ROUGE F on characters, float64[N, texts, variants], in the order of ANSWER_TEXTS and
    ROUGE_VARIANTS."""
    flags: np.ndarray
    """1 where a flag is set, otherwise 0, float64[N, flags], in the order of FLAGS."""

    @classmethod
    def mean(cls, conditions: Sequence["ConditionScores"]) -> "ConditionScores":
        """Return the mean of each record over several conditions with the same records."""
        return cls(
            np.mean([scores.f_scores for scores in conditions], axis=0),
            np.mean([scores.flags for scores in conditions], axis=0),
        )


def score_f(text: str, reference: str, case: LetterCase) -> list[float]:
    """Return ROUGE F on characters for each of the ROUGE_VARIANTS."""
    scores = compute_rouge(text, reference, case=case)
    return [scores[variant].f for variant in ROUGE_VARIANTS]


def summarize_f_scores(
    conditions: Sequence[np.ndarray], canonical: np.ndarray
) -> list[dict[str, Any]]:
    """Return mean and interval of the scores and of the drop of each condition, by name.

    Args:
        conditions: `ConditionScores.f_scores` of each condition, of the same N records.
        canonical: those of the condition to compare with, whose first N records these are.

    The drop is the score under `canonical` minus the score under the condition.
    """
    # [N, conditions, texts, variants]
    f_scores = np.stack(conditions, axis=1)
    drops = canonical[: len(f_scores), np.newaxis] - f_scores
    # [3, conditions, texts, variants]
    score_intervals = bootstrap_mean_interval(f_scores)
    drop_intervals = bootstrap_mean_interval(drops)
    return [
        {
            "records": len(f_scores),
            "rouge": _name_intervals(score_intervals[:, index]),
            "drop": _name_intervals(drop_intervals[:, index]),
        }
        for index in range(len(conditions))
    ]


def summarize_flags(flags: np.ndarray) -> dict[str, Proportion]:
    """Return the share of records with each flag; `flags` are those of `ConditionScores`.

    In a mean over several conditions a record counts in part.
    """
    counts = flags.sum(0).tolist()
    return {name: Proportion(count, len(flags)) for name, count in zip(FLAGS, counts, strict=True)}


def _name_intervals(intervals: np.ndarray) -> dict[str, Any]:
    """Nest intervals[3, texts, variants] as {text: {rouge-variant: {"mean", "low", "high"}}}."""
    named: dict[str, Any] = {}
    for text, text_intervals in zip(ANSWER_TEXTS, np.moveaxis(intervals, 0, -1), strict=True):
        named[text] = {}
        for variant, triple in zip(ROUGE_VARIANTS, text_intervals.tolist(), strict=True):
            named[text][f"rouge-{variant}"] = dict(
                zip(("mean", "low", "high"), triple, strict=True)
            )
    return named
