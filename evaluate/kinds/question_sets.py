"""Fixed questions of one kind, and what the answers to them are scored by."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from common.errors import UserError
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.proportion import Proportion
from evaluate.metrics.repetition import is_looping
from evaluate.metrics.rouge import bootstrap_mean_interval
from evaluate.model_answer import ModelAnswer

# A mean or rate with its 95 % interval, as results files have it.
Figure = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """A score of single answers, which is averaged over the questions of a set."""

    key: str
    """Its name in results files."""
    label: str
    is_rate: bool = False
    """Whether the score of an answer is 0 or 1, so that the mean is the rate of such answers."""
    is_quality: bool = False
    """Whether its change for the worse counts as a decline of quality. Length and <eos> do not:
    answers may well become longer than the limit for a good reason."""
    higher_is_better: bool = True
    decimals: int = 4
    """Of a mean; rates are percentages with one."""
    if_higher: str | None = None
    """What a model is called whose mean is higher than that of another; None: nothing."""
    if_lower: str | None = None
    """What a model is called whose mean is lower."""

    def compute_figure(self, values: np.ndarray) -> Figure:
        """Return the mean of scores[n] with its 95 % interval.

        Rates have Wilson's interval and the keys of `Proportion.to_json`, means that of the
        bootstrap over questions and the keys `mean`, `low` and `high`.
        """
        if self.is_rate:
            return Proportion(float(values.sum()), len(values)).to_json()
        interval = bootstrap_mean_interval(values).tolist()
        return dict(zip(("mean", "low", "high"), interval, strict=True))

    def format_mean(self, mean: float) -> str:
        """Return a mean or rate as text, such as `41.2 %`."""
        return f"{100 * mean:.1f} %" if self.is_rate else f"{mean:.{self.decimals}f}"

    def format_change(self, change: float) -> str:
        """Return a difference of means or rates as text, such as `12.5 points`."""
        return f"{100 * change:.1f} points" if self.is_rate else f"{change:.{self.decimals}f}"

    def format_difference(self, figure: Figure) -> str:
        """Return a difference with its interval, such as `+12.5 points (+8.1 – +16.9)`.

        `figure` has the keys `mean`, `low` and `high`.
        """
        scale, decimals, unit = (100, 1, " points") if self.is_rate else (1, self.decimals, "")
        mean, low, high = (
            f"{scale * figure[key]:+.{decimals}f}" for key in ("mean", "low", "high")
        )
        return f"{mean}{unit} ({low} – {high})"

    def format_figure(self, figure: Figure) -> str:
        """Return a mean or rate with its interval, such as `41.2 % (38.9 – 43.5)`.

        `figure` has the keys `low`, `high`, and `rate` or `mean`.
        """
        if self.is_rate:
            return (
                f"{self.format_mean(figure['rate'])} "
                f"({100 * figure['low']:.1f} – {100 * figure['high']:.1f})"
            )
        low, high = (self.format_mean(figure[key]) for key in ("low", "high"))
        return f"{self.format_mean(figure['mean'])} ({low} – {high})"


LOOPS = Measure(
    "loops",
    "looping answers",
    is_rate=True,
    is_quality=True,
    higher_is_better=False,
    if_higher="loopier",
    if_lower="less loopy",
)
STOPPED = Measure(
    "stopped",
    "answers ended by <eos>",
    is_rate=True,
    if_higher="stops more often",
    if_lower="stops less often",
)
CHARACTERS = Measure(
    "characters", "characters per answer", decimals=1, if_higher="longer", if_lower="shorter"
)


@dataclass(frozen=True)
class QuestionSet(abc.ABC):
    """Questions of one kind from one place."""

    label: str
    """Where the questions are from."""
    questions: tuple[Any, ...]
    """All of one type, and none of them twice."""
    # What a question is called in the header of a table.
    question_name: ClassVar[str] = "question"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Return the measures of `score`."""
        return (LOOPS, STOPPED, CHARACTERS)

    @property
    @abc.abstractmethod
    def texts(self) -> list[str]:
        """Return the text of each question, to show."""

    @property
    def references(self) -> list[str] | None:
        """Return the true answer to each question; None if they have none."""
        return None

    @abc.abstractmethod
    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """Return the greedy answer to each question of `chunk`; None if there is no room for one.

        `batch` answers are decoded together.
        """

    def score(self, answers: Sequence[ModelAnswer]) -> dict[str, np.ndarray]:
        """Return the scores of the answers to all questions by the key of the measure, float64[n].

        All but the lengths are between 0 and 1.
        """
        texts = [answer.text for answer in answers]
        return {
            LOOPS.key: np.array([is_looping(text) for text in texts], np.float64),
            STOPPED.key: np.array([answer.has_eos for answer in answers], np.float64),
            CHARACTERS.key: np.array([len("".join(text.split())) for text in texts], np.float64),
        }

    def trivial_scores(self) -> dict[str, str]:
        """Return what a method without a model reaches, by the key of the measure."""
        return {}


def keep_answered(
    question_set: QuestionSet, answers_by_model: Sequence[Sequence[ModelAnswer | None]]
) -> tuple[QuestionSet, list[list[ModelAnswer]]]:
    """Return the questions that every model answered, and the answers of each model to them.

    Prints how many questions are left out. Raises UserError if none is left.
    """
    answered = [
        number
        for number in range(len(question_set.questions))
        if all(answers[number] is not None for answers in answers_by_model)
    ]
    num_dropped = len(question_set.questions) - len(answered)
    if num_dropped:
        print(f"left out, no room for an answer in the context: {num_dropped:,} questions")
    if not answered:
        raise UserError(f"{question_set.label}: no question fits the model's context")
    kept = replace(
        question_set, questions=tuple(question_set.questions[number] for number in answered)
    )
    return kept, [
        [answer for number in answered if (answer := answers[number]) is not None]
        for answers in answers_by_model
    ]
