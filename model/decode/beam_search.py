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

from model.decode.batched_inference import InferenceBatch, should_compact
from model.decode.logits_processors import RepetitionPenalties
from model.llama import Llama


class BeamState:
    """The beams of P prompts: K running ones and the K best finished answers of each, in up to T ids."""

    def __init__(
        self, limits: Sequence[int], num_beams: int, stop_ids: Sequence[int], device: torch.device
    ) -> None:
        prompts, longest = len(limits), max(limits)
        self.stop_ids, self.ends = (
            torch.tensor(stop_ids, device=device),
            torch.tensor(limits, device=device),
        )
        self.open = self.ends > 0
        self.running = torch.full((prompts, num_beams, longest), stop_ids[0], device=device)
        self.finished = self.running.clone()
        # All beams of a prompt begin alike: only the first one counts, or they would stay alike.
        self.scores = torch.full((prompts, num_beams), -torch.inf, device=device)
        self.scores[:, 0] = 0.0
        self.finished_scores = torch.full((prompts, num_beams), -torch.inf, device=device)

    def advance(self, step: int, log_probabilities: Tensor, length_penalty: float) -> Tensor:
        """Take log_probabilities[P · K, V] of the ids at `step`; whose beam each new one continues, int64[P, K]."""
        beams, vocabulary = self.scores.shape[1], log_probabilities.shape[1]
        candidate_scores = (
            log_probabilities.view(len(self.scores), beams, -1) + self.scores[..., None]
        ).flatten(1)
        # Should every stop id be among them, there are still enough that go on.
        top_scores, index = candidate_scores.topk((1 + len(self.stop_ids)) * beams)
        parents, ids = index // vocabulary, index % vocabulary
        candidate_ids = _gather_beams(self.running, parents)
        candidate_ids[..., step] = ids
        is_ended = torch.isin(ids, self.stop_ids) | (step + 1 >= self.ends)[:, None]
        length = (step + 1) ** length_penalty

        accepted = is_ended & self.open[:, None]
        accepted[:, beams:] = False
        scores = torch.cat(
            [self.finished_scores, (top_scores / length).masked_fill(~accepted, -torch.inf)], 1
        )
        self.finished_scores, best = scores.topk(beams)
        self.finished = _gather_beams(torch.cat([self.finished, candidate_ids], 1), best)

        self.scores, best = top_scores.masked_fill(is_ended, -torch.inf).topk(beams)
        self.running = _gather_beams(candidate_ids, best)
        improvable = self.scores[:, 0] / length > self.finished_scores[:, -1]
        self.open &= improvable & (step + 1 < self.ends)
        return parents.gather(1, best)

    def select_prompts(self, prompts: Tensor) -> None:
        """Go on with these prompts."""
        for name in ("ends", "open", "running", "finished", "scores", "finished_scores"):
            setattr(self, name, getattr(self, name)[prompts])


def _gather_beams(rows: Tensor, index: Tensor) -> Tensor:
    """rows[P, n, T] by index[P, m] → [P, m, T]."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


def beam_search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    num_beams: int,
    length_penalty: float,
    penalties: RepetitionPenalties,
) -> Tensor:
    """The best answer to each prompt, int64[P, longest limit]; behind its stop id or limit the ids mean nothing.

    Penalties are taken from the log-probabilities.
    """
    inference_batch = InferenceBatch(
        model, prompts, max_new_tokens=max(limits), rows_per_prompt=num_beams
    )
    state = BeamState(limits, num_beams, model.config.stop_ids, inference_batch.device)
    answers = state.finished[:, 0].clone()
    prompt_index = torch.arange(
        len(prompts), device=inference_batch.device
    )  # the prompt that each row of `state` belongs to
    logits = inference_batch.prefill().repeat_interleave(num_beams, 0)
    inference_batch.select_rows(prompt_index.repeat_interleave(num_beams))
    prompt_columns = inference_batch.cache.length
    for step in range(max(limits)):
        generated = state.running[..., :step].flatten(0, 1)
        parents = state.advance(
            step, penalties.apply(logits.log_softmax(-1), generated), length_penalty
        )
        rows = (
            parents
            + torch.arange(0, parents.numel(), num_beams, device=inference_batch.device)[:, None]
        )
        # The beams of a prompt differ only behind it, so only that is copied from one to another.
        shared_columns = prompt_columns
        if step % inference_batch.host_sync_interval == 0 or step + 1 == max(limits):
            answers[prompt_index] = state.finished[:, 0]
            active_prompts = state.open.nonzero().flatten()
            if not len(active_prompts):
                break
            if should_compact(len(active_prompts), len(prompt_index)):
                state.select_prompts(active_prompts)
                prompt_index, rows, shared_columns = (
                    prompt_index[active_prompts],
                    rows[active_prompts],
                    0,
                )
        inference_batch.select_rows(rows.flatten(), shared_columns)
        logits = inference_batch.forward(state.running[..., step].flatten()[:, None])
    return answers
