"""Generation of a single sequence, for chat and for samples during training.

Where an answer copies, several ids of it are computed in one pass (`model.decode.prompt_lookup`).
"""

from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor

from model.decode.free_processors import FreeProcessors
from model.decode.lm_head import LMHead, clear_argmax
from model.decode.logits_processors import build_logits_processors, process_logits, sample_token
from model.decode.prefix_cache import PrefixCache
from model.decode.prompt_lookup import PromptLookup
from model.decode.sampling import Sampling
from model.llama import Llama

# Why an answer ended: with a stop id, after `max_new_tokens` ids, or because the context is full.
FinishReason = Literal["eos", "length", "context"]

# The logits of a pass over several positions differ from those of decode steps by rounding, in fp32
# by some 1e-5. Where the two highest are closer than this, decode steps choose the id.
_CLEAR_MARGIN = 1e-4


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

    Drafts of `PromptLookup` do not change greedy ids in fp32: an id that is not clear after a draft
    is chosen again from decode steps. Sampled ids, and those of int8 and 16-bit weights, are the
    same except for rounding.
    """
    if prefix_cache is None:
        context_length = model.config.max_position_embeddings
        prefix_cache = PrefixCache(model, min(len(prompt) + max_new_tokens, context_length))
    max_tokens = min(max_new_tokens, prefix_cache.capacity - len(prompt))
    chooser = _Chooser(prefix_cache.head, sampling, seed, len(prompt))
    lookup = PromptLookup(prompt)
    answer: list[int] = []
    # The first ids of the answer whose keys and values in the cache are those of decode steps.
    num_stepped = 0
    with FreeProcessors() as free_processors:
        while len(answer) < max_tokens:
            free_processors.adapt()
            if not answer:
                next_ids = [chooser.choose(prefix_cache.prefill(prompt), answer)]
            else:
                draft = lookup.draft(max_tokens - len(answer) - 1)
                hidden = prefix_cache.extend([answer[-1], *draft])
                if not draft and num_stepped == len(answer) - 1:
                    next_ids = [chooser.choose(hidden, answer)]
                    num_stepped += 1
                else:
                    next_ids = chooser.choose_clear(hidden, draft, answer)
                    # The last id is not processed yet, and those of the draft after it are wrong.
                    prefix_cache.truncate(len(prompt) + len(answer) - 1 + len(next_ids))
            if not next_ids:
                # The next id is not clear: go back to where decode steps ended, and go on with
                # them.
                prefix_cache.truncate(len(prompt) + num_stepped)
                for token_id in answer[num_stepped:]:
                    hidden = prefix_cache.extend([token_id])
                num_stepped = len(answer)
                next_ids = [chooser.choose(hidden, answer)]
            for next_id in next_ids:
                if next_id in model.config.stop_ids:
                    return "eos"
                yield next_id
                answer.append(next_id)
                lookup.append(next_id)
    return "length" if len(answer) == max_new_tokens else "context"


class _Chooser:
    """The choice of the next ids from hidden states: greedily, or drawn with a seed."""

    def __init__(self, head: LMHead, sampling: Sampling, seed: int, prompt_length: int) -> None:
        self._head, self._sampling, self._prompt_length = head, sampling, prompt_length
        self._generator = torch.Generator().manual_seed(seed)
        self._processors = build_logits_processors(
            repetition_penalty=sampling.repetition_penalty, no_repeat_ngram=sampling.no_repeat_ngram
        )
        # The argmax alone is faster than computing all logits.
        self._needs_logits = bool(self._processors) or not sampling.is_greedy

    def choose(self, hidden: Tensor, answer: list[int]) -> int:
        """Return the id that follows `answer`, given hidden[1, D] of its last position.

        Raises FloatingPointError if the model's output is not finite.
        """
        output = self._head.logits(hidden) if self._needs_logits else hidden
        if not _is_finite(output):
            position = self._prompt_length + len(answer)
            raise FloatingPointError(f"the model's output at position {position} is not finite")
        if not self._needs_logits:
            return int(self._head.argmax(hidden))
        return sample_token(self._process(output, answer)[0], self._sampling, self._generator)

    def choose_clear(self, hidden: Tensor, draft: list[int], answer: list[int]) -> list[int]:
        """Return the ids that follow `answer`, up to the first that is not in the draft.

        hidden[n, D] are those of the last id of `answer` and of the n - 1 ids of `draft`. Ends
        before an id that is not clear, so that the result may be empty.
        """
        if self._needs_logits:
            logits = self._head.logits(hidden)
        else:
            ids, is_clear = self._head.clear_argmax(hidden, _CLEAR_MARGIN)
            clear_ids = torch.where(is_clear, ids, -1).tolist()
        next_ids: list[int] = []
        # The last position has no id of the draft to be compared with.
        for index, draft_id in enumerate([*draft, -1]):
            if self._needs_logits:
                next_id = self._choose_clear_id(logits[index, None], answer + next_ids)
            else:
                next_id = clear_ids[index]
            if next_id < 0:
                break
            next_ids.append(next_id)
            if next_id != draft_id:
                break
        return next_ids

    def _choose_clear_id(self, logits: Tensor, answer: list[int]) -> int:
        """Return the id that follows `answer`, given logits[1, V], or -1 if it is not clear.

        A drawn id is clear if the logits are finite.
        """
        if not _is_finite(logits):
            return -1
        logits = self._process(logits, answer)
        if not self._sampling.is_greedy:
            return sample_token(logits[0], self._sampling, self._generator)
        next_id, is_clear = clear_argmax(logits, _CLEAR_MARGIN)
        return int(next_id) if is_clear else -1

    def _process(self, logits: Tensor, answer: list[int]) -> Tensor:
        """Return the processed logits[1, V] of the id that follows `answer`, on the CPU."""
        # Sampled on the CPU, so that a seed gives the same draws on every device.
        generated = torch.tensor([answer], dtype=torch.int64)
        return process_logits(self._processors, logits.cpu(), generated)


def _is_finite(numbers: Tensor) -> bool:
    """Return whether none of the numbers is NaN or infinite."""
    # One reduction: the maximum of absolute values is NaN or infinite if any number is.
    return bool(numbers.abs().amax().isfinite())
