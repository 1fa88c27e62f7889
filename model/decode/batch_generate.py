"""Answers to many prompts at once, for evaluation: greedy or by beam search, without sampling.

A batch gives each prompt the ids it would get alone (up to the rounding of sums taken in another order).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decode.batched_inference import InferenceBatch, should_compact
from model.decode.beam_search import beam_search
from model.decode.logits_processors import RepetitionPenalties
from model.llama import Llama


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """The ids of an answer, and whether it ended by a stop id (which is not among them) or was cut at its limit."""

    ids: list[int]
    reached_stop_id: bool


@torch.inference_mode()
def generate_batch(
    model: Llama,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    batch_size: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[DecodedAnswer]:
    """The answer to each prompt, in the order of the prompts, `batch_size` of them decoded at a time.

    An answer ends with one of the model's stop ids, after `max_new_tokens`, or with the model's context. One beam takes the
    likeliest id at every step; several follow `model.decode.beam_search`; penalties are those of `model.decode.logits_processors`. `on_progress`
    gets the number of prompts just answered. ValueError for a prompt that is empty or longer than the context.
    """
    context = model.config.max_position_embeddings
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} ids; from 1 to {context} fit the model's context"
            )
    penalties = RepetitionPenalties(repetition_penalty, no_repeat_ngram)
    answers = [DecodedAnswer([], False)] * len(prompts)
    # Longest first: prompts of about one length share a batch, and what does not fit the memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch_size):
        batch_indices = order[start : start + batch_size]
        limits = [min(max_new_tokens, context - len(prompts[index])) for index in batch_indices]
        if max(limits) > 0:
            rows = [prompts[index] for index in batch_indices]
            generated = (
                _greedy_search(model, rows, limits, penalties)
                if num_beams == 1
                else beam_search(model, rows, limits, num_beams, length_penalty, penalties)
            )
            for index, ids, limit in zip(batch_indices, generated.tolist(), limits, strict=True):
                answers[index] = _truncate_at_stop(ids[:limit], model.config.stop_ids)
        if on_progress:
            on_progress(len(batch_indices))
    return answers


def _truncate_at_stop(ids: list[int], stop_ids: Collection[int]) -> DecodedAnswer:
    stop_position = next((place for place, index in enumerate(ids) if index in stop_ids), None)
    return DecodedAnswer(ids[:stop_position], stop_position is not None)


def _greedy_search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    penalties: RepetitionPenalties,
) -> Tensor:
    """The likeliest ids, int64[R, longest limit]; behind a row's stop id or limit they mean nothing."""
    inference_batch = InferenceBatch(model, prompts, max_new_tokens=max(limits))
    stop_ids, row_limits = (
        torch.tensor(each, device=inference_batch.device)
        for each in (model.config.stop_ids, limits)
    )
    generated = torch.full(
        (len(prompts), max(limits)), model.config.eos_token_id, device=inference_batch.device
    )
    answer_rows = torch.arange(
        len(prompts), device=inference_batch.device
    )  # whose answer each row of the reader is
    is_finished = row_limits == 0
    # Without penalties nobody needs the logits themselves.
    use_argmax = penalties == RepetitionPenalties()
    step_output = inference_batch.prefill_argmax() if use_argmax else inference_batch.prefill()
    for step in range(max(limits)):
        ids = (
            step_output
            if use_argmax
            else penalties.apply(step_output, generated[answer_rows, :step]).argmax(-1)
        )
        generated[answer_rows, step] = ids
        is_finished |= torch.isin(ids, stop_ids) | (step + 1 >= row_limits)
        if step % inference_batch.host_sync_interval == 0 or step + 1 == max(limits):
            active_rows = (~is_finished).nonzero().flatten()
            if not len(active_rows):
                break
            if should_compact(len(active_rows), len(answer_rows)):
                inference_batch.select_rows(active_rows)
                answer_rows, ids, is_finished, row_limits = (
                    answer_rows[active_rows],
                    ids[active_rows],
                    is_finished[active_rows],
                    row_limits[active_rows],
                )
        step_output = (
            inference_batch.forward_argmax(ids[:, None])
            if use_argmax
            else inference_batch.forward(ids[:, None])
        )
    return generated
