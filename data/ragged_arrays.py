"""Arrays of rows of different lengths on disk: the numbered files of one split of a shard set.

    train-00000.tokens.npy    the rows of shard 0, concatenated
    train-00000.offsets.npy   start of each row, and the end of the last (int64[n + 1])

The values may also be a text file, whose rows are its lines. The files stay on disk: a corpus
larger than memory can be read in any order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError


class RaggedWriter:
    """Collect the rows of one shard after another, and write two files for each."""

    def __init__(
        self, folder: Path, split: str, values: str, offsets: str, dtype: np.dtype[Any]
    ) -> None:
        """Write into `folder`, which must exist.

        `values` and `offsets` are the ends of the names of the files. `values` that end in .npy are
        written as an array, others as the bytes of the rows.
        """
        self._folder = folder
        self._split = split
        self._values_name = values
        self._offsets_name = offsets
        self._dtype = dtype
        self._num_shards = 0
        self._start_shard()

    def _start_shard(self) -> None:
        """Start an empty shard: drop the rows collected for the one before it."""
        self._rows: list[np.ndarray] = []
        self._offsets = [0]

    @property
    def num_values(self) -> int:
        """Return the number of values in the rows of the current shard."""
        return self._offsets[-1]

    def append(self, row: np.ndarray) -> None:
        """Append one row to the current shard."""
        self._rows.append(np.asarray(row, dtype=self._dtype))
        self._offsets.append(self._offsets[-1] + len(row))

    def write_shard(self) -> None:
        """Write the files of the current shard, unless it has no rows, and start the next one."""
        if not self._rows:
            return
        shard = f"{self._split}-{self._num_shards:05d}"
        values = np.concatenate(self._rows)
        if self._values_name.endswith(".npy"):
            np.save(self._folder / f"{shard}.{self._values_name}", values, allow_pickle=False)
        else:
            values.tofile(self._folder / f"{shard}.{self._values_name}")
        offsets = np.array(self._offsets, dtype=np.int64)
        np.save(self._folder / f"{shard}.{self._offsets_name}", offsets, allow_pickle=False)
        self._num_shards += 1
        self._start_shard()


class RaggedArray:
    """The rows of all shards of a split, read through memory maps."""

    def __init__(
        self,
        folder: Path,
        split: str,
        values: str,
        offsets: str,
        dtype_kind: str,
        *,
        columns: int | None = None,
    ) -> None:
        """Map the files of all shards into memory; `values` and `offsets` as in `RaggedWriter`.

        `dtype_kind` is NumPy's: "u" for unsigned integers, "i" for signed ones. The values have one
        dimension, or two if `columns` is given. Raises UserError if a file is damaged, or if the
        offsets of a shard do not fit its values.
        """
        paths = sorted(folder.glob(f"{split}-*.{values}"))
        self._values = [_map_values(path, dtype_kind, columns) for path in paths]
        self._offsets = [
            _map_offsets(path.with_name(path.name.removesuffix(values) + offsets), path, array)
            for path, array in zip(paths, self._values, strict=True)
        ]
        # The first row and the first value of each shard, and the totals at the end.
        self._first_rows = np.cumsum([0] + [len(offsets) - 1 for offsets in self._offsets])
        self._first_values = np.cumsum([0] + [len(values) for values in self._values])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def num_values(self) -> int:
        """Return the number of values of all rows."""
        return int(self._first_values[-1])

    def lengths(self) -> np.ndarray:
        """Return the number of values of each row, int64[len(self)]."""
        if not self._offsets:
            return np.zeros(0, np.int64)
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def row(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the values `[start, stop)` of row `index`, a view in the on-disk type."""
        # The last shard whose first row is not after this one.
        shard = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        row = index - int(self._first_rows[shard])
        row_start, end = (int(offset) for offset in self._offsets[shard][row : row + 2])
        if stop is not None:
            end = min(row_start + stop, end)
        return self._values[shard][row_start + start : end]

    def read_stream(self, start: int, stop: int) -> np.ndarray:
        """Return values `[start, stop)` of the concatenation of all rows, int64."""
        parts = []
        for values, shard_start in zip(self._values, self._first_values[:-1], strict=True):
            # The requested values, clipped to those of this shard.
            low = max(start - int(shard_start), 0)
            high = min(stop - int(shard_start), len(values))
            if low < high:
                parts.append(values[low:high].astype(np.int64))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def iter_shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the values of each shard, and the index of each row's first value, int64[n]."""
        for values, offsets in zip(self._values, self._offsets, strict=True):
            yield values, np.asarray(offsets[:-1])


def _map_values(path: Path, dtype_kind: str, columns: int | None) -> np.ndarray:
    """Memory-map the values of a shard; dtype and columns as in `RaggedArray`.

    Raises UserError if the file is missing, if it does not hold such an array, or if its header
    promises more than the file holds.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            array = np.memmap(path, np.uint8, mode="r")
    # A missing file raises OSError, a damaged header any of the others.
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {reason}: prepare {path.parent} again") from None
    row_shape = (columns,) if columns else ()
    # np.load returns something other than an array for a .npz archive.
    is_valid = isinstance(array, np.ndarray) and array.dtype.kind == dtype_kind
    if not is_valid or array.shape[1:] != row_shape:
        raise UserError(f"{path} does not hold what its name says: prepare {path.parent} again")
    # A plain view: slices of a memmap, which is a subclass, take several times as long.
    return array.view(np.ndarray)


def _map_offsets(path: Path, values_path: Path, values: np.ndarray) -> np.ndarray:
    """Memory-map the offsets of a shard, which cut its values into rows.

    Raises UserError if they do not rise from 0 to the number of values.
    """
    offsets = _map_values(path, "i", None)
    is_valid = len(offsets) and offsets[0] == 0 and offsets[-1] == len(values)
    if not is_valid or (np.diff(offsets) < 0).any():
        raise UserError(f"{path}: does not fit {values_path.name}: prepare {path.parent} again")
    return offsets
