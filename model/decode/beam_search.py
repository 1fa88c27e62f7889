"""Beam search over a batch of prompts, as transformers defines it.

Every prompt has K running beams. At each step the (1 + S) K most likely continuations of all of
them are the candidates, where S is the number of stop ids: at most S K end with a stop id, so at
least K do not. Of the first K candidates, those that end (with a stop id, or at the limit) enter
the prompt's finished answers, of which the K with the best scores are stored. The best K candidates
that do not end become the running beams.

The score of an answer is the sum of its log-probabilities, divided by its length (the stop id
counted) to the power of `length_penalty`. A prompt is done at its limit, or when it has K finished
answers and its best running beam, scored at its present length, is not better than the worst of
them (transformers' `early_stopping=False`), or when the model's output is not finite. The result is
the finished answer with the best score; in the last case there may be none.

Shapes: P prompts, K beams, C candidates, V vocabulary, T the longest limit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decode.batched_inference import start_batch
from model.decode.logits_processors import LogitsProcessor, process_logits
from model.llama import Llama

# Finished prompts are dropped once no more than this share is active, not one by one, because
# dropping copies the KV cache of the other beams.
_ACTIVE_SHARE = 0.75


class BeamState:
    """Running beams and finished answers of P prompts: their ids, [P, K, T], and scores, [P, K].

    Scores of running beams are sums of log-probabilities. Those of finished answers are divided by
    length ** length_penalty. -inf marks a beam or an answer that does not exist.
    """

    def __init__(
        self, limits: Sequence[int], num_beams: int, stop_ids: Sequence[int], device: torch.device
    ) -> None:
        """Start with one empty beam per prompt; limits[p] is the maximum length of answer p."""
        num_prompts, longest = len(limits), max(limits)
        self.stop_ids = torch.tensor(stop_ids, device=device)
        self.limits = torch.tensor(limits, device=device)
        self.is_active = self.limits > 0
        shape = (num_prompts, num_beams)
        self.running = torch.full((*shape, longest), stop_ids[0], device=device)
        self.finished = self.running.clone()
        # All beams of a prompt begin with the same ids, and equal beams would stay equal. Therefore
        # only the first one has a finite score, and so candidates, at the first step.
        self.scores = torch.full(shape, -torch.inf, device=device)
        self.scores[:, 0] = 0.0
        self.finished_scores = torch.full(shape, -torch.inf, device=device)

    def advance(self, step: int, log_probabilities: Tensor, length_penalty: float) -> Tensor:
        """Extend all beams by the ids at `step`, given log_probabilities[P * K, V] of the next id.

        Returns parents, int64[P, K]: the index of the old beam that each new running beam extends.
        """
        num_prompts, num_beams = self.scores.shape
        vocab_size = log_probabilities.shape[1]
        # One number that is not finite makes all log-probabilities of its beam NaN.
        is_broken = log_probabilities.amax(1).isnan().view(num_prompts, num_beams).any(1)
        self.is_active &= ~is_broken
        all_scores = log_probabilities.view(num_prompts, num_beams, -1) + self.scores[..., None]
        num_candidates = (1 + len(self.stop_ids)) * num_beams
        # Beams and ids are searched together, as one dimension of K * V.
        candidate_scores, index = all_scores.flatten(1).topk(num_candidates)
        parents, ids = index // vocab_size, index % vocab_size
        candidates = _gather_beams(self.running, parents)  # [P, C, T]
        candidates[..., step] = ids
        is_ended = torch.isin(ids, self.stop_ids) | (step + 1 >= self.limits)[:, None]
        length_factor = (step + 1) ** length_penalty

        # Finished answers: the best K of the old ones and of those that end among the first K
        # candidates. A prompt that is done may stay in the batch for some steps, but does not
        # accept answers any more.
        is_accepted = is_ended & self.is_active[:, None]
        is_accepted[:, num_beams:] = False
        new_scores = (candidate_scores / length_factor).masked_fill(~is_accepted, -torch.inf)
        scores = torch.cat([self.finished_scores, new_scores], 1)
        self.finished_scores, best = scores.topk(num_beams)
        self.finished = _gather_beams(torch.cat([self.finished, candidates], 1), best)

        # Running beams: the best K candidates that do not end.
        self.scores, best = candidate_scores.masked_fill(is_ended, -torch.inf).topk(num_beams)
        self.running = _gather_beams(candidates, best)
        # topk sorts: column 0 is the best running beam, column -1 the worst finished answer.
        is_improvable = self.scores[:, 0] / length_factor > self.finished_scores[:, -1]
        self.is_active &= is_improvable & (step + 1 < self.limits)
        return parents.gather(1, best)

    def select_prompts(self, prompts: Tensor) -> None:
        """Drop all prompts except those at these indices, int64[n]."""
        for name in ("limits", "is_active", "running", "finished", "scores", "finished_scores"):
            setattr(self, name, getattr(self, name)[prompts])


def _gather_beams(beams: Tensor, index: Tensor) -> Tensor:
    """Select beams[P, n, T] of each prompt by index[P, m] -> [P, m, T]."""
    return beams.gather(1, index[..., None].expand(-1, -1, beams.shape[2]))


def beam_search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    *,
    num_beams: int,
    length_penalty: float,
    processors: Sequence[LogitsProcessor],
    prompt_processors: Sequence[Sequence[LogitsProcessor]] = (),
) -> tuple[Tensor, Tensor]:
    """Return the best answer to each prompt, int64[P, T], and whether there is one, bool[P].

    T is max(limits), but answer p has at most limits[p] ids; ids after a stop id or the limit are
    undefined. As in transformers, the logits
    processors are applied to log-probabilities, and an answer's score is the sum of the processed
    log-probabilities, divided by length ** length_penalty. The processors in `prompt_processors[p]`
    are applied to the beams of prompt p alone, after `processors`.
    """
    longest = max(limits)
    batch, hidden = start_batch(model, prompts, max_new_tokens=longest)
    device = batch.device
    state = BeamState(limits, num_beams, model.config.stop_ids, device)
    answers = state.finished[:, 0].clone()
    has_answer = torch.zeros_like(state.is_active)
    # The prompts that `state` still has, as rows of `answers`: int64[n], n <= P.
    prompt_index = torch.arange(len(prompts), device=device)
    # In the order of `prompt_index`, on the host: asking the device for it would be a wait.
    active_processors = list(prompt_processors)
    # Every prompt is processed once, and its row is then copied to K (`num_beams`) rows.
    logits = batch.head.logits(hidden).repeat_interleave(num_beams, 0)
    batch.reserve(len(prompts) * num_beams, batch.cache.capacity)
    batch.select_rows(prompt_index.repeat_interleave(num_beams))
    num_prompt_columns = min(map(len, prompts))
    for step in range(longest):
        generated = state.running[..., :step].flatten(0, 1)  # [n * K, step]
        log_probabilities = process_logits(processors, logits.log_softmax(-1), generated)
        if any(active_processors):
            log_probabilities = torch.cat(
                [
                    process_logits(own_processors, rows, rows_generated)
                    for own_processors, rows, rows_generated in zip(
                        active_processors,
                        log_probabilities.split(num_beams),
                        generated.split(num_beams),
                        strict=True,
                    )
                ]
            )
        parents = state.advance(step, log_probabilities, length_penalty)  # [n, K]
        # The beams of prompt p are the rows p * K to p * K + K - 1 of the batch.
        first_rows = torch.arange(0, parents.numel(), num_beams, device=device)
        rows = parents + first_rows[:, None]
        # All beams of a prompt have the same keys and values for the prompt, so the columns that
        # are the prompt's in every row are not copied.
        shared_columns = num_prompt_columns
        # Not at every step, because looking for finished prompts makes the host wait for the
        # device.
        if step % batch.host_sync_interval == 0 or step + 1 == longest:
            answers[prompt_index] = state.finished[:, 0]
            has_answer[prompt_index] = state.finished_scores[:, 0].isfinite()
            active_prompts = state.is_active.nonzero().flatten()
            if not len(active_prompts):
                break
            if len(active_prompts) <= _ACTIVE_SHARE * len(prompt_index):
                state.select_prompts(active_prompts)
                prompt_index = prompt_index[active_prompts]
                if active_processors:
                    active_processors = [active_processors[i] for i in active_prompts.tolist()]
                rows = rows[active_prompts]
                # A row may now get another prompt, so all columns are copied.
                shared_columns = 0
        batch.select_rows(rows.flatten(), shared_columns)
        logits = batch.head.logits(batch.decode_step(state.running[..., step].flatten()))
    return answers, has_answer
