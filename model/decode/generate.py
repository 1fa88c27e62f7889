"""Generation of a single sequence, id by id, for chat and for samples during training."""

from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor

from model.decode.logits_processors import build_logits_processors, process_logits, sample_token
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling
from model.llama import Llama

# Why an answer ended: with a stop id, after `max_new_tokens` ids, or because the context is full.
FinishReason = Literal["eos", "length", "context"]


def max_prompt_tokens(context_length: int, max_new_tokens: int) -> int:
    """Return the maximum length of a prompt, in ids, that leaves room for an answer after it.

    The room is `max_new_tokens`, but at most a quarter of the context.
    """
    return context_length - min(max_new_tokens, context_length // 4)


def generate(
    model: Llama,
    prompt: list[int],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    prefix_cache: PrefixCache | None = None,
) -> Generator[int, None, FinishReason]:
    """Yield the ids of an answer to `prompt`; return why it ended.

    A stop id ends it and is not yielded. With a `prefix_cache`, the longest prefix in common with
    the sequence in it is not processed again, and its capacity replaces the model's context length.
    The ids are the same with and without it, except for rounding. `seed` is for sampling. Raises
    FloatingPointError if the model's output is not finite, as after an overflow in fp16.
    """
    if prefix_cache is None:
        context_length = model.config.max_position_embeddings
        prefix_cache = PrefixCache(model, min(len(prompt) + max_new_tokens, context_length))
    generator = torch.Generator().manual_seed(seed)
    processors = build_logits_processors(
        repetition_penalty=sampling.repetition_penalty, no_repeat_ngram=sampling.no_repeat_ngram
    )
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        num_ids = len(prompt) + len(answer)
        if num_ids >= prefix_cache.capacity:
            return "context"
        hidden = prefix_cache.decode_step(answer[-1]) if answer else prefix_cache.prefill(prompt)
        # The argmax alone is faster than computing all logits.
        if sampling.is_greedy and not processors:
            _check_finite(hidden, num_ids)
            next_id = int(prefix_cache.head.argmax(hidden))
        else:
            logits = prefix_cache.head.logits(hidden)
            _check_finite(logits, num_ids)
            generated = torch.tensor([answer], dtype=torch.int64)
            # Sampled on the CPU, so that a seed gives the same draws on every device.
            logits = process_logits(processors, logits.cpu(), generated)
            next_id = sample_token(logits[0], sampling, generator)
        if next_id in model.config.stop_ids:
            return "eos"
        yield next_id
        answer.append(next_id)
    return "length"


def _check_finite(numbers: Tensor, position: int) -> None:
    """Raise FloatingPointError if any of the numbers is NaN or infinite."""
    # One reduction: the maximum of absolute values is NaN or infinite if any number is.
    if not numbers.abs().amax().isfinite():
        raise FloatingPointError(f"the model's output at position {position} is not finite")
