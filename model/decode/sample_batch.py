"""Sampled answers to many prompts together, several to each prompt, every answer with its seed.

An answer has the ids that `generate` draws with the same seed, except for the rounding of sums in
another order. It therefore depends neither on the other answers nor on the size of a batch.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from model.decode.batch_generate import (
    DecodedAnswer,
    check_prompts,
    novelty_processors,
    run_all,
    to_decoded,
)
from model.decode.logits_processors import build_logits_processors
from model.decode.sampling import Sampling
from model.decode.scheduler import ScheduledAnswer
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
    novelty_penalty: float = 0.0,
    batch_size: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[DecodedAnswer]]:
    """Return the answers to each prompt, one for each of its seeds, in the order of both.

    `seeds[i]` are the seeds of the answers to `prompts[i]`. An answer ends with a stop id, after
    `max_new_tokens`, or at the end of the model's context. `novelty_penalty` lowers the logits of
    ids that are not in the prompt. Up to `batch_size` answers are decoded together; those to one
    prompt share its prefill. `on_progress` is called now and then with the number of answers that
    ended since the last call. Raises ValueError if a prompt is empty or longer than the context,
    and FloatingPointError if the model's output is not finite, as after an overflow in fp16.
    """
    context = model.config.max_position_embeddings
    check_prompts(prompts, context)
    processors = build_logits_processors(
        repetition_penalty=sampling.repetition_penalty, no_repeat_ngram=sampling.no_repeat_ngram
    )
    novelty_by_prompt = novelty_processors(model, prompts, novelty_penalty)
    answers = [
        [
            ScheduledAnswer(
                prompt,
                limit=min(max_new_tokens, context - len(prompt)),
                stop_ids=model.config.stop_ids,
                sampling=sampling,
                processors=[*processors, *novelty],
                seed=seed,
            )
            for seed in prompt_seeds
        ]
        for prompt, prompt_seeds, novelty in zip(prompts, seeds, novelty_by_prompt, strict=True)
    ]
    # Longest prompts first, as in `generate_batch`; the answers to one prompt stay together.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    queue = [answer for index in order for answer in answers[index]]
    run_all(model, queue, batch_size, on_progress)
    return [[to_decoded(answer) for answer in group] for group in answers]
