"""Answers to many prompts in batches, for evaluation: greedy or with beam search.

A prompt gets the ids that it would get alone, except for the rounding of sums in another order.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.decode.batched_inference import InferenceBatch, should_compact
from model.decode.beam_search import beam_search
from model.decode.logits_processors import LogitsProcessor, process_logits
from model.llama import Llama


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """The ids of an answer, without the stop id, and whether a stop id ended it."""

    ids: list[int]
    reached_stop_id: bool
    """False if the limit of length ended it."""
    stop_id: int | None = field(default=None, compare=False)
    """The stop id of a sampled answer; a model may have several."""


@torch.inference_mode()
def generate_batch(
    model: Llama,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    processors: Sequence[LogitsProcessor] = (),
    batch_size: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[DecodedAnswer]:
    """Return the answer to each prompt, in the order of the prompts.

    An answer ends with a stop id, after `max_new_tokens`, or at the end of the model's context.
    With one beam, the most likely id is taken at every step; with several, see
    `model.decode.beam_search`, which alone uses `length_penalty`. `batch_size` prompts are decoded
    together. `on_progress` is called after each batch with the number of prompts in that batch.
    Raises ValueError if a prompt is empty or longer than the context.
    """
    context = model.config.max_position_embeddings
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} ids; it must have from 1 to {context}"
            )
    # A prompt that fills the context keeps this empty answer.
    answers = [DecodedAnswer(ids=[], reached_stop_id=False)] * len(prompts)
    # Sorted by length, so that the prompts of a batch need little padding. Longest first, so that
    # memory runs out in the first batch, if at all.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch_size):
        batch_indices = order[start : start + batch_size]
        batch_prompts = [prompts[index] for index in batch_indices]
        limits = [min(max_new_tokens, context - len(prompt)) for prompt in batch_prompts]
        if max(limits) > 0:
            if num_beams == 1:
                generated = _greedy_search(model, batch_prompts, limits, processors)
            else:
                generated = beam_search(
                    model,
                    batch_prompts,
                    limits,
                    num_beams=num_beams,
                    length_penalty=length_penalty,
                    processors=processors,
                )
            for index, ids, limit in zip(batch_indices, generated.tolist(), limits, strict=True):
                answers[index] = _truncate_at_stop(ids[:limit], model.config.stop_ids)
        if on_progress:
            on_progress(len(batch_indices))
    return answers


def _truncate_at_stop(ids: list[int], stop_ids: Collection[int]) -> DecodedAnswer:
    """Return the answer before the first stop id, or all of it without one."""
    for length, token_id in enumerate(ids):
        if token_id in stop_ids:
            return DecodedAnswer(ids[:length], reached_stop_id=True)
    return DecodedAnswer(ids, reached_stop_id=False)


def _greedy_search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    processors: Sequence[LogitsProcessor],
) -> Tensor:
    """Return the greedily decoded ids, int64[R, max(limits)].

    Row i gets at most limits[i] new ids. Ids of a row after its stop id or limit are undefined.
    """
    longest = max(limits)
    batch = InferenceBatch(model, prompts, max_new_tokens=longest)
    device = batch.device
    stop_ids = torch.tensor(model.config.stop_ids, device=device)
    row_limits = torch.tensor(limits, device=device)
    generated = torch.full((len(prompts), longest), model.config.eos_token_id, device=device)
    # The row of `generated` that each row of the batch writes. It shrinks with the batch.
    answer_rows = torch.arange(len(prompts), device=device)
    is_finished = row_limits == 0
    hidden = batch.prefill()
    for step in range(longest):
        # Without processors the argmax suffices, which is faster than all logits.
        if processors:
            logits = batch.head.logits(hidden)
            ids = process_logits(processors, logits, generated[answer_rows, :step]).argmax(-1)
        else:
            ids = batch.head.argmax(hidden)
        generated[answer_rows, step] = ids
        is_finished |= torch.isin(ids, stop_ids) | (step + 1 >= row_limits)
        if step + 1 == longest:
            break
        # Looking for finished rows waits for the device, so it is not done at every step.
        if step % batch.host_sync_interval == 0:
            active_rows = (~is_finished).nonzero().flatten()
            if not len(active_rows):
                break
            if should_compact(len(active_rows), len(answer_rows)):
                batch.select_rows(active_rows)
                answer_rows = answer_rows[active_rows]
                ids = ids[active_rows]
                is_finished = is_finished[active_rows]
                row_limits = row_limits[active_rows]
        hidden = batch.decode_step(ids)
    return generated
