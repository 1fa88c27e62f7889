"""Beam search over a batch of prompts, as transformers defines it.

At every step the likeliest continuations of a prompt's K beams are found: 2K, or with S > 1 stop ids (1 + S) K. Those
among the first K that end (with a stop id, or at the limit) join the prompt's finished answers, of which the K best by
score stay; the K best that do not end go on. The score of an answer is the sum of its log-probabilities divided by its
length, the stop id counted, to the power of `length_penalty`. A prompt is over at its limit, or when it has K finished
answers and its best running beam, scored at its present length, is not better than the worst of them: transformers'
`early_stopping=False`. The finished answer with the best score is the result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.batched_inference import BatchReader, worth_dropping
from model.llama import Llama
from model.decode.logits_processors import Penalties


class Beams:
    """The beams of P prompts: K running ones and the K best finished answers of each, in up to T ids."""

    def __init__(self, limits: Sequence[int], beams: int, stops: Sequence[int], device: torch.device) -> None:
        prompts, longest = len(limits), max(limits)
        self.stops, self.ends = torch.tensor(stops, device=device), torch.tensor(limits, device=device)
        self.open = self.ends > 0
        self.running = torch.full((prompts, beams, longest), stops[0], device=device)
        self.finished = self.running.clone()
        # All beams of a prompt begin alike: only the first one counts, or they would stay alike.
        self.scores = torch.full((prompts, beams), -torch.inf, device=device)
        self.scores[:, 0] = 0.0
        self.finished_scores = torch.full((prompts, beams), -torch.inf, device=device)

    def advance(self, step: int, log_probabilities: Tensor, length_penalty: float) -> Tensor:
        """Take log_probabilities[P · K, V] of the ids at `step`; whose beam each new one continues, int64[P, K]."""
        beams, vocabulary = self.scores.shape[1], log_probabilities.shape[1]
        sums = (log_probabilities.view(len(self.scores), beams, -1) + self.scores[..., None]).flatten(1)
        # Should every stop id be among them, there are still enough that go on.
        top, index = sums.topk((1 + len(self.stops)) * beams)
        parents, ids = index // vocabulary, index % vocabulary
        said = _gather(self.running, parents)
        said[..., step] = ids
        ended = torch.isin(ids, self.stops) | (step + 1 >= self.ends)[:, None]
        length = (step + 1) ** length_penalty

        accepted = ended & self.open[:, None]
        accepted[:, beams:] = False
        scores = torch.cat([self.finished_scores, (top / length).masked_fill(~accepted, -torch.inf)], 1)
        self.finished_scores, best = scores.topk(beams)
        self.finished = _gather(torch.cat([self.finished, said], 1), best)

        self.scores, best = top.masked_fill(ended, -torch.inf).topk(beams)
        self.running = _gather(said, best)
        improvable = self.scores[:, 0] / length > self.finished_scores[:, -1]
        self.open &= improvable & (step + 1 < self.ends)
        return parents.gather(1, best)

    def select(self, prompts: Tensor) -> None:
        """Go on with these prompts."""
        for name in ("ends", "open", "running", "finished", "scores", "finished_scores"):
            setattr(self, name, getattr(self, name)[prompts])


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """rows[P, n, T] by index[P, m] → [P, m, T]."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


def beam_search(
    model: Llama, prompts: Sequence[Sequence[int]], limits: list[int], beams: int, length_penalty: float,
    penalties: Penalties,
) -> Tensor:
    """The best answer to each prompt, int64[P, longest limit]; behind its stop id or limit the ids mean nothing.

    Penalties are taken from the log-probabilities.
    """
    reader = BatchReader(model, prompts, new=max(limits), copies=beams)
    state = Beams(limits, beams, model.config.stop_ids, reader.device)
    answers = state.finished[:, 0].clone()
    whose = torch.arange(len(prompts), device=reader.device)  # the prompt that each row of `state` belongs to
    logits = reader.read_prompts().repeat_interleave(beams, 0)
    reader.select(whose.repeat_interleave(beams))
    prompt_columns = reader.cache.length
    for step in range(max(limits)):
        said = state.running[..., :step].flatten(0, 1)
        parents = state.advance(step, penalties.apply(logits.log_softmax(-1), said), length_penalty)
        rows = parents + torch.arange(0, parents.numel(), beams, device=reader.device)[:, None]
        # The beams of a prompt differ only behind it, so only that is copied from one to another.
        shared = prompt_columns
        if step % reader.look_every == 0 or step + 1 == max(limits):
            answers[whose] = state.finished[:, 0]
            alive = state.open.nonzero().flatten()
            if not len(alive):
                break
            if worth_dropping(len(alive), len(whose)):
                state.select(alive)
                whose, rows, shared = whose[alive], rows[alive], 0
        reader.select(rows.flatten(), shared)
        logits = reader.read(state.running[..., step].flatten()[:, None])
    return answers
