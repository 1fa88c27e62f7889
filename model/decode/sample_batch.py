"""Sampled answers to many prompts in batches, several to each prompt, every answer with its seed.

An answer has the ids that `generate` draws with the same seed, except for the rounding of sums in
another order. It therefore depends neither on the other answers nor on the size of a batch.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.decode.batch_generate import DecodedAnswer
from model.decode.batched_inference import InferenceBatch, should_compact
from model.decode.logits_processors import build_logits_processors, process_logits, sample_token
from model.decode.sampling import Sampling
from model.llama import Llama


def derive_seed(*parts: int | str) -> int:
    """Return a seed that follows from all parts, such as a run's seed, a step, and an index.

    The same parts always give the same seed, other parts almost certainly another one.
    """
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    # Seeds of PyTorch are below 2**64, those that fit a signed number are accepted everywhere.
    return int.from_bytes(digest, "big") >> 1


@torch.inference_mode()
def sample_batch(
    model: Llama,
    prompts: Sequence[list[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[DecodedAnswer]]:
    """Return the answers to each prompt, one for each of its seeds, in the order of both.

    `seeds[i]` are the seeds of the answers to `prompts[i]`. An answer ends with a stop id, after
    `max_new_tokens`, or at the end of the model's context. `batch_size` answers are decoded
    together; those to one prompt share its prefill. `on_progress` is called after each batch with
    the number of its answers. Raises ValueError if a prompt is empty or longer than the context,
    and FloatingPointError if the model's output is not finite, as after an overflow in fp16.
    """
    context = model.config.max_position_embeddings
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} ids; it must have from 1 to {context}"
            )
    answers = [
        [
            _SampledAnswer(prompt, sampling, seed, min(max_new_tokens, context - len(prompt)))
            for seed in prompt_seeds
        ]
        for prompt, prompt_seeds in zip(prompts, seeds, strict=True)
    ]
    # Longest prompts first, as in `generate_batch`; the answers to one prompt stay together.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    queue = [(index, answer) for index in order for answer in answers[index]]
    for start in range(0, len(queue), batch_size):
        rows = queue[start : start + batch_size]
        _answer_rows(model, prompts, rows)
        if on_progress:
            on_progress(len(rows))
    return [
        [DecodedAnswer(each.ids, each.stop_id is not None, each.stop_id) for each in group]
        for group in answers
    ]


@dataclass(eq=False)
class _SampledAnswer:
    """The ids of an answer so far, and what draws the next one."""

    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    limit: int
    ids: list[int] = field(default_factory=list)
    stop_id: int | None = None

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._processors = build_logits_processors(
            repetition_penalty=self.sampling.repetition_penalty,
            no_repeat_ngram=self.sampling.no_repeat_ngram,
        )

    @property
    def is_finished(self) -> bool:
        """Return whether a stop id or the limit has ended the answer."""
        return self.stop_id is not None or len(self.ids) >= self.limit

    def draw(self, logits: Tensor, stop_ids: Sequence[int]) -> None:
        """Draw the next id from logits[V] (fp32, on the CPU); a stop id is not appended."""
        generated = torch.tensor([self.ids], dtype=torch.int64)
        # Processors take a batch; this is one of a single row.
        logits = process_logits(self._processors, logits[None], generated)[0]
        next_id = sample_token(logits, self.sampling, self._generator)
        if next_id in stop_ids:
            self.stop_id = next_id
        else:
            self.ids.append(next_id)


def _answer_rows(
    model: Llama, prompts: Sequence[list[int]], queued: Sequence[tuple[int, _SampledAnswer]]
) -> None:
    """Draw the ids of some answers, each given with the index of its prompt."""
    rows = [(index, answer) for index, answer in queued if not answer.is_finished]
    if not rows:
        return
    prompt_indices = list(dict.fromkeys(index for index, _ in rows))
    active = [answer for _, answer in rows]
    batch = InferenceBatch(
        model,
        [prompts[index] for index in prompt_indices],
        max_new_tokens=max(answer.limit for answer in active),
        rows_per_prompt=-(-len(rows) // len(prompt_indices)),
    )
    hidden = batch.prefill()
    if len(rows) > len(prompt_indices):
        row_prompts = [prompt_indices.index(index) for index, _ in rows]
        row_indices = torch.tensor(row_prompts, device=batch.device)
        batch.select_rows(row_indices)
        hidden = hidden[row_indices]
    while True:
        _draw_next(active, batch.head.logits(hidden), model.config.stop_ids)
        unfinished = [row for row, answer in enumerate(active) if not answer.is_finished]
        if not unfinished:
            return
        if should_compact(len(unfinished), len(active)):
            batch.select_rows(torch.tensor(unfinished, device=batch.device))
            active = [active[row] for row in unfinished]
        # A finished row that is still in the batch gets any id: its output is not used.
        last_ids = [answer.ids[-1] if answer.ids else 0 for answer in active]
        hidden = batch.decode_step(torch.tensor(last_ids, device=batch.device))


def _draw_next(answers: Sequence[_SampledAnswer], logits: Tensor, stop_ids: Sequence[int]) -> None:
    """Draw the next id of each unfinished answer from logits[R, V].

    Raises FloatingPointError if the logits of such an answer are not finite.
    """
    # One copy and one reduction for all rows: each would make the host wait for a GPU.
    logits = logits.cpu()
    is_finite = logits.abs().amax(-1).isfinite().tolist()
    for answer, row, is_row_finite in zip(answers, logits, is_finite, strict=True):
        if answer.is_finished:
            continue
        if not is_row_finite:
            position = len(answer.prompt) + len(answer.ids)
            raise FloatingPointError(f"the model's output at position {position} is not finite")
        answer.draw(row, stop_ids)
