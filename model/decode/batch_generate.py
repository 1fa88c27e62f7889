"""Answers to many prompts together, for evaluation: greedy or with beam search.

A prompt gets the ids that it would get alone, except for the rounding of sums in another order.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from model.decode.beam_search import beam_search
from model.decode.free_processors import FreeProcessors
from model.decode.logits_processors import LogitsProcessor, NoveltyPenalty
from model.decode.sampling import Sampling
from model.decode.scheduler import ScheduledAnswer, Scheduler
from model.llama import Llama

_GREEDY = Sampling(temperature=0.0)
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """The ids of an answer, without the stop id, and whether a stop id ended it."""

    ids: list[int]
    reached_stop_id: bool
    """False if the limit of length ended it."""
    stop_id: int | None = field(default=None, compare=False)
    """The stop id that ended it, except after beam search; a model may have several."""


@torch.inference_mode()
def generate_batch(
    model: Llama,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    processors: Sequence[LogitsProcessor] = (),
    novelty_penalty: float = 0.0,
    batch_size: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[DecodedAnswer]:
    """Return the answer to each prompt, in the order of the prompts.

    An answer ends with a stop id, after `max_new_tokens`, at the end of the model's context, or
    where the model's output is not finite. With one beam, the most likely id is taken at every
    step; with several, see `model.decode.beam_search`, which alone uses `length_penalty`.
    `novelty_penalty` lowers the logits of ids that are not in the prompt. Up to `batch_size`
    prompts are decoded together. `on_progress` is called now and then with the number of answers
    that ended since the last call. Raises ValueError if a prompt is empty or longer than the
    context.
    """
    context = model.config.max_position_embeddings
    check_prompts(prompts, context)
    # Longest first, so that memory runs out at the beginning, if at all, and so that the prompts
    # that are processed together need little padding.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    if num_beams == 1:
        novelty_by_prompt = novelty_processors(model, prompts, novelty_penalty)
        scheduled = [
            _EvaluatedAnswer(
                prompt,
                limit=limit,
                stop_ids=model.config.stop_ids,
                sampling=_GREEDY,
                processors=[*processors, *novelty],
            )
            for prompt, limit, novelty in zip(prompts, limits, novelty_by_prompt, strict=True)
        ]
        with FreeProcessors() as free_processors:
            run_all(
                model,
                [scheduled[index] for index in order],
                batch_size,
                on_progress,
                before_step=free_processors.adapt,
            )
        return [to_decoded(answer) for answer in scheduled]
    # A prompt that fills the context, or gets no answer, keeps this empty one.
    answers = [DecodedAnswer(ids=[], reached_stop_id=False)] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        if max(limits[index] for index in indices) > 0:
            generated, has_answer = beam_search(
                model,
                [prompts[index] for index in indices],
                [limits[index] for index in indices],
                num_beams=num_beams,
                length_penalty=length_penalty,
                processors=processors,
                prompt_processors=novelty_processors(
                    model,
                    [prompts[index] for index in indices],
                    novelty_penalty,
                    model.model.norm.weight.device,
                ),
            )
            for row, index in enumerate(indices):
                if has_answer[row]:
                    ids = generated[row, : limits[index]].tolist()
                    answers[index] = _truncate_at_stop(ids, model.config.stop_ids)
        if on_progress:
            on_progress(len(indices))
    return answers


def novelty_processors(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    penalty: float,
    device: torch.device = _CPU,
) -> list[list[LogitsProcessor]]:
    """Return the logits processors of each prompt alone: a `NoveltyPenalty`, or none for 0.

    They process logits on `device`; those of the scheduler are on the CPU.
    """
    if not penalty:
        return [[] for _ in prompts]
    return [
        [NoveltyPenalty(penalty, torch.tensor([*{*prompt, *model.config.stop_ids}], device=device))]
        for prompt in prompts
    ]


def check_prompts(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raise ValueError if a prompt is empty or longer than `context` ids."""
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} ids; it must have from 1 to {context}"
            )


def run_all(
    model: Llama,
    answers: Sequence[ScheduledAnswer],
    batch_size: int,
    on_progress: Callable[[int], object] | None,
    before_step: Callable[[], object] | None = None,
) -> None:
    """Generate all answers, up to `batch_size` together, in this order of their beginnings."""
    scheduler = Scheduler[ScheduledAnswer](model, max_rows=batch_size)
    scheduler.waiting.extend(answers)
    while scheduler.has_work:
        if before_step:
            before_step()
        ended = scheduler.step()
        if on_progress and ended:
            on_progress(len(ended))


def to_decoded(answer: ScheduledAnswer) -> DecodedAnswer:
    """Return a finished answer."""
    return DecodedAnswer(answer.ids, answer.stop_id is not None, answer.stop_id)


class _EvaluatedAnswer(ScheduledAnswer):
    """An answer that ends where the model's output is not finite: evaluation goes on."""

    def overflow(self) -> None:
        """See `ScheduledAnswer.overflow`."""
        self.limit = len(self.ids)


def _truncate_at_stop(ids: list[int], stop_ids: Collection[int]) -> DecodedAnswer:
    """Return the answer before the first stop id, or all of it without one."""
    for length, token_id in enumerate(ids):
        if token_id in stop_ids:
            return DecodedAnswer(ids[:length], reached_stop_id=True)
    return DecodedAnswer(ids, reached_stop_id=False)
