"""Continue a text, one id at a time."""

import codecs
from collections.abc import Generator, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from model.decode.kv_cache import Cache
from model.decode.fast.inference_model import decoder_of
from model.llama import Llama
from model.decode.logits_processors import blocked_by_ngrams, repetition_penalty
from model.decode.sampling import COLDEST, Sampling
from model.tokenizer.base import Tokenizer

# Why a text ended: the model said so, it reached `max_new_tokens`, or no position was left.
End = Literal["eos", "length", "context"]
_FEW = 512


def prompt_room(context: int, max_new_tokens: int) -> int:
    """Ids that a prompt may have: what a context leaves beside an answer, for which a quarter of it is enough."""
    return context - min(max_new_tokens, context // 4)


class PrefixCache:
    """A model and what it has read of one text: what two texts have in common from their start is read once."""

    def __init__(self, model: Llama, capacity: int) -> None:
        """`capacity`: the ids of the longest text."""
        self.capacity, weight = capacity, model.model.norm.weight
        self._decoder, self._device = decoder_of(model), weight.device
        self._cache = Cache(model.config, 1, capacity, self._device, weight.dtype)
        self._ids: list[int] = []

    def logits_after(self, ids: list[int]) -> Tensor:
        """logits[V] (fp32, on the CPU) of what follows `ids`, which are at most `capacity` and at least one.

        FloatingPointError where they are not finite, as an overflow in fp16 makes them.
        """
        return self._finite(self._decoder.head.logits(self._hidden_after(ids))[0], len(ids)).cpu()

    def likeliest_after(self, ids: list[int]) -> int:
        """The argmax of what `logits_after` gives, found without computing all of it where that is faster."""
        return int(self._decoder.head.likeliest(self._finite(self._hidden_after(ids), len(ids))))

    def _finite(self, numbers: Tensor, position: int) -> Tensor:
        if not numbers.abs().amax().isfinite():
            raise FloatingPointError(f"what the model makes of position {position} is not finite")
        return numbers

    def _hidden_after(self, ids: list[int]) -> Tensor:
        known = min(_common(self._ids, ids), len(ids) - 1)
        # Forgotten first and known last, so that an interrupted reading leaves nothing that is taken for read.
        del self._ids[known:]
        self._cache.length = known
        new = torch.tensor([ids[known:]], device=self._device)
        hidden = self._decoder.read(new, self._cache, None, self._mask(known, len(ids)))
        self._ids += ids[known:]
        return hidden

    def _mask(self, known: int, total: int) -> Tensor | None:
        """What each new position may look at, where plain causality does not say it: bool[1, 1, new, total]."""
        if known == 0 or total - known == 1:
            return None
        return torch.ones(1, 1, total - known, total, dtype=torch.bool, device=self._device).tril(known)


def _common(first: list[int], second: list[int]) -> int:
    """The length of what both begin with."""
    if second[: len(first)] == first:  # the usual case, at the speed of a comparison
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(second))


def generate(
    model: Llama, prompt: list[int], sampling: Sampling, *, max_new_tokens: int, seed: int = 0,
    prefix: PrefixCache | None = None,
) -> Generator[int, None, End]:
    """Yield new ids after `prompt` until a stop id (not yielded), `max_new_tokens`, or the end of the model's context.

    Returns why it ended. A `prefix` that has read a text which begins like the prompt saves reading it again; its
    capacity then stands for the model's context. Rounding apart, the ids are the same. Raises FloatingPointError when
    the logits are not finite, as an overflow in fp16 makes them.
    """
    prefix = prefix or PrefixCache(model, min(len(prompt) + max_new_tokens, model.config.max_position_embeddings))
    generator = torch.Generator().manual_seed(seed)
    seen = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        if len(prompt) + len(answer) >= prefix.capacity:
            return "context"
        if sampling.likeliest:
            chosen = prefix.likeliest_after(prompt + answer)
        else:
            logits = prefix.logits_after(prompt + answer)
            logits[blocked_by_ngrams([answer], sampling.no_repeat_ngram)[0]] = -torch.inf
            chosen = choose(logits, seen, sampling, generator)
        if chosen in model.config.stop_ids:
            return "eos"
        yield chosen
        answer.append(chosen)
        seen[chosen] = True
    return "length"


def choose(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw an id from logits[V]; `seen`[V] marks the ids that the repetition penalty applies to."""
    logits = repetition_penalty(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < COLDEST:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p >= 1.0:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    # To sort a whole vocabulary takes as long as the model; a few hundred ids nearly always hold top_p.
    ordered, order = probabilities.topk(min(_FEW, len(logits)))
    if ordered.sum() < sampling.top_p:
        ordered, order = probabilities.sort(descending=True)
    # An id stays while those before it do not already hold top_p, and the likeliest always stays.
    inside = ordered.cumsum(-1) - ordered < sampling.top_p
    inside[0] = True
    return int(order[torch.multinomial(ordered * inside, 1, generator=generator)])


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Text as its ids arrive, together what `Tokenizer.decode` gives; an unfinished character waits for its rest."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    strip = tokenizer.leading_space
    for index in ids:
        text = decoder.decode(tokenizer.decode_bytes([index]))
        if text and strip:
            text, strip = text.removeprefix(" "), False
        if text:
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
