"""ROUGE of many predictions: means with confidence intervals, as a table and by name."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from evaluate.metrics.rouge import (
    NUM_RESAMPLES,
    ROUGE_VARIANTS,
    UNIT_SPLITTERS,
    bootstrap_mean_interval,
    compute_rouge,
)

STATISTICS = ("precision", "recall", "f")
METHOD = (
    f"means over examples; 95 % intervals: percentile bootstrap, {NUM_RESAMPLES:,} resamples, "
    "seed 0. Characters and words lower-cased, without whitespace; an n-gram counts once "
    "(rouge-chinese)"
)


@dataclass(frozen=True)
class RougeTable:
    """All scores of all examples, [N, units, variants, statistics].

    The axes are in the order of UNIT_SPLITTERS, ROUGE_VARIANTS and STATISTICS.
    """

    scores: np.ndarray

    @classmethod
    def from_predictions(
        cls,
        predictions: Sequence[str],
        references: Sequence[str],
        on_progress: Callable[[int], object] | None = None,
    ) -> "RougeTable":
        """Score predictions against references, pair by pair."""
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            row = []
            for split_units in UNIT_SPLITTERS.values():
                scores = compute_rouge(prediction, reference, split_units)
                row.append([astuple(scores[variant]) for variant in ROUGE_VARIANTS])
            rows.append(row)
            if on_progress:
                on_progress(1)
        return cls(np.array(rows))

    def rank_examples(self) -> list[int]:
        """Return the indices of the examples from worst to best, by ROUGE-1 F on characters."""
        return np.argsort(self.scores[:, 0, 0, STATISTICS.index("f")], kind="stable").tolist()

    def example_scores(self, index: int) -> dict[str, Any]:
        """Return all scores of one example by name."""
        return _scores_by_name(self.scores[index], lambda value: round(float(value), 6))

    def summarize_scores(self) -> dict[str, Any]:
        """Return the mean and the ends of the interval of each score by name."""
        means_and_intervals = bootstrap_mean_interval(self.scores)
        return _scores_by_name(
            np.moveaxis(means_and_intervals, 0, -1),
            lambda ends: dict(zip(("mean", "low", "high"), ends.tolist(), strict=True)),
        )

    def format_lines(self) -> list[str]:
        """Return the table of means as lines."""
        lines = [f"{'':22}{'precision':>11}{'recall':>11}{'F':>11}   95 % interval of F"]
        for units, variants in self.summarize_scores().items():
            for variant, statistics in variants.items():
                means = "".join(f"{statistics[name]['mean']:11.4f}" for name in STATISTICS)
                interval = f"{statistics['f']['low']:.4f} – {statistics['f']['high']:.4f}"
                lines.append(f"{units:13}{variant.upper():9}{means}   {interval}")
        return lines


def _scores_by_name(values: np.ndarray, convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Nest values[units, variants, statistics, …] as {units: {rouge-variant: {statistic: …}}}."""
    named: dict[str, Any] = {}
    for units, unit_values in zip(UNIT_SPLITTERS, values, strict=True):
        named[units] = {}
        for variant, statistics in zip(ROUGE_VARIANTS, unit_values, strict=True):
            named[units][f"rouge-{variant}"] = dict(
                zip(STATISTICS, map(convert, statistics), strict=True)
            )
    return named


def scorer_versions() -> dict[str, str]:
    """Return the versions of the scoring packages; scores of other packages do not compare."""
    return {name: metadata.version(name) for name in ("rouge-chinese", "jieba")}
