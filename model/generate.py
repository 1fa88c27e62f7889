"""Continue a text, one id at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache import Cache
from model.llama import Llama
from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen. Temperature 0 takes the likeliest."""

    temperature: float = 0.8
    top_k: int = 0  # 0: no limit
    top_p: float = 0.95
    repetition_penalty: float = 1.0  # 1: none (Keskar et al. 2019)


@torch.inference_mode()
def generate(
    model: Llama, prompt: list[int], sampling: Sampling, *, max_new_tokens: int, seed: int = 0
) -> Iterator[int]:
    """Yield new ids after `prompt` until `<eos>` (not yielded), `max_new_tokens`, or the end of the model's context."""
    device = model.lm_head.weight.device
    capacity = min(len(prompt) + max_new_tokens, model.config.max_position_embeddings)
    cache = Cache(model.config, 1, capacity, device, model.lm_head.weight.dtype)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    ids = prompt
    while cache.length + len(ids) < capacity:
        seen[ids] = True
        hidden = model.model(torch.tensor([ids], device=device), None, None, cache)
        cache.length += len(ids)
        logits = model.lm_head(hidden[0, -1]).float().cpu()
        chosen = choose(logits, seen, sampling, generator)
        if chosen == model.config.eos_token_id:
            return
        yield chosen
        ids = [chosen]


def choose(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw an id from logits[V]; `seen`[V] marks the ids that the repetition penalty applies to."""
    if sampling.repetition_penalty != 1.0:
        punished = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, punished, logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.softmax(-1).sort(descending=True)
        # An id stays while those before it do not already hold top_p, so the likeliest always stays.
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        logits[order[outside]] = -torch.inf
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def stream_text(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    """Text as its ids arrive; the bytes of an unfinished character wait for the rest."""
    pending = b""
    for index in ids:
        pending += tokenizer.decode_bytes([index])
        text = pending.decode("utf-8", errors="ignore")
        if text and pending.endswith(text[-1].encode()):
            yield text
            pending = b""
        elif len(pending) > 8:
            # More than any character is long: the bytes are not UTF-8.
            yield pending.decode("utf-8", errors="replace")
            pending = b""
    if pending:
        yield pending.decode("utf-8", errors="replace")
