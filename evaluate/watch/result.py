"""What the checkpoints of a run reach on the fixed questions, and what follows from it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.metrics_file import read_metrics
from evaluate.kinds.question_sets import Figure, Measure, QuestionSet, keep_answered
from evaluate.model_answer import ModelAnswer
from evaluate.watch.checkpoint_answers import StepAnswers
from evaluate.watch.declines import (
    MIN_QUESTIONS,
    Decline,
    find_decline,
    find_falling_pairs,
)


@dataclass(frozen=True)
class SetResult:
    """The answers of all steps to the questions of one set."""

    question_set: QuestionSet
    answers: list[list[ModelAnswer]]
    """The answer to each question, for each step."""

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Return the scores by the key of the measure, float64[steps, questions]."""
        by_step = [self.question_set.score(answers) for answers in self.answers]
        return {
            measure.key: np.stack([scores[measure.key] for scores in by_step])
            for measure in self.question_set.measures
        }

    @cached_property
    def figures(self) -> dict[str, list[Figure]]:
        """Return the figure of each step by the key of the measure, with a 95 % interval."""
        return {
            measure.key: [measure.compute_figure(values) for values in self.scores[measure.key]]
            for measure in self.question_set.measures
        }

    def means(self, measure: Measure) -> list[float]:
        """Return the mean score of each step."""
        return [float(values.mean()) for values in self.scores[measure.key]]


@dataclass(frozen=True)
class WatchResult:
    """The result of a run: its steps, their validation loss, and their answers to each set."""

    run: Path
    steps: list[StepAnswers]
    kept_steps: set[int]
    """The steps whose checkpoint exists; the others were asked before it was deleted."""
    losses: list[float | None]
    """The validation loss of each step; None if training did not measure it."""
    sets: list[SetResult]

    @cached_property
    def conclusions(self) -> list[str]:
        """Return in sentences where quality gets worse while the loss falls, or that it does not.

        See `find_decline` for what counts as worse.
        """
        if not find_falling_pairs(self.losses):
            return [
                "Whether quality gets worse while the loss falls cannot be told: the validation "
                "loss falls between no two of these steps, or metrics.jsonl does not have it."
            ]
        num_measures = sum(len(_quality_measures(result)) for result in self.sets)
        return [line for result in self.sets for line in self._conclude_set(result, num_measures)]

    def _conclude_set(self, result: SetResult, num_measures: int) -> list[str]:
        """Return a sentence for each decline in one set, or one that says that there is none."""
        label = result.question_set.label
        num_questions = len(result.question_set.questions)
        if num_questions < MIN_QUESTIONS:
            return [
                f"{label}: {num_questions} questions are too few to tell whether quality gets "
                f"worse (at least {MIN_QUESTIONS})."
            ]
        lines = []
        for measure in _quality_measures(result):
            scores = result.scores[measure.key]
            quality = scores if measure.higher_is_better else 1 - scores
            decline = find_decline(quality, self.losses, num_measures)
            if decline is not None:
                lines.append(self._describe_decline(result, measure, decline))
        return lines or [
            f"{label}: no measure gets worse, beyond its interval, between two steps of which the "
            "later has the lower validation loss."
        ]

    def _describe_decline(self, result: SetResult, measure: Measure, decline: Decline) -> str:
        """Return a sentence about a measure that gets worse."""
        earlier, later = decline.earlier, decline.later
        means = result.means(measure)
        change = measure.format_change(abs(decline.change))
        # A decline has a negative interval: its end nearest to 0 is the smaller change.
        interval = f"{measure.format_change(-decline.high)} – {measure.format_change(-decline.low)}"
        return (
            f"{result.question_set.label}: quality turns down while the loss still falls. From "
            f"step {self.steps[earlier].step:,} to step {self.steps[later].step:,}, "
            f"the {'rate of' if measure.is_rate else 'mean'} {measure.label} "
            f"{'falls' if measure.higher_is_better else 'rises'} from "
            f"{measure.format_mean(means[earlier])} to {measure.format_mean(means[later])}, by "
            f"{change} ({interval}, over the same {len(result.question_set.questions)} questions, "
            f"corrected for {decline.num_comparisons} comparisons), and the validation loss falls "
            f"from {self.losses[earlier]:.4f} to {self.losses[later]:.4f}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the contents of the results file, which `read_earlier_answers` reads.

        Sets and steps are lists, which a report does not show: they have a page of their own.
        """
        return {
            "conclusions": " ".join(self.conclusions),
            "sets": [
                {
                    "label": result.question_set.label,
                    "questions": result.question_set.texts,
                    "references": result.question_set.references,
                    "trivial": result.question_set.trivial_scores(),
                }
                for result in self.sets
            ],
            "steps": [
                {
                    **asdict(entry),
                    "validation_loss": self.losses[index],
                    "figures": [
                        {key: figures[index] for key, figures in result.figures.items()}
                        for result in self.sets
                    ],
                }
                for index, entry in enumerate(self.steps)
            ],
        }


def _quality_measures(result: SetResult) -> list[Measure]:
    """Return the measures of a set that a decline is looked for in."""
    return [measure for measure in result.question_set.measures if measure.is_quality]


def build_result(
    run: Path,
    steps: Sequence[StepAnswers],
    kept_steps: set[int],
    question_sets: Sequence[QuestionSet],
) -> WatchResult:
    """Return the result of the steps, without questions that were not answered at every step.

    Prints how many questions are left out. Raises UserError if none is left of a set, or if
    `metrics.jsonl` is damaged.
    """
    losses = read_validation_losses(run)
    sets = [
        SetResult(*keep_answered(question_set, [entry.answers[index] for entry in steps]))
        for index, question_set in enumerate(question_sets)
    ]
    return WatchResult(
        run, list(steps), kept_steps, [losses.get(entry.step) for entry in steps], sets
    )


def read_validation_losses(run: Path) -> dict[int, float]:
    """Return the validation loss of each step that training measured it at."""
    losses = {}
    for record in read_metrics(run):
        loss = record.get("loss")
        # A loss that is not finite is a string in the log.
        if record["kind"] == "validation" and isinstance(loss, float) and math.isfinite(loss):
            losses[record["step"]] = loss
    return losses
