"""Answers decoded together, while others come and go."""

from collections.abc import Sequence

import torch
from torch import Tensor

from chat.load_model import LoadedModel
from chat.serve.sequence import ActiveSequence, Failure, Job
from model.decode.batched_inference import InferenceBatch

OVERFLOW_MESSAGE = "the computation overflowed: start the server with --precision fp32"


class ContinuousBatch:
    """The rows that are being answered, behind one key-value cache.

    Newcomers are read beside it and joined to it (continuous batching, Yu et al. 2022, Orca): nobody waits for the
    longest answer, and no prompt is read twice.
    """

    def __init__(self, weights: LoadedModel) -> None:
        self._loaded_model = weights
        self._inference_batch: InferenceBatch | None = None
        self.sequences: list[ActiveSequence] = []

    @torch.inference_mode()
    def admit(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of these jobs, say their first ids, and let them go on with the others."""
        tokenizer, model = self._loaded_model.tokenizer, self._loaded_model.model
        config = model.config
        new = [
            ActiveSequence(
                job,
                tokenizer,
                config.vocab_size,
                self._loaded_model.context_length,
                config.stop_ids,
            )
            for job in jobs
        ]
        if not new:
            return
        old, self.sequences = (
            self.sequences,
            self.sequences + new,
        )  # from here on a fault finds them among the rows
        reader = InferenceBatch(
            model,
            [job.prompt for job in jobs],
            max_new_tokens=max(row.num_remaining for row in new),
        )
        rows = _advance_sequences(new, reader, reader.prompts)
        if rows and old and self._inference_batch is not None:
            reader = InferenceBatch.concat(
                [self._inference_batch, reader],
                max_new_tokens=max(row.num_remaining for row in old + rows),
            )
        if rows:
            self._inference_batch = reader
        self.sequences = old + rows

    @torch.inference_mode()
    def decode_step(self) -> None:
        """Say the next id of each row."""
        if self.sequences and self._inference_batch is not None:
            last = torch.tensor(
                [[row.answer_ids[-1]] for row in self.sequences],
                device=self._inference_batch.device,
            )
            self.sequences = _advance_sequences(self.sequences, self._inference_batch, last)

    @torch.inference_mode()
    def drop_finished(self, now: float) -> None:
        """End the rows to which nobody listens and those whose time is up at `now`."""
        for row in self.sequences:
            if row.job.is_cancelled:
                row.finish("gone")
            elif now >= row.job.deadline:
                row.finish("timeout")
        if self._inference_batch is not None:
            self.sequences = _select_unfinished(self.sequences, self._inference_batch)

    def fail_all(self, status: int, message: str) -> None:
        """End all rows without an answer."""
        for row in self.sequences:
            if row.finish_reason is None:
                row.job.emit(Failure(status, message))
        self.sequences, self._inference_batch = [], None


def _advance_sequences(
    rows: list[ActiveSequence], reader: InferenceBatch, ids: Tensor
) -> list[ActiveSequence]:
    """Read ids[R, T] and say what follows in each row; the rows that go on, which are those of `reader` then."""
    for row, chosen in zip(rows, _sample_tokens(rows, reader, ids), strict=True):
        if chosen is None:
            row.job.emit(Failure(500, OVERFLOW_MESSAGE))
            row.finish_reason = "gone"
        else:
            row.accept_token(chosen)
    return _select_unfinished(rows, reader)


def _sample_tokens(
    rows: list[ActiveSequence], reader: InferenceBatch, ids: Tensor
) -> list[int | None]:
    """Read ids[R, T] and choose the next of each row; None where numbers are not finite."""
    hidden = reader.forward_hidden(ids)
    if all(row.is_greedy for row in rows):
        # Nobody needs the logits themselves. One look at what a GPU has made, not two.
        chosen = torch.where(hidden.isfinite().all(-1), reader.head.argmax(hidden), -1).tolist()
        return [None if its < 0 else its for its in chosen]
    logits = reader.head.logits(hidden)
    finite = logits.isfinite().all(-1).tolist()
    return [
        row.sample_token(its) if usable else None
        for row, its, usable in zip(rows, logits.cpu(), finite, strict=True)
    ]


def _select_unfinished(rows: list[ActiveSequence], reader: InferenceBatch) -> list[ActiveSequence]:
    unfinished = [index for index, row in enumerate(rows) if row.finish_reason is None]
    if 0 < len(unfinished) < len(rows):
        reader.select_rows(torch.tensor(unfinished, device=reader.device))
    return [rows[index] for index in unfinished]
