"""The interface of training examples: token ids, and a mask of the targets that have a loss.

An example of n positions is n + 1 ids. Its targets are the ids after the first, and the loss mask
tells which of them have a loss. An example must fit in a row: a record that does not is truncated
where that is harmless, or left out, and counted. The kinds of records (`data.kinds`) implement the
interface.
"""

from typing import Protocol

import numpy as np

# Ids, int64[positions + 1], and the loss mask of all except the first, bool[positions].
Example = tuple[np.ndarray, np.ndarray]


class Examples(Protocol):
    """The examples of one split of one shard set, for rows of a certain length."""

    num_truncated: int  # examples that are truncated to fit a row (in epoch 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of positions of each example in an epoch, int64[n]; 0: left out."""

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids and the loss mask of example `index` in an epoch."""
