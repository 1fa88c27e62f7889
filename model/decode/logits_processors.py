"""From logits to an id: logits processors, and drawing with temperature, top-k and top-p.

A logits processor changes the logits of the next id depending on the ids of the answer so far. No
penalty counts ids of the prompt, because an answer may repeat what an article or a reference says;
`NoveltyPenalty` spares them.

Shapes: R rows, V vocabulary, t ids generated so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.decode.sampling import Sampling

# Sorting a whole vocabulary takes as long as the model. The probabilities of this many ids nearly
# always add up to `top_p`.
_TOP_P_CANDIDATES = 512


class LogitsProcessor(Protocol):
    """A function of the logits and the ids generated so far."""

    def __call__(self, logits: Tensor, generated: Tensor) -> Tensor:
        """Return changed logits[R, V] (or log-probabilities), given the answers generated[R, t]."""


@dataclass(frozen=True)
class FrequencyPenalty:
    """Lower the logits of ids in the answer, as OpenAI's API defines it.

    `frequency` is subtracted once per occurrence of an id, `presence` once if it occurs at all.
    """

    frequency: float
    presence: float

    def __call__(self, logits: Tensor, generated: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        ones = torch.ones_like(generated, dtype=logits.dtype)
        counts = torch.zeros_like(logits).scatter_add_(1, generated, ones)
        return logits - self.frequency * counts - self.presence * (counts > 0)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Lower the logits of ids in the answer by a factor (Keskar et al. 2019, CTRL).

    Positive logits are divided by it and negative ones multiplied, so that both go down.
    """

    penalty: float

    def __call__(self, logits: Tensor, generated: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        values = logits.gather(1, generated)
        values = torch.where(values > 0, values / self.penalty, values * self.penalty)
        return logits.scatter(1, generated, values)


@dataclass(frozen=True)
class NoRepeatNGram:
    """Forbid ids that would complete an n-gram of the answer a second time (Paulus et al. 2017)."""

    size: int

    def __call__(self, logits: Tensor, generated: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        forbidden = [
            (row, token_id)
            for row, ids in enumerate(generated.tolist())
            for token_id in self._completions(ids)
        ]
        if not forbidden:
            return logits
        rows, token_ids = torch.tensor(forbidden, device=logits.device).T
        return logits.index_put((rows, token_ids), logits.new_tensor(-torch.inf))

    def _completions(self, ids: list[int]) -> list[int]:
        """Return the ids that followed earlier occurrences of the last n - 1 ids."""
        prefix_length = self.size - 1
        # Not ids[-prefix_length:], which would be all ids for unigrams, whose prefix is empty.
        prefix = ids[len(ids) - prefix_length :]
        return [
            ids[start + prefix_length]
            for start in range(len(ids) - prefix_length)
            if ids[start : start + prefix_length] == prefix
        ]


@dataclass(frozen=True)
class NoveltyPenalty:
    """Lower the logits of ids that are not in the prompt, so that an answer keeps to its words.

    A small model often goes on with another name where it should copy a rare one.
    """

    penalty: float
    spared_ids: Tensor
    """The ids of the prompt, and stop ids: int64[n]."""

    def __call__(self, logits: Tensor, generated: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        spared = logits[:, self.spared_ids]
        return (logits - self.penalty).index_copy(1, self.spared_ids, spared)


def build_logits_processors(
    *,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
) -> list[LogitsProcessor]:
    """Return the processors for these options, without those that would change nothing.

    With an empty list, greedy decoding needs only the argmax, which is faster than all logits.
    """
    processors: list[LogitsProcessor] = []
    if frequency_penalty or presence_penalty:
        processors.append(FrequencyPenalty(frequency_penalty, presence_penalty))
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(repetition_penalty))
    if no_repeat_ngram > 0:
        processors.append(NoRepeatNGram(no_repeat_ngram))
    return processors


def process_logits(
    processors: Sequence[LogitsProcessor], logits: Tensor, generated: Tensor
) -> Tensor:
    """Apply `processors` in order to the logits[R, V] of the id that follows generated[R, t]."""
    for processor in processors:
        logits = processor(logits, generated)
    return logits


def sample_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw an id from processed logits[V] with temperature, top-k and top-p."""
    if sampling.is_greedy:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        top_k_threshold = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < top_k_threshold, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p >= 1.0:
        return _draw(probabilities, generator)
    # Probabilities in descending order, and their ids.
    ordered, ids = probabilities.topk(min(_TOP_P_CANDIDATES, len(logits)))
    if ordered.sum() < sampling.top_p:
        ordered, ids = probabilities.sort(descending=True)
    # An id is in the nucleus if those before it add up to less than `top_p`.
    in_nucleus = ordered.cumsum(-1) - ordered < sampling.top_p
    # The most likely id is always in it, even if `top_p` is 0.
    in_nucleus[0] = True
    return int(ids[_draw(ordered * in_nucleus, generator)])


def _draw(weights: Tensor, generator: torch.Generator) -> int:
    """Return an index with a probability in proportion to weights[n], on the CPU.

    Inverts the cumulative distribution. `torch.multinomial` draws a number for each of the n, which
    for a vocabulary of 65,000 takes as long as the decode step of a small model.
    """
    # Sums of many small numbers would lose digits in fp32.
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    # In (0, 1], so that an index of weight zero is never the first to reach it.
    share = 1 - torch.rand((), dtype=torch.float64, generator=generator)
    return int(torch.searchsorted(cumulative, share * cumulative[-1]))
