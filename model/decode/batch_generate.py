"""Answers to many prompts at once, for evaluation: greedy or by beam search, without sampling.

A batch gives each prompt the ids it would get alone (up to the rounding of sums taken in another order).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decode.batched_inference import BatchReader, worth_dropping
from model.decode.beam_search import beam_search
from model.llama import Llama
from model.decode.logits_processors import Penalties


@dataclass(frozen=True, slots=True)
class Decoded:
    """The ids of an answer, and whether it ended by a stop id (which is not among them) or was cut at its limit."""

    ids: list[int]
    stopped: bool


@torch.inference_mode()
def decode(
    model: Llama, prompts: Sequence[list[int]], *, max_new_tokens: int, beams: int = 1, length_penalty: float = 1.0,
    repetition_penalty: float = 1.0, no_repeat_ngram: int = 0, batch: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[Decoded]:
    """The answer to each prompt, in the order of the prompts, `batch` of them decoded at a time.

    An answer ends with one of the model's stop ids, after `max_new_tokens`, or with the model's context. One beam takes the
    likeliest id at every step; several follow `model.decode.beam_search`; penalties are those of `model.decode.logits_processors`. `on_progress`
    gets the number of prompts just answered. ValueError for a prompt that is empty or longer than the context.
    """
    context = model.config.max_position_embeddings
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= context:
            raise ValueError(f"prompt {index} has {len(prompt)} ids; from 1 to {context} fit the model's context")
    penalties = Penalties(repetition_penalty, no_repeat_ngram)
    answers = [Decoded([], False)] * len(prompts)
    # Longest first: prompts of about one length share a batch, and what does not fit the memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        limits = [min(max_new_tokens, context - len(prompts[index])) for index in chosen]
        if max(limits) > 0:
            rows = [prompts[index] for index in chosen]
            said = (
                _greedy(model, rows, limits, penalties) if beams == 1
                else beam_search(model, rows, limits, beams, length_penalty, penalties)
            )
            for index, ids, limit in zip(chosen, said.tolist(), limits, strict=True):
                answers[index] = _cut(ids[:limit], model.config.stop_ids)
        if on_progress:
            on_progress(len(chosen))
    return answers


def _cut(ids: list[int], stops: Collection[int]) -> Decoded:
    end = next((place for place, index in enumerate(ids) if index in stops), None)
    return Decoded(ids[:end], end is not None)


def _greedy(model: Llama, prompts: Sequence[Sequence[int]], limits: list[int], penalties: Penalties) -> Tensor:
    """The likeliest ids, int64[R, longest limit]; behind a row's stop id or limit they mean nothing."""
    reader = BatchReader(model, prompts, new=max(limits))
    stops, ends = (torch.tensor(each, device=reader.device) for each in (model.config.stop_ids, limits))
    said = torch.full((len(prompts), max(limits)), model.config.eos_token_id, device=reader.device)
    rows = torch.arange(len(prompts), device=reader.device)  # whose answer each row of the reader is
    over = ends == 0
    # Without penalties nobody needs the logits themselves.
    plain = penalties == Penalties()
    found = reader.read_prompts_likeliest() if plain else reader.read_prompts()
    for step in range(max(limits)):
        ids = found if plain else penalties.apply(found, said[rows, :step]).argmax(-1)
        said[rows, step] = ids
        over |= torch.isin(ids, stops) | (step + 1 >= ends)
        if step % reader.look_every == 0 or step + 1 == max(limits):
            alive = (~over).nonzero().flatten()
            if not len(alive):
                break
            if worth_dropping(len(alive), len(rows)):
                reader.select(alive)
                rows, ids, over, ends = rows[alive], ids[alive], over[alive], ends[alive]
        found = reader.read_likeliest(ids[:, None]) if plain else reader.read(ids[:, None])
    return said
