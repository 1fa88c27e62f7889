"""Continue a text, one id at a time."""

from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor

from model.decode.fast.inference_model import inference_model_for
from model.decode.kv_cache import KVCache
from model.decode.logits_processors import apply_repetition_penalty, banned_ngram_tokens
from model.decode.sampling import MIN_TEMPERATURE, Sampling
from model.llama import Llama

# Why a text ended: the model said so, it reached `max_new_tokens`, or no position was left.
FinishReason = Literal["eos", "length", "context"]
_TOP_P_CANDIDATES = 512


def max_prompt_tokens(context_length: int, max_new_tokens: int) -> int:
    """Ids that a prompt may have: what a context leaves beside an answer, for which a quarter of it is enough."""
    return context_length - min(max_new_tokens, context_length // 4)


class PrefixCache:
    """A model and what it has read of one text: what two texts have in common from their start is read once."""

    def __init__(self, model: Llama, capacity: int) -> None:
        """`capacity`: the ids of the longest text."""
        self.capacity, weight = capacity, model.model.norm.weight
        self._decoder, self._device = inference_model_for(model), weight.device
        self._cache = KVCache(model.config, 1, capacity, self._device, weight.dtype)
        self._ids: list[int] = []

    def logits_after(self, ids: list[int]) -> Tensor:
        """logits[V] (fp32, on the CPU) of what follows `ids`, which are at most `capacity` and at least one.

        FloatingPointError where they are not finite, as an overflow in fp16 makes them.
        """
        return self._check_finite(
            self._decoder.head.logits(self._hidden_after(ids))[0], len(ids)
        ).cpu()

    def argmax_after(self, ids: list[int]) -> int:
        """The argmax of what `logits_after` gives, found without computing all of it where that is faster."""
        return int(self._decoder.head.argmax(self._check_finite(self._hidden_after(ids), len(ids))))

    def _check_finite(self, numbers: Tensor, position: int) -> Tensor:
        if not numbers.abs().amax().isfinite():
            raise FloatingPointError(f"what the model makes of position {position} is not finite")
        return numbers

    def _hidden_after(self, ids: list[int]) -> Tensor:
        num_cached = min(_common_prefix_length(self._ids, ids), len(ids) - 1)
        # Forgotten first and known last, so that an interrupted reading leaves nothing that is taken for read.
        del self._ids[num_cached:]
        self._cache.length = num_cached
        new = torch.tensor([ids[num_cached:]], device=self._device)
        hidden = self._decoder.forward(
            new, self._cache, None, self._attention_mask(num_cached, len(ids))
        )
        self._ids += ids[num_cached:]
        return hidden

    def _attention_mask(self, num_cached: int, total: int) -> Tensor | None:
        """What each new position may look at, where plain causality does not say it: bool[1, 1, new, total]."""
        if num_cached == 0 or total - num_cached == 1:
            return None
        return torch.ones(
            1, 1, total - num_cached, total, dtype=torch.bool, device=self._device
        ).tril(num_cached)


def _common_prefix_length(first: list[int], second: list[int]) -> int:
    """The length of what both begin with."""
    if second[: len(first)] == first:  # the usual case, at the speed of a comparison
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(second))


def generate(
    model: Llama,
    prompt: list[int],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    prefix_cache: PrefixCache | None = None,
) -> Generator[int, None, FinishReason]:
    """Yield new ids after `prompt` until a stop id (not yielded), `max_new_tokens`, or the end of the model's context.

    Returns why it ended. A `prefix_cache` that has read a text which begins like the prompt saves reading it again; its
    capacity then stands for the model's context. Rounding apart, the ids are the same. Raises FloatingPointError when
    the logits are not finite, as an overflow in fp16 makes them.
    """
    prefix_cache = prefix_cache or PrefixCache(
        model, min(len(prompt) + max_new_tokens, model.config.max_position_embeddings)
    )
    generator = torch.Generator().manual_seed(seed)
    generated_mask = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        if len(prompt) + len(answer) >= prefix_cache.capacity:
            return "context"
        if sampling.is_greedy:
            next_id = prefix_cache.argmax_after(prompt + answer)
        else:
            logits = prefix_cache.logits_after(prompt + answer)
            logits[banned_ngram_tokens([answer], sampling.no_repeat_ngram)[0]] = -torch.inf
            next_id = sample_token(logits, generated_mask, sampling, generator)
        if next_id in model.config.stop_ids:
            return "eos"
        yield next_id
        answer.append(next_id)
        generated_mask[next_id] = True
    return "length"


def sample_token(
    logits: Tensor, generated_mask: Tensor, sampling: Sampling, generator: torch.Generator
) -> int:
    """Draw an id from logits[V]; `generated_mask`[V] marks the ids that the repetition penalty applies to."""
    logits = apply_repetition_penalty(logits, generated_mask, sampling.repetition_penalty)
    if sampling.temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p >= 1.0:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    # To sort a whole vocabulary takes as long as the model; a few hundred ids nearly always hold top_p.
    ordered, order = probabilities.topk(min(_TOP_P_CANDIDATES, len(logits)))
    if ordered.sum() < sampling.top_p:
        ordered, order = probabilities.sort(descending=True)
    # An id stays while those before it do not already hold top_p, and the likeliest always stays.
    in_nucleus = ordered.cumsum(-1) - ordered < sampling.top_p
    in_nucleus[0] = True
    return int(order[torch.multinomial(ordered * in_nucleus, 1, generator=generator)])
