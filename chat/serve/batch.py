"""Continuous batching: decode many sequences together, while new ones start and others end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from chat.load_model import LoadedModel
from chat.serve.sequence import ActiveSequence, GenerationRequest
from model.decode.batched_inference import InferenceBatch

OVERFLOW_MESSAGE = "the computation overflowed: start the server with --precision fp32"


class ContinuousBatch:
    """The running sequences and their shared KV cache.

    New prompts are prefilled in a batch of their own, whose KV cache is then concatenated to that
    of the running sequences (continuous batching, Yu et al. 2022, Orca). A new request thus does
    not wait for the longest running answer, and no prompt is processed twice.
    """

    def __init__(self, loaded_model: LoadedModel) -> None:
        self._loaded_model = loaded_model
        # Row i of the inference batch belongs to sequences[i].
        self._inference_batch: InferenceBatch | None = None
        self.sequences: list[ActiveSequence] = []

    @torch.inference_mode()
    def prefill(self, requests: Sequence[GenerationRequest]) -> None:
        """Process the prompts of new requests, sample their first ids, and add them to the batch.

        A sequence that its first id ends is not added.
        """
        if not requests:
            return
        model = self._loaded_model.model
        new_sequences = [self._new_sequence(request) for request in requests]
        running_sequences = self.sequences
        # Added before the computation, so that `fail_all` reaches them if it raises.
        self.sequences = running_sequences + new_sequences
        inference_batch = InferenceBatch(
            model,
            [request.prompt for request in requests],
            max_new_tokens=max(sequence.num_remaining_tokens for sequence in new_sequences),
        )
        hidden = inference_batch.prefill()
        new_sequences = _append_next_tokens(new_sequences, inference_batch, hidden)
        if new_sequences:
            if running_sequences and self._inference_batch is not None:
                # Room for the longest of the remaining answers.
                all_sequences = running_sequences + new_sequences
                inference_batch = InferenceBatch.concat(
                    [self._inference_batch, inference_batch],
                    max_new_tokens=max(sequence.num_remaining_tokens for sequence in all_sequences),
                )
            self._inference_batch = inference_batch
        self.sequences = running_sequences + new_sequences

    def _new_sequence(self, request: GenerationRequest) -> ActiveSequence:
        """Return the sequence that will answer a request, without any ids yet."""
        config = self._loaded_model.model.config
        return ActiveSequence(
            request,
            self._loaded_model.tokenizer,
            self._loaded_model.context_length,
            stop_ids=config.stop_ids,
        )

    @torch.inference_mode()
    def decode_step(self) -> None:
        """Compute and append the next id of every sequence."""
        if not self.sequences or self._inference_batch is None:
            return
        last_ids = torch.tensor(
            [sequence.answer_ids[-1] for sequence in self.sequences],
            device=self._inference_batch.device,
        )
        hidden = self._inference_batch.decode_step(last_ids)
        self.sequences = _append_next_tokens(self.sequences, self._inference_batch, hidden)

    @torch.inference_mode()
    def drop_expired(self, now: float) -> None:
        """Finish the sequences whose client has disconnected or whose deadline is over.

        `now` is on the clock of time.monotonic.
        """
        for sequence in self.sequences:
            if sequence.request.is_cancelled:
                sequence.finish("cancelled")
            elif now >= sequence.request.deadline:
                sequence.finish("timeout")
        if self._inference_batch is not None:
            self.sequences = _select_unfinished(self.sequences, self._inference_batch)

    def fail_all(self, status: int, message: str) -> None:
        """Fail every sequence that is not finished, and empty the batch."""
        for sequence in self.sequences:
            if sequence.finish_reason is None:
                sequence.fail(status, message)
        self.sequences = []
        self._inference_batch = None


def _append_next_tokens(
    sequences: list[ActiveSequence], inference_batch: InferenceBatch, hidden: Tensor
) -> list[ActiveSequence]:
    """Append the next id to every sequence, given hidden[B, D] of its last position.

    Returns the unfinished sequences, and reduces `inference_batch` to their rows.
    """
    next_ids = _next_tokens(sequences, inference_batch, hidden)
    for sequence, next_id in zip(sequences, next_ids, strict=True):
        if next_id is None:
            sequence.fail(500, OVERFLOW_MESSAGE)
        else:
            sequence.append_token(next_id)
    return _select_unfinished(sequences, inference_batch)


def _next_tokens(
    sequences: list[ActiveSequence], inference_batch: InferenceBatch, hidden: Tensor
) -> list[int | None]:
    """Return the next id of every sequence, None where hidden[B, D] or the logits overflowed."""
    if all(sequence.is_greedy for sequence in sequences):
        # The argmax alone is cheaper than all logits. Overflow is marked in the same tensor, as -1,
        # because every copy from a GPU waits for its kernels.
        is_finite = hidden.isfinite().all(-1)
        argmax_ids = torch.where(is_finite, inference_batch.head.argmax(hidden), -1).tolist()
        return [None if argmax_id < 0 else argmax_id for argmax_id in argmax_ids]
    logits = inference_batch.head.logits(hidden)
    is_finite_row = logits.isfinite().all(-1).tolist()
    return [
        sequence.sample_token(row) if is_finite else None
        for sequence, row, is_finite in zip(sequences, logits.cpu(), is_finite_row, strict=True)
    ]


def _select_unfinished(
    sequences: list[ActiveSequence], inference_batch: InferenceBatch
) -> list[ActiveSequence]:
    """Return the unfinished sequences, and drop the rows of the others from the KV cache."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.finish_reason is None]
    # An empty batch is not decoded, so its rows may stay until it is replaced.
    if 0 < len(rows) < len(sequences):
        inference_batch.select_rows(torch.tensor(rows, device=inference_batch.device))
    return [sequences[row] for row in rows]
