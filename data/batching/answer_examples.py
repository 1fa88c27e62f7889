"""Training examples with a loss on the answers of a record, one example for each record."""

from collections.abc import Callable
from typing import Any

import numpy as np

from data.batching.examples import Example, KeptParts
from data.records import EncodedRecord
from data.stored_records import Records


class AnswerLengths:
    """The lengths of `AnswerExamples`. Implements `ExampleLengths`."""

    def whole_spans(self, spans: np.ndarray, first_record: int) -> np.ndarray:
        """See `ExampleLengths`: an example has the ids of its record."""
        return spans.astype(np.int64)

    def fit(
        self, spans: np.ndarray, first_spans: np.ndarray, first_record: int, length: int
    ) -> KeptParts:
        """See `ExampleLengths`: a record is cut after the last answer that fits."""
        span_stops = spans[:, 1].astype(np.int64)
        # A row of n positions holds n + 1 ids: n inputs, and the targets one further on.
        fits = span_stops <= length + 1
        # A record ends with its last answer, so what it keeps is the end of an answer's span, the
        # largest that fits, or 0 if not even the first answer fits.
        num_ids = np.maximum.reduceat(np.where(fits, span_stops, 0), first_spans)
        return KeptParts(num_ids, np.add.reduceat(fits.astype(np.int64), first_spans))


class AnswerExamples:
    """Records with a loss on their answers, cut after the last answer that fits a row.

    Implements `Examples`; all epochs have the same examples.
    """

    def __init__(
        self, records: Records[Any], length: int, encode: Callable[[int], EncodedRecord]
    ) -> None:
        """Find where each record is cut, for rows of `length` positions.

        `encode` returns the ids and spans of the record with a certain index.
        """
        self._encode = encode
        # Number of ids that each record keeps.
        stops = [np.zeros(0, np.int64)]
        num_truncated = 0
        example_lengths = AnswerLengths()
        for spans, first_spans in records.iter_shard_spans():
            # The lengths of these examples do not depend on the index of a record.
            kept = example_lengths.fit(spans, first_spans, 0, length)
            num_answers = np.diff(first_spans, append=len(spans))
            num_truncated += int(((kept.num_answers < num_answers) & (kept.num_ids > 0)).sum())
            stops.append(kept.num_ids)
        self._stops = np.concatenate(stops)
        self.num_truncated = num_truncated

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of positions of each example, int64[n]; 0: no answer fits a row."""
        # The last id of an example is only a target, and makes no position.
        return np.maximum(self._stops - 1, 0)

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids up to the last answer that fits, and the loss mask of the answers."""
        stop = int(self._stops[index])
        ids, spans = self._encode(index)
        loss_mask = np.zeros(stop, bool)
        # Answers behind `stop` have an empty slice of the mask.
        for answer_start, answer_stop in spans:
            loss_mask[answer_start:answer_stop] = True
        # The targets are the ids after the first, so the mask of the first id is dropped.
        return np.array(ids[:stop], dtype=np.int64), loss_mask[1:]
