"""Rollouts: the answers that a run on rewards draws from its model, and learns from.

All answers to a prompt are a group, and the advantage of an answer is its reward minus the mean of
its group (Shao et al. 2024, arXiv:2402.03300). It is not divided by the standard deviation, which
would give groups whose answers hardly differ the weight of all others (Liu et al. 2025,
arXiv:2503.20783).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from data.batching.collate import Batch, BatchLoader
from data.batching.group_rows import Group, GroupBatch, Sample, iter_batches
from data.batching.prompts import Prompt, PromptPlan
from evaluate.metrics.repetition import is_looping
from evaluate.rewards.scorer import AnswerScorer
from evaluate.rewards.terms import RewardTerm, sum_terms
from model.decode.batch_generate import DecodedAnswer
from model.decode.sample_batch import derive_seed, sample_batch
from model.decode.sampling import Sampling
from model.llama import Llama
from model.precision import Precision
from train.autotune import autocast
from train.options import GroupOptions, GrpoOptions
from train.reference_model import ReferenceModel
from train.rollout_file import load_groups, save_groups


def measure_names(terms: Sequence[RewardTerm]) -> tuple[str, ...]:
    """Return the names of the measures of a sample, see `build_group`."""
    of_terms = [f"reward_{term.label}" for term in terms]
    return (
        "reward",
        *of_terms,
        "reward_std",
        "no_gradient",
        "answer_tokens",
        "stopped",
        "loops",
    )


class RolloutLoader(BatchLoader[PromptPlan]):
    """Draws the answers of a step from the model before it, and packs them into rows.

    The answers are a function of the weights, the seed, the prompt and its number in the run.
    """

    depends_on_weights = True

    def __init__(
        self,
        plan: PromptPlan,
        options: GrpoOptions,
        run: Path,
        scorer: AnswerScorer,
        reference: ReferenceModel,
        precision: Precision,
    ) -> None:
        """Draw nothing yet: `use_model` has to be called first.

        `run` is the run directory, and `precision` that of training.
        """
        super().__init__(plan, options.rows_per_step)
        self._options = options
        self._group_options = options.grpo
        self._run = run
        self._scorer = scorer
        self._reference = reference
        self._model: Llama | None = None
        # The round of answers that was drawn or loaded last, and its groups.
        self._current: tuple[int, list[Group]] | None = None
        self._sampled = 0, 0.0
        self._precision = precision

    def use_model(self, model: Llama) -> None:
        """See `BatchLoader`."""
        self._model = model

    def pop_sampled(self) -> tuple[int, float]:
        """See `BatchLoader`."""
        sampled, self._sampled = self._sampled, (0, 0.0)
        return sampled

    def global_rows(self, step: int) -> range:
        """Return the numbers of the questions that a step learns from, see `BatchLoader`."""
        num_prompts = self._group_options.prompts
        first = step // self._group_options.updates * num_prompts
        return range(first, first + num_prompts)

    def epochs_completed(self, step: int) -> float:
        """Return how many epochs the prompts of the first `step` steps make."""
        num_rounds = -(-step // self._group_options.updates)
        return self._plan.epochs_completed(num_rounds * self._group_options.prompts)

    def typical_batch(self) -> GroupBatch:
        """Return the true answers to the first prompts, as if they had been drawn."""
        measures = np.zeros(len(measure_names(self._scorer.terms)))
        groups = [
            Group(prompt.ids, [Sample(prompt.answer, 0.0, measures)] * self._group_options.samples)
            for prompt in self._prompts(0)
        ]
        ((batch, _),) = iter_batches(groups, self._options.sequence_length, self.rows_per_step)
        return batch

    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """Return the groups that a step learns from, in micro-batches of rows.

        Groups without a gradient are in no row, but for one if there is no other. With the
        divergence from the base in the loss, all groups have a gradient.
        """
        groups = self._load_round(step, micro_rows)
        is_trained = [group.has_gradient or self._group_options.kl > 0 for group in groups]
        if not any(is_trained):
            is_trained[0] = True
        trained = list(compress(groups, is_trained))
        length = self._options.sequence_length
        first, *others = (batch for batch, _ in iter_batches(trained, length, micro_rows))
        for group, is_in_row in zip(groups, is_trained, strict=True):
            if not is_in_row:
                # Counted with the first batch.
                sums = np.sum([sample.measures for sample in group.samples], axis=0)
                first = replace(
                    first,
                    num_samples=first.num_samples + len(group.samples),
                    measure_sums=first.measure_sums + torch.from_numpy(sums),
                )
        return [first, *others]

    def _prompts(self, round_index: int) -> list[Prompt]:
        """Return the prompts of a round."""
        first = round_index * self._group_options.prompts
        return self._plan.prompts(range(first, first + self._group_options.prompts))

    def _load_round(self, step: int, micro_rows: int) -> list[Group]:
        """Return the groups of the round that a step learns from."""
        updates = self._group_options.updates
        round_index, update = divmod(step, updates)
        if self._current is not None and self._current[0] == round_index:
            return self._current[1]
        if update:
            prompts = [prompt.ids for prompt in self._prompts(round_index)]
            groups = load_groups(self._run, round_index, prompts)
        else:
            groups = self._draw_round(round_index, micro_rows)
            if updates > 1:
                save_groups(self._run, round_index, updates, groups)
        self._current = round_index, groups
        return groups

    def _draw_round(self, round_index: int, micro_rows: int) -> list[Group]:
        """Draw and score the answers of a round."""
        assert self._model is not None
        start_time = time.perf_counter()
        prompts = self._prompts(round_index)
        first = round_index * self._group_options.prompts
        seeds = [
            [
                derive_seed(self._options.seed, first + index, number)
                for number in range(self._group_options.samples)
            ]
            for index in range(len(prompts))
        ]
        # In evaluation mode one snapshot of the weights serves all batches of answers.
        self._model.eval()
        drawn = draw_answers(self._model, prompts, seeds, self._group_options)
        groups = [
            build_group(self._scorer, prompt, answers)
            for prompt, answers in zip(prompts, drawn, strict=True)
        ]
        score = (groups, self._options.sequence_length, micro_rows, self._precision)
        if self._group_options.updates > 1:
            for sample, log_probs in score_samples(self._model, *score):
                sample.old_log_probs = log_probs
        if self._group_options.kl:
            with self._reference.borrow(self._model) as reference:
                for sample, log_probs in score_samples(reference, *score):
                    sample.reference_log_probs = log_probs
        self._model.train()
        num_tokens = sum(len(sample.ids) for group in groups for sample in group.samples)
        tokens, seconds = self._sampled
        self._sampled = tokens + num_tokens, seconds + time.perf_counter() - start_time
        return groups


def draw_answers(
    model: Llama, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], options: GroupOptions
) -> list[list[DecodedAnswer]]:
    """Draw an answer to each prompt for each of its seeds.

    Raises UserError if the model's output is not finite, or if the memory of the GPU is full.
    """
    try:
        return sample_batch(
            model,
            [prompt.ids.tolist() for prompt in prompts],
            seeds,
            # The probabilities that the loss raises and lowers are those of plain softmax, too.
            Sampling(),
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch,
        )
    except FloatingPointError as error:
        raise UserError(f"no answers can be drawn: {error}: lower --optimizer.lr") from None
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU's memory is full while {options.batch} answers are drawn together: resume "
            f"with a smaller --grpo.batch, such as {max(1, options.batch // 2)}"
        ) from None


def build_group(scorer: AnswerScorer, prompt: Prompt, drawn: Sequence[DecodedAnswer]) -> Group:
    """Return the group of all answers to a prompt, with their advantages.

    The ids of an answer are those that were drawn, with the stop id that ended it: of several, the
    others did not. An answer that the limit of length ended is scored and learned from like the
    others, without an <eos> that the model did not write.
    """
    answers = scorer.read(prompt, drawn)
    terms = scorer.score(prompt, answers)
    rewards = sum_terms(scorer.terms, terms)
    # The mean of equal rewards may differ from them by a rounding error.
    has_gradient = bool(np.ptp(rewards) > 0)
    advantages = rewards - rewards.mean() if has_gradient else np.zeros(len(rewards))
    samples = []
    for index, (decoded, answer) in enumerate(zip(drawn, answers, strict=True)):
        measures = [
            rewards[index],
            *terms[index],
            rewards.std(),
            not has_gradient,
            answer.num_tokens,
            answer.has_eos,
            is_looping(answer.text),
        ]
        ids = [*decoded.ids, *([] if decoded.stop_id is None else [decoded.stop_id])]
        samples.append(
            Sample(
                np.array(ids, np.int64),
                float(advantages[index]),
                np.array(measures, np.float64),
            )
        )
    return Group(prompt.ids, samples)


@torch.no_grad()
def score_samples(
    model: Llama, groups: Sequence[Group], length: int, rows: int, precision: Precision
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield each answer with the log-probabilities of its ids under a model, fp32[n].

    A batch has `rows` rows of at most `length` positions.
    """
    device = model.lm_head.weight.device
    for batch, samples in iter_batches(groups, length, rows):
        on_device = batch.to(device)
        with autocast(device, precision):
            log_probs = model(
                on_device.ids,
                on_device.targets,
                target_positions=on_device.loss_indices,
                per_target=True,
                positions=on_device.positions,
                mask=on_device.segments,
            )
        answers = log_probs.cpu().split(batch.answer_lengths.tolist())
        for sample, answer in zip(samples, answers, strict=True):
            yield sample, answer.numpy()
