"""Answers decoded together, while others come and go."""

from collections.abc import Sequence

import torch
from torch import Tensor

from chat.serve.sequence import Failed, Job, Row
from chat.load_model import Weights
from model.decode.batched_inference import BatchReader

OVERFLOW = "the computation overflowed: start the server with --precision fp32"


class Batch:
    """The rows that are being answered, behind one key-value cache.

    Newcomers are read beside it and joined to it (continuous batching, Yu et al. 2022, Orca): nobody waits for the
    longest answer, and no prompt is read twice.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._reader: BatchReader | None = None
        self.rows: list[Row] = []

    @torch.inference_mode()
    def admit(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of these jobs, say their first ids, and let them go on with the others."""
        tokenizer, model = self._weights.tokenizer, self._weights.model
        config = model.config
        new = [Row(job, tokenizer, config.vocab_size, self._weights.context, config.stop_ids) for job in jobs]
        if not new:
            return
        old, self.rows = self.rows, self.rows + new  # from here on a fault finds them among the rows
        reader = BatchReader(model, [job.prompt for job in jobs], new=max(row.left for row in new))
        rows = _advance(new, reader, reader.prompts)
        if rows and old and self._reader is not None:
            reader = BatchReader.join([self._reader, reader], new=max(row.left for row in old + rows))
        if rows:
            self._reader = reader
        self.rows = old + rows

    @torch.inference_mode()
    def step(self) -> None:
        """Say the next id of each row."""
        if self.rows and self._reader is not None:
            last = torch.tensor([[row.said[-1]] for row in self.rows], device=self._reader.device)
            self.rows = _advance(self.rows, self._reader, last)

    @torch.inference_mode()
    def release(self, now: float) -> None:
        """End the rows to which nobody listens and those whose time is up at `now`."""
        for row in self.rows:
            if row.job.gone:
                row.finish("gone")
            elif now >= row.job.deadline:
                row.finish("timeout")
        if self._reader is not None:
            self.rows = _alive(self.rows, self._reader)

    def fail(self, status: int, message: str) -> None:
        """End all rows without an answer."""
        for row in self.rows:
            if row.end is None:
                row.job.tell(Failed(status, message))
        self.rows, self._reader = [], None


def _advance(rows: list[Row], reader: BatchReader, ids: Tensor) -> list[Row]:
    """Read ids[R, T] and say what follows in each row; the rows that go on, which are those of `reader` then."""
    for row, chosen in zip(rows, _choose(rows, reader, ids), strict=True):
        if chosen is None:
            row.job.tell(Failed(500, OVERFLOW))
            row.end = "gone"
        else:
            row.take(chosen)
    return _alive(rows, reader)


def _choose(rows: list[Row], reader: BatchReader, ids: Tensor) -> list[int | None]:
    """Read ids[R, T] and choose the next of each row; None where numbers are not finite."""
    hidden = reader.hidden(ids)
    if all(row.likeliest for row in rows):
        # Nobody needs the logits themselves. One look at what a GPU has made, not two.
        chosen = torch.where(hidden.isfinite().all(-1), reader.head.likeliest(hidden), -1).tolist()
        return [None if its < 0 else its for its in chosen]
    logits = reader.head.logits(hidden)
    finite = logits.isfinite().all(-1).tolist()
    return [row.choose(its) if usable else None for row, its, usable in zip(rows, logits.cpu(), finite, strict=True)]


def _alive(rows: list[Row], reader: BatchReader) -> list[Row]:
    kept = [index for index, row in enumerate(rows) if row.end is None]
    if 0 < len(kept) < len(rows):
        reader.select(torch.tensor(kept, device=reader.device))
    return [rows[index] for index in kept]
