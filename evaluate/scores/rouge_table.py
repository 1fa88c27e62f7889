"""The ROUGE of many predictions: the means with their intervals, as a table and as figures."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from evaluate.scores.rouge_metric import (
    NUM_RESAMPLES,
    ROUGE_VARIANTS,
    UNIT_SPLITTERS,
    bootstrap_mean_interval,
    compute_rouge,
)

STATISTICS = ("precision", "recall", "f")
METHOD = (
    f"means over examples; 95 % intervals: percentile bootstrap, {NUM_RESAMPLES:,} resamples, seed 0. Characters and "
    "words lower-cased, without whitespace; an n-gram counts once (rouge-chinese)"
)


@dataclass(frozen=True)
class RougeTable:
    """`scores`[N, units, kinds, parts]: every figure of every example, in the orders of UNITS, KINDS and PARTS."""

    scores: np.ndarray

    @classmethod
    def from_predictions(
        cls,
        predictions: Sequence[str],
        references: Sequence[str],
        on_progress: Callable[[int], object] | None = None,
    ) -> "RougeTable":
        """Score each prediction against the reference in its place."""
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            figures = [
                compute_rouge(prediction, reference, units) for units in UNIT_SPLITTERS.values()
            ]
            rows.append([[astuple(each[kind]) for kind in ROUGE_VARIANTS] for each in figures])
            if on_progress:
                on_progress(1)
        return cls(np.array(rows))

    def rank_examples(self) -> list[int]:
        """The examples from worst to best by ROUGE-1 F on characters."""
        return np.argsort(self.scores[:, 0, 0, STATISTICS.index("f")], kind="stable").tolist()

    def example_scores(self, index: int) -> dict[str, Any]:
        """All figures of one example, by name."""
        return _scores_by_name(self.scores[index], lambda value: round(float(value), 6))

    def summarize_scores(self) -> dict[str, Any]:
        """Each figure's mean and the ends of its interval, by name."""
        means_and_intervals = bootstrap_mean_interval(self.scores)
        return _scores_by_name(
            np.moveaxis(means_and_intervals, 0, -1),
            lambda ends: dict(zip(("mean", "low", "high"), ends.tolist(), strict=True)),
        )

    def format_lines(self) -> list[str]:
        """A table to print."""
        lines = [f"{'':22}{'precision':>11}{'recall':>11}{'F':>11}   95 % interval of F"]
        for units, kinds in self.summarize_scores().items():
            for kind, parts in kinds.items():
                means = "".join(f"{parts[part]['mean']:11.4f}" for part in STATISTICS)
                lines.append(
                    f"{units:13}{kind.upper():9}{means}   {parts['f']['low']:.4f} – {parts['f']['high']:.4f}"
                )
        return lines


def _scores_by_name(values: np.ndarray, convert: Callable[[Any], Any]) -> dict[str, Any]:
    """values[units, kinds, parts, …] → {units: {rouge-kind: {part: converted}}}."""
    return {
        units: {
            f"rouge-{kind}": {part: convert(values[u, k, p]) for p, part in enumerate(STATISTICS)}
            for k, kind in enumerate(ROUGE_VARIANTS)
        }
        for u, units in enumerate(UNIT_SPLITTERS)
    }


def scorer_versions() -> dict[str, str]:
    """What counted: figures from other packages do not compare."""
    return {name: metadata.version(name) for name in ("rouge-chinese", "jieba")}
