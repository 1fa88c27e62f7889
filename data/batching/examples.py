"""The interface of training examples: token ids, and a mask of the targets that have a loss.

An example of n positions is n + 1 ids. Its targets are the ids after the first, and the loss mask
tells which of them have a loss. An example must fit in a row: a record that does not is truncated
where that is harmless, or left out, and counted. The kinds of records (`data.kinds`) implement the
interface.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

# Ids, int64[positions + 1], and the loss mask of all except the first, bool[positions].
Example = tuple[np.ndarray, np.ndarray]


class PackableExamples(Protocol):
    """What can be packed into rows: examples in any form, of one split of one shard set."""

    num_truncated: int  # examples that are truncated to fit a row (in epoch 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of positions of each example in an epoch, int64[n]; 0: left out."""

    def example(self, index: int, epoch: int) -> Any:
        """Return example `index` in an epoch."""


class Examples(PackableExamples, Protocol):
    """The examples of one split of one shard set, for rows of a certain length."""

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids and the loss mask of example `index` in an epoch."""


class KeptParts(NamedTuple):
    """What a row keeps of each record."""

    num_ids: np.ndarray  # int64[n], 0: the record is left out
    num_answers: np.ndarray  # int64[n], answers that are kept, each whole


class ExampleLengths(Protocol):
    """The lengths of the examples of consecutive records in epoch 0, from their spans alone.

    `spans`, int64[k, 2], and `first_spans`, int64[n], describe n records as
    `Records.iter_shard_spans` does; `first_record` is the index of the first of them in its set.
    """

    def whole_spans(self, spans: np.ndarray, first_record: int) -> np.ndarray:
        """Return start and stop of each answer in the whole example, int64[k, 2].

        The last answer ends with the example.
        """

    def fit(
        self, spans: np.ndarray, first_spans: np.ndarray, first_record: int, length: int
    ) -> KeptParts:
        """Return what rows of `length` positions keep of the records."""
