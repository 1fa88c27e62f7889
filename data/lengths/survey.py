"""The figures of a survey: quantiles of lengths, what rows of each length keep, the recommendation.

The recommendation for records with answers is the shortest row length at which at most
`MAX_LOST_ANSWERS` of the answers are left out, and with them their `<eos>`, and at most
`MAX_CUT_EXAMPLES` of the examples are cut or left out. For text, whose rows are always full and
lose nothing, it is the shortest that has room for `MIN_WHOLE_DOCUMENTS` of the documents. Where no
length meets the rule, it is the longest.
"""

import abc
import math
from dataclasses import dataclass

import numpy as np

from data.batching.examples import ExampleLengths, KeptParts
from data.kinds.base import TextLengths
from data.lengths.batches import Batch
from data.lengths.counter import LengthCounter
from data.lengths.packing import count_packed_rows

ROW_LENGTHS = (256, 512, 1024, 2048, 4096)
QUANTILES = (0.5, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)
MAX_LOST_ANSWERS = 0.005
MAX_CUT_EXAMPLES = 0.05
MIN_WHOLE_DOCUMENTS = 0.9
# The figures of one row length by name: counts are int, shares of 1 are float.
Figures = dict[str, int | float]


@dataclass(frozen=True)
class Recommendation:
    """A row length and why."""

    length: int
    reason: str

    def __str__(self) -> str:
        return f"{self.length:,}: {self.reason}"


class Survey(abc.ABC):
    """The lengths of all records of an epoch."""

    parts: tuple[str, ...]  # what is measured of each record; one part is `whole`
    noun: str  # what the records are called

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.tokens = {part: LengthCounter() for part in self.parts}
        self.characters = {part: LengthCounter() for part in self.parts}

    @property
    def num_records(self) -> int:
        """Return how many records an epoch has."""
        return self.tokens["whole"].num_lengths

    def counters(self) -> dict[str, dict[str, LengthCounter]]:
        """Return all counters by unit and part."""
        return {"tokens": self.tokens, "characters": self.characters}

    @abc.abstractmethod
    def add(self, batch: Batch, example_lengths: ExampleLengths, repeats: np.ndarray) -> None:
        """Count the records of a batch, each as often as `repeats`, int64[n], says.

        `example_lengths` are those of their kind.
        """

    @abc.abstractmethod
    def row_figures(self, length: int, batch_tokens: int) -> Figures:
        """Return what rows of `length` keep, and the steps of `batch_tokens` that an epoch has."""

    @abc.abstractmethod
    def format_row(self, figures: Figures) -> dict[str, str]:
        """Return `row_figures` as the cells of a table by the names of their columns."""

    @abc.abstractmethod
    def recommend(self) -> Recommendation:
        """Return the recommended row length, by the rule of this module."""


class _RowCounts:
    """What rows of one length keep of the examples."""

    def __init__(self, length: int) -> None:
        self.num_cut = 0
        self.num_left_out = 0
        self.num_lost_answers = 0
        self.num_lost_positions = 0
        # Examples by their positions, int64[length + 1]; 0: left out.
        self.examples_by_length = np.zeros(length + 1, np.int64)

    def add(
        self, num_ids: np.ndarray, num_answers: np.ndarray, kept: KeptParts, repeats: np.ndarray
    ) -> None:
        """Count examples that are so long when whole; all arrays are int64[n]."""
        # The last id of an example is only a target, and makes no position.
        positions = np.maximum(kept.num_ids - 1, 0)
        is_left_out = positions == 0
        is_cut = ~is_left_out & (kept.num_ids < num_ids)
        self.num_cut += int((is_cut * repeats).sum())
        self.num_left_out += int((is_left_out * repeats).sum())
        self.num_lost_answers += int(((num_answers - kept.num_answers) * repeats).sum())
        self.num_lost_positions += int(((num_ids - 1 - positions) * repeats).sum())
        np.add.at(self.examples_by_length, positions, repeats)


class AnswerSurvey(Survey):
    """The lengths of records with answers, which fine-tuning cuts to fit and packs into rows."""

    parts = ("prompt", "answer", "whole")
    noun = "examples"

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self._turns = LengthCounter()
        self._rows = {length: _RowCounts(length) for length in ROW_LENGTHS}

    def counters(self) -> dict[str, dict[str, LengthCounter]]:
        """See `Survey`."""
        return {**super().counters(), "turns": {"whole": self._turns}}

    def add(self, batch: Batch, example_lengths: ExampleLengths, repeats: np.ndarray) -> None:
        """See `Survey`."""
        num_answers = np.diff(batch.first_spans, append=len(batch.spans))
        answer_repeats = np.repeat(repeats, num_answers)
        starts, stops = example_lengths.whole_spans(batch.spans, batch.first_record).T
        # An example ends with its last answer.
        num_ids = stops[batch.first_spans + num_answers - 1]
        self.tokens["prompt"].add(starts, answer_repeats)
        self.tokens["answer"].add(stops - starts, answer_repeats)
        self.tokens["whole"].add(num_ids, repeats)
        if batch.texts is not None:
            prompts = [length for text in batch.texts for length in text.prompts]
            answers = [length for text in batch.texts for length in text.answers]
            self.characters["prompt"].add(np.array(prompts), answer_repeats)
            self.characters["answer"].add(np.array(answers), answer_repeats)
            self.characters["whole"].add(_whole_lengths(batch.texts), repeats)
            self._turns.add(np.array([text.num_turns for text in batch.texts]), repeats)
        for length, row_counts in self._rows.items():
            kept = example_lengths.fit(batch.spans, batch.first_spans, batch.first_record, length)
            row_counts.add(num_ids, num_answers, kept, repeats)

    def row_figures(self, length: int, batch_tokens: int) -> Figures:
        """See `Survey`. Tokens are positions, as training counts them."""
        counts = self._rows[length]
        num_positions = self.tokens["whole"].total - self.num_records
        num_rows = count_packed_rows(counts.examples_by_length, length)
        return {
            "cut": counts.num_cut,
            "left_out": counts.num_left_out,
            "not_whole_share": self._not_whole_share(length),
            "lost_tokens": counts.num_lost_positions,
            "lost_tokens_share": counts.num_lost_positions / num_positions,
            "lost_answers": counts.num_lost_answers,
            "lost_answers_share": self._lost_answers_share(length),
            "rows": num_rows,
            "fill": (num_positions - counts.num_lost_positions) / max(num_rows * length, 1),
            "steps": _count_steps(num_rows, length, batch_tokens),
        }

    def format_row(self, figures: Figures) -> dict[str, str]:
        """See `Survey`."""
        return {
            "examples cut": f"{figures['cut']:,}",
            "left out": f"{figures['left_out']:,}",
            "tokens lost": f"{figures['lost_tokens_share']:.2%}",
            "answers without <eos>": f"{figures['lost_answers']:,} "
            f"({figures['lost_answers_share']:.2%})",
            "packed rows": f"{figures['rows']:,}",
            "full": f"{figures['fill']:.1%}",
            "steps an epoch": f"{figures['steps']:,}",
        }

    def _lost_answers_share(self, length: int) -> float:
        """Return the share of answers that rows of `length` leave out."""
        return self._rows[length].num_lost_answers / self.tokens["answer"].num_lengths

    def _not_whole_share(self, length: int) -> float:
        """Return the share of examples that rows of `length` cut or leave out."""
        counts = self._rows[length]
        return (counts.num_cut + counts.num_left_out) / self.num_records

    def recommend(self) -> Recommendation:
        """See `Survey`."""
        sufficient = (
            length
            for length in ROW_LENGTHS
            if self._lost_answers_share(length) <= MAX_LOST_ANSWERS
            and self._not_whole_share(length) <= MAX_CUT_EXAMPLES
        )
        length = next(sufficient, ROW_LENGTHS[-1])
        figures = self.row_figures(length, batch_tokens=length)
        return Recommendation(
            length,
            f"cuts {figures['lost_answers_share']:.1%} of the answers and "
            f"{figures['not_whole_share']:.1%} of the examples, and fills {figures['fill']:.0%} of "
            "packed rows",
        )


class TextSurvey(Survey):
    """The lengths of documents, which pretraining reads as one stream that is cut into rows."""

    parts = ("whole",)
    noun = "documents"

    def add(self, batch: Batch, example_lengths: ExampleLengths, repeats: np.ndarray) -> None:
        """See `Survey`."""
        self.tokens["whole"].add(batch.num_ids, repeats)
        if batch.texts is not None:
            self.characters["whole"].add(_whole_lengths(batch.texts), repeats)

    def row_figures(self, length: int, batch_tokens: int) -> Figures:
        """See `Survey`.

        The shares of documents that a row cuts, and of the tokens in them, are means over all
        places in a row where a document may begin.
        """
        lengths, counts = self.tokens["whole"].histogram()
        num_tokens = self.tokens["whole"].total
        # A row of n positions holds n + 1 ids, of which the last begins the next row. A document of
        # m ids is whole if it begins at one of the first n - m + 2 places.
        cut_shares = np.where(lengths > length + 1, 1, np.clip((lengths - 2) / length, 0, 1))
        is_longer = lengths > length + 1
        # As `data.batching.text_rows` counts rows.
        num_rows = max(1, -(-(num_tokens - 1) // length))
        return {
            "longer": int(counts[is_longer].sum()),
            "longer_share": float(counts[is_longer].sum() / self.num_records),
            "longer_tokens_share": float((counts * lengths)[is_longer].sum() / num_tokens),
            "cut_documents_share": float((counts * cut_shares).sum() / self.num_records),
            "cut_tokens_share": float((counts * lengths * cut_shares).sum() / num_tokens),
            "rows": num_rows,
            "steps": _count_steps(num_rows, length, batch_tokens),
        }

    def format_row(self, figures: Figures) -> dict[str, str]:
        """See `Survey`."""
        return {
            "longer documents": f"{figures['longer']:,} ({figures['longer_share']:.2%})",
            "of all tokens": f"{figures['longer_tokens_share']:.2%}",
            "documents cut by a row": f"{figures['cut_documents_share']:.2%}",
            "of the tokens": f"{figures['cut_tokens_share']:.2%}",
            "rows": f"{figures['rows']:,}",
            "steps an epoch": f"{figures['steps']:,}",
        }

    def recommend(self) -> Recommendation:
        """See `Survey`."""
        figures = {length: self.row_figures(length, batch_tokens=length) for length in ROW_LENGTHS}
        sufficient = (
            length
            for length in ROW_LENGTHS
            if 1 - figures[length]["longer_share"] >= MIN_WHOLE_DOCUMENTS
        )
        length = next(sufficient, ROW_LENGTHS[-1])
        return Recommendation(
            length,
            f"has room for {1 - figures[length]['longer_share']:.1%} of the documents; "
            f"{figures[length]['cut_tokens_share']:.1%} of the tokens are in documents that a row "
            "cuts",
        )


def _whole_lengths(texts: list[TextLengths]) -> np.ndarray:
    """Return the characters of whole records, int64[n]."""
    return np.array([text.whole for text in texts])


def _count_steps(num_rows: int, length: int, batch_tokens: int) -> int:
    """Return the optimizer steps of an epoch, as training does; a step has a row at least."""
    return max(1, math.ceil(num_rows / max(1, batch_tokens // length)))
