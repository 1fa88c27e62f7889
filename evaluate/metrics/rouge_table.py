"""ROUGE of many predictions: means with confidence intervals, as a table and by name."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from data.prepare.provenance import read_sources
from data.shards import ShardSet
from data.sources import find_source
from data.sources.base import LetterCase
from evaluate.metrics.rouge import (
    NUM_RESAMPLES,
    ROUGE_VARIANTS,
    UNIT_SPLITTERS,
    bootstrap_mean_interval,
    compute_rouge,
)

# The fields of a `RougeScore`, in order.
STATISTICS = ("precision", "recall", "f")
# The letter cases as descriptions of what is scored.
CASE_LABELS: dict[LetterCase, str] = {"lower": "lower-cased", "kept": "case kept"}


@dataclass(frozen=True)
class RougeTable:
    """All ROUGE scores of many examples."""

    scores: np.ndarray
    """float64[N, units, variants, statistics]; the axes after the first are in the order of
    UNIT_SPLITTERS, ROUGE_VARIANTS and STATISTICS."""

    @classmethod
    def from_predictions(
        cls,
        predictions: Sequence[str],
        references: Sequence[str],
        case: LetterCase,
        on_progress: Callable[[int], object] | None = None,
    ) -> "RougeTable":
        """Score each prediction against its reference; call `on_progress(1)` after each."""
        scores_by_example = []
        for prediction, reference in zip(predictions, references, strict=True):
            scores_by_unit = []
            for split_units in UNIT_SPLITTERS.values():
                scores = compute_rouge(prediction, reference, split_units, case=case)
                scores_by_unit.append([astuple(scores[variant]) for variant in ROUGE_VARIANTS])
            scores_by_example.append(scores_by_unit)
            if on_progress:
                on_progress(1)
        return cls(np.array(scores_by_example))

    def rouge_1(self) -> np.ndarray:
        """Return ROUGE-1 F on characters of each example, float64[N]."""
        characters = list(UNIT_SPLITTERS).index("characters")
        f_scores: np.ndarray = self.scores[
            :, characters, ROUGE_VARIANTS.index("1"), STATISTICS.index("f")
        ]
        return f_scores

    def rank_examples(self) -> list[int]:
        """Return the indices of the examples from worst to best, by ROUGE-1 F on characters."""
        # A stable sort, so that the order of equal scores is the same on every machine.
        return np.argsort(self.rouge_1(), kind="stable").tolist()

    def example_scores(self, index: int) -> dict[str, Any]:
        """Return all scores of one example as {units: {variant: {statistic: score}}}."""
        return _scores_by_name(self.scores[index], lambda value: round(float(value), 6))

    def summarize_scores(self) -> dict[str, Any]:
        """Return mean and 95 % interval of each score as {units: {variant: {statistic: …}}}.

        An entry has the keys `mean`, `low` and `high`.
        """
        # [3, units, variants, statistics]: mean, low and high first.
        means_and_intervals = bootstrap_mean_interval(self.scores)
        return _scores_by_name(
            np.moveaxis(means_and_intervals, 0, -1),
            lambda triple: dict(zip(("mean", "low", "high"), triple.tolist(), strict=True)),
        )

    def format_lines(self) -> list[str]:
        """Return a table of the means, and the intervals of F, as lines to print."""
        lines = [f"{'':22}{'precision':>11}{'recall':>11}{'F':>11}   95 % interval of F"]
        for units, variants in self.summarize_scores().items():
            for variant, statistics in variants.items():
                means = "".join(f"{statistics[name]['mean']:11.4f}" for name in STATISTICS)
                interval = f"{statistics['f']['low']:.4f} – {statistics['f']['high']:.4f}"
                lines.append(f"{units:13}{variant.upper():9}{means}   {interval}")
        return lines


def _scores_by_name(values: np.ndarray, convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Nest values[units, variants, statistics, …] as {units: {rouge-variant: {statistic: …}}}.

    `convert` makes a JSON value of the innermost array or number.
    """
    named: dict[str, Any] = {}
    for units, unit_values in zip(UNIT_SPLITTERS, values, strict=True):
        named[units] = {}
        for variant, statistics in zip(ROUGE_VARIANTS, unit_values, strict=True):
            named[units][f"rouge-{variant}"] = dict(
                zip(STATISTICS, map(convert, statistics), strict=True)
            )
    return named


def describe_method(case: LetterCase) -> str:
    """Return a description of the method for results files."""
    return (
        f"means over examples; 95 % intervals: percentile bootstrap, {NUM_RESAMPLES:,} resamples, "
        f"seed 0. Characters and words {CASE_LABELS[case]}, without whitespace; an n-gram counts "
        "once (rouge-chinese)"
    )


def scorer_versions() -> dict[str, str]:
    """Return the versions of the packages that scores depend on."""
    return {name: metadata.version(name) for name in ("rouge-chinese", "jieba")}


def find_rouge_case(shards: ShardSet) -> LetterCase:
    """Return the letter case of published ROUGE scores of a set's sources; lower if they differ."""
    cases = {find_source(name).rouge_case for name in read_sources(shards.folder)}
    return "kept" if cases == {"kept"} else "lower"
