"""What changed from a base to the run that was tuned from it, and what to call it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluate.before_after.tasks import Task
from evaluate.kinds.question_sets import Figure, Measure, QuestionSet
from evaluate.metrics.language_model import LMScore
from evaluate.metrics.paired_difference import PairedDifference
from evaluate.metrics.rouge import bootstrap_mean_interval, resample_means
from evaluate.model_answer import ModelAnswer
from evaluate.watch.declines import MIN_QUESTIONS

OLD_TASK_LOSS = Measure(
    "loss",
    "loss, nats per token",
    higher_is_better=False,
    if_higher="forgot",
    if_lower="lower loss",
)
NEW_TASK_LOSS = replace(OLD_TASK_LOSS, if_higher="higher loss", if_lower="learned")


@dataclass(frozen=True)
class Change:
    """A measure before and after, and the difference over the same questions."""

    measure: Measure
    before: Figure
    after: Figure
    change: Figure
    """After minus before."""
    count: int
    """The number of questions or records."""

    @property
    def is_found(self) -> bool:
        """Return whether the interval of the difference excludes 0, over enough questions."""
        return self.count >= MIN_QUESTIONS and self.change["low"] * self.change["high"] > 0

    @property
    def word(self) -> str | None:
        """Return what the model is called, such as `longer`; None if nothing is found."""
        if not self.is_found:
            return None
        is_higher = self.change["mean"] > 0
        return self.measure.if_higher if is_higher else self.measure.if_lower

    def describe(self) -> str:
        """Return the change as text: `mean before → mean after, difference (interval)`."""
        key = "rate" if self.measure.is_rate else "mean"
        before, after = self.before[key], self.after[key]
        text = (
            f"{self.measure.format_mean(before)} → {self.measure.format_mean(after)}, "
            f"{self.measure.format_difference(self.change)}"
        )
        if self.measure in (OLD_TASK_LOSS, NEW_TASK_LOSS):
            # The exponential of more than 709 overflows a float.
            perplexities = [math.exp(min(loss, 700.0)) for loss in (before, after)]
            text += f", perplexity {perplexities[0]:,.2f} → {perplexities[1]:,.2f}"
        return text


@dataclass(frozen=True)
class TaskComparison:
    """What changed in one task."""

    task: Task
    changes: list[Change]
    question_set: QuestionSet | None
    """The questions that both models answered."""
    answers: list[list[ModelAnswer]]
    """The answers before, and those after; empty without questions."""

    @property
    def title(self) -> str:
        """Return the name of the task, with its data and size."""
        sizes = f"{len(self.task.records):,} records"
        if self.question_set is not None:
            count = len(self.question_set.questions)
            sizes = f"{count:,} {self.question_set.question_name}s"
        return f"{self.task.name}: {self.task.label}, {sizes}"

    @property
    def conclusions(self) -> list[str]:
        """Return a sentence for each difference found, and one about all that is not found."""
        lines = []
        not_found: dict[int, list[str]] = {}
        for change in self.changes:
            if change.word is not None:
                label = change.measure.label
                lines.append(f"{change.word}: {label} {change.describe()} (n = {change.count:,})")
            elif change.measure.if_higher is not None:
                not_found.setdefault(change.count, []).append(change.measure.label)
        for count, labels in not_found.items():
            verdict = f"no difference found (n = {count:,})"
            if count < MIN_QUESTIONS:
                verdict = f"too few to tell (n = {count:,}, at least {MIN_QUESTIONS})"
            lines.append(f"{verdict}: {', '.join(labels)}")
        return [f"{self.task.name}: {line}" for line in lines]

    def to_json(self) -> dict[str, Any]:
        """Return the data and the figures by the key of the measure."""
        return {"data": self.task.label} | {
            change.measure.key: {
                "before": change.before,
                "after": change.after,
                "change": change.change,
            }
            for change in self.changes
        }


def compare_scores(measure: Measure, before: np.ndarray, after: np.ndarray) -> Change:
    """Return the change of a measure from its scores[n] of the same questions.

    The difference of rates has Newcombe's interval, that of means the bootstrap's over questions.
    """
    if measure.is_rate:
        change = PairedDifference.of((after == 1).tolist(), (before == 1).tolist()).to_json()
    else:
        change = _to_figure(bootstrap_mean_interval(after - before))
    figures = [measure.compute_figure(scores) for scores in (before, after)]
    return Change(measure, figures[0], figures[1], change, len(before))


def compare_losses(
    measure: Measure, before: Sequence[LMScore], after: Sequence[LMScore]
) -> Change | None:
    """Return the change of the loss per token from the scores of the same records.

    The intervals are those of the bootstrap over records, of which both models' are drawn together.
    A record that one of the models has no room for is left out; returns None if none is left.
    """
    sums = np.array(
        [
            (first.total_nats, first.num_tokens, second.total_nats, second.num_tokens)
            for first, second in zip(before, after, strict=True)
            if first.num_tokens and second.num_tokens
        ]
    )
    if not len(sums):
        return None
    losses = _losses(sums.mean(0, keepdims=True))
    # [3, 3]: low and high of each loss, below the loss itself.
    intervals = np.percentile(_losses(resample_means(sums)), (2.5, 97.5), axis=0)
    figures = [_to_figure(triple) for triple in np.concatenate([losses, intervals]).T]
    return Change(measure, figures[0], figures[1], figures[2], len(sums))


def _losses(means: np.ndarray) -> np.ndarray:
    """Return losses before and after, and their difference, from means of nats and tokens[n, 4].

    The result is float64[n, 3].
    """
    before, after = means[:, 0] / means[:, 1], means[:, 2] / means[:, 3]
    return np.stack([before, after, after - before], axis=1)


def _to_figure(triple: Any) -> Figure:
    return {key: float(value) for key, value in zip(("mean", "low", "high"), triple, strict=True)}
