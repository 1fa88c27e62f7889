"""The figures of one method: right answers by length and depth, beside trivial methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.metrics.proportion import Proportion, mean_share
from evaluate.needle.ask import Reply

# What answers without reading the question, and how it is called in the table.
TRIVIAL_METHODS = {"chance": "chance", "first": "first value", "last": "last value"}


@dataclass(frozen=True)
class LengthFigures:
    """The figures of the texts of one length."""

    right: Proportion
    """Over texts, each with the share of its questions that are answered rightly: questions about
    one text may go wrong together, so that they do not count as independent."""
    cells: tuple[Proportion, ...]
    """Right answers in each part of the text; one question of every text."""
    less_likely: Proportion | None
    """The share of the other values that are less likely than the true one, over texts; chance is
    one half. None for generated answers."""
    answered: Proportion
    """Replies that have a value, which a generated answer may lack."""
    trivial: dict[str, float]
    """The rates of right answers of TRIVIAL_METHODS on the same questions."""
    mean_values: float
    """Values in a text."""
    mean_tokens: float
    """Tokens of a prompt."""

    @property
    def best_trivial(self) -> float:
        """Return the highest rate of a trivial method."""
        return max(self.trivial.values())

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a results file."""
        figures: dict[str, Any] = {
            "right": self.right.to_json(),
            "texts": self.right.total,
            "questions": sum(cell.total for cell in self.cells),
            **self.trivial,
            "values": self.mean_values,
            "tokens": self.mean_tokens,
            "answered": self.answered.to_json(),
        }
        if self.less_likely is not None:
            figures["less_likely"] = self.less_likely.to_json()
        return figures | {"cells": [cell.to_json() for cell in self.cells]}


def compute_figures(replies_by_text: Sequence[Sequence[Reply]]) -> LengthFigures:
    """Return the figures of at least one text of a length, each with its replies in order."""
    replies = [reply for of_text in replies_by_text for reply in of_text]
    num_parts = len(replies_by_text[0])
    has_likelihood = "less_likely" in replies[0]
    return LengthFigures(
        right=mean_share([_mean([reply["right"] for reply in one]) for one in replies_by_text]),
        cells=tuple(
            Proportion(
                sum(of_text[part]["right"] for of_text in replies_by_text), len(replies_by_text)
            )
            for part in range(num_parts)
        ),
        less_likely=mean_share(
            [_mean([reply["less_likely"] for reply in one]) for one in replies_by_text]
        )
        if has_likelihood
        else None,
        answered=Proportion(sum(reply["choice"] is not None for reply in replies), len(replies)),
        trivial={
            name: _mean([reply["trivial"][name] for reply in replies]) for name in TRIVIAL_METHODS
        },
        mean_values=_mean([reply["values"] for reply in replies]),
        mean_tokens=_mean([reply["tokens"] for reply in replies]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
