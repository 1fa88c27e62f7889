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
        rows = _advance_sequences(new, reader, reader.prefill())
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
                [row.answer_ids[-1] for row in self.sequences],
                device=self._inference_batch.device,
            )
            hidden = self._inference_batch.decode_step(last)
            self.sequences = _advance_sequences(self.sequences, self._inference_batch, hidden)

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
    rows: list[ActiveSequence], reader: InferenceBatch, hidden: Tensor
) -> list[ActiveSequence]:
    """Append the next id to each row, given hidden[R, D] of its last one; drop finished rows.

    Returns the rows that go on, which are those of `reader` then.
    """
    for row, token_id in zip(rows, _sample_tokens(rows, reader, hidden), strict=True):
        if token_id is None:
            row.job.emit(Failure(500, OVERFLOW_MESSAGE))
            row.finish_reason = "gone"
        else:
            row.accept_token(token_id)
    return _select_unfinished(rows, reader)


def _sample_tokens(
    rows: list[ActiveSequence], reader: InferenceBatch, hidden: Tensor
) -> list[int | None]:
    """Choose the next id of each row; None where the model's output is not finite."""
    if all(row.is_greedy for row in rows):
        # The argmax needs no logits; -1 in its place saves a second wait for the device.
        is_finite = hidden.isfinite().all(-1)
        token_ids = torch.where(is_finite, reader.head.argmax(hidden), -1).tolist()
        return [None if token_id < 0 else token_id for token_id in token_ids]
    logits = reader.head.logits(hidden)
    finite = logits.isfinite().all(-1).tolist()
    return [
        row.sample_token(row_logits) if is_finite else None
        for row, row_logits, is_finite in zip(rows, logits.cpu(), finite, strict=True)
    ]


def _select_unfinished(rows: list[ActiveSequence], reader: InferenceBatch) -> list[ActiveSequence]:
    unfinished = [index for index, row in enumerate(rows) if row.finish_reason is None]
    if 0 < len(unfinished) < len(rows):
        reader.select_rows(torch.tensor(unfinished, device=reader.device))
    return [rows[index] for index in unfinished]
