"""Find out whether the answers got worse between two steps of which the later has a lower loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# The probability of a decline of any measure between any two steps, where there is none.
ALPHA = 0.05
# With fewer questions the normal distribution does not fit, and even if all get worse, that may be
# chance.
MIN_QUESTIONS = 10


@dataclass(frozen=True)
class Decline:
    """The change of a mean score between two steps, and the ends of its interval.

    `earlier` and `later` are indices of steps. The interval is corrected for `num_comparisons`.
    """

    earlier: int
    later: int
    change: float
    low: float
    high: float
    num_comparisons: int


def find_decline(
    scores: np.ndarray, losses: Sequence[float | None], num_measures: int
) -> Decline | None:
    """Return the largest decline of a mean score to a later step with a lower loss, or None.

    Args:
        scores: score of each question at each step, from 0 to 1, higher is better, float[S, n].
        losses: validation loss of each step; None if it is unknown.
        num_measures: the number of measures that are compared, this one included.

    All pairs of steps are compared of which the later has the lower loss. The differences are
    paired: each question's score at the later step less its score at the earlier one. A decline is
    a mean difference whose interval lies below 0.

    The interval is that of Agresti & Min (2005) for paired proportions: the mean of the differences
    and of two imaginary ones, which are 1, -1 and 0 with weights 1/2, 1/2 and 1, plus and minus a
    normal quantile times the standard error. Unlike that of the differences alone it does not
    shrink to a point where all questions change alike. For scores such as ROUGE, whose differences
    are smaller than those of rights and wrongs, it is wider than need be. The quantile is corrected
    for the number of pairs and measures (Bonferroni), because the best of many steps is also the
    luckiest.
    """
    num_questions = scores.shape[1]
    pairs = find_falling_pairs(losses)
    if num_questions < MIN_QUESTIONS or not pairs:
        return None
    num_comparisons = len(pairs) * num_measures
    quantile = NormalDist().inv_cdf(1 - ALPHA / 2 / num_comparisons)
    total_weight = num_questions + 2
    declines = []
    for earlier, later in pairs:
        differences = scores[later] - scores[earlier]
        center = float(differences.sum()) / total_weight
        variance = (float(np.square(differences).sum()) + 1) / total_weight - center**2
        half_width = quantile * (variance / total_weight) ** 0.5
        if center + half_width < 0:
            declines.append(
                Decline(
                    earlier,
                    later,
                    change=float(differences.mean()),
                    low=max(-1.0, center - half_width),
                    high=center + half_width,
                    num_comparisons=num_comparisons,
                )
            )
    # Of equal ones, the shortest: quality was not yet lost at its first step.
    return min(
        declines,
        key=lambda decline: (decline.change, -decline.earlier, decline.later),
        default=None,
    )


def find_falling_pairs(losses: Sequence[float | None]) -> list[tuple[int, int]]:
    """Return the pairs of steps, earlier and later, between which the loss falls."""
    return [
        (earlier, later)
        for later, later_loss in enumerate(losses)
        for earlier, earlier_loss in enumerate(losses[:later])
        if later_loss is not None and earlier_loss is not None and later_loss < earlier_loss
    ]
