"""Evaluation while learning from preferences: held-out pairs, and generated answers."""

import sys
from dataclasses import dataclass

import numpy as np
import torch

from common.progress import progress_bar
from data.batching.preference_rows import PreferenceExamples
from evaluate.metrics.preference_scores import PairScore, count_longer_chosen, score_pairs
from evaluate.metrics.proportion import Proportion
from evaluate.metrics.repetition import measure_repetition
from model.decode.batch_generate import generate_batch
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train.autotune import autocast
from train.monitoring.metrics_log import VALIDATION_LOSS, MetricsLog, SelectionMetric
from train.options import DpoOptions
from train.preference_objective import PreferenceObjective, pair_losses, pair_margins

# Number of answers of each set that are logged after an evaluation, and length of their lines in
# the terminal.
NUM_PRINTED_ANSWERS = 2
MAX_PRINTED_CHARACTERS = 160


@dataclass(frozen=True)
class HeldOutPairs:
    """The validation split of a set."""

    name: str  # as in --data
    examples: PreferenceExamples

    @property
    def num_fitting(self) -> int:
        """The number of pairs that fit a row; the others have length 0."""
        return int((self.examples.lengths(epoch=0) > 0).sum())


@dataclass(frozen=True)
class PreferenceEvaluator:
    """Scores held-out pairs, and answers their prompts. It implements `train.run.spec.Evaluator`.

    The best checkpoint is the one with the lowest loss on the pairs.
    """

    options: DpoOptions
    tokenizer: Tokenizer
    objective: PreferenceObjective
    held_out: list[HeldOutPairs]

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.options.evaluation.every

    @property
    def patience(self) -> int:
        """Evaluations without a lower loss that end the run; 0: never."""
        return self.options.evaluation.patience

    @property
    def metric(self) -> SelectionMetric:
        """The metric that selects the best checkpoint."""
        return VALIDATION_LOSS

    @property
    def has_data(self) -> bool:
        """Whether any held-out pair fits a row."""
        return any(pairs.num_fitting for pairs in self.held_out)

    def evaluate(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score the first held-out pairs of each set, then answer the first prompts."""
        self._score(model, self.options.evaluation.scored, "validation", step, log)
        if self.options.evaluation.examples:
            for pairs in self.held_out:
                self._answer(model, pairs, step, log)

    def evaluate_all(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score all held-out pairs, unless `evaluate` has scored all of them."""
        limit = self.options.evaluation.scored
        if any(pairs.num_fitting > limit for pairs in self.held_out):
            self._score(model, sys.maxsize, "final", step, log)

    def _score(self, model: Llama, limit: int, kind: str, step: int, log: MetricsLog) -> None:
        """Score the first `limit` pairs of each set; log and print the metrics of all together.

        `kind` is that of the record in the log. Without any pair nothing is logged.
        """
        scores: list[PairScore] = []
        num_pairs = sum(min(limit, pairs.num_fitting) for pairs in self.held_out)
        objective = self.objective
        with (
            progress_bar("scoring", num_pairs, "pairs", delay=5) as bar,
            autocast(model.lm_head.weight.device, objective.precision),
        ):
            for pairs in self.held_out:
                scores += score_pairs(
                    model,
                    pairs.examples,
                    self.options.sequence_length,
                    rows=objective.micro_rows,
                    limit=limit,
                    on_progress=bar.update,
                )
        if not scores:
            return
        # In the order of the pairs, so that sums do not depend on how they were packed.
        scores.sort(key=lambda score: score.pair)
        accuracy, longer, metrics = self._measure(scores)
        low, high = accuracy.interval
        log.write(
            kind,
            step,
            **metrics,
            reward_accuracy=accuracy.rate,
            reward_accuracy_low=low,
            reward_accuracy_high=high,
            longer_chosen=longer.rate,
            pairs=len(scores),
        )
        kl = f"  KL {metrics['kl']:.4f}" if "kl" in metrics else ""
        print(
            f"step {step}  {kind}: loss {metrics['loss']:.4f}  margin {metrics['margin']:+.3f}  "
            f"accuracy {accuracy} of {len(scores)} pairs (taking the longer one: "
            f"{100 * longer.rate:.1f} %)  log p chosen {metrics['chosen_log_prob']:.1f}, rejected "
            f"{metrics['rejected_log_prob']:.1f}{kl}",
            flush=True,
        )

    def _measure(self, scores: list[PairScore]) -> tuple[Proportion, Proportion, dict[str, float]]:
        """Return reward accuracy, how often the longer answer is chosen, and means over pairs."""
        options = self.objective.options
        lengths = np.array([[len(score.chosen), len(score.rejected)] for score in scores])
        sums = _sum_answers(scores)
        reference_sums = None
        means: dict[str, float] = {}
        if self.objective.reference is not None:
            reference = [self.objective.reference.validation(score.pair) for score in scores]
            reference_sums = torch.from_numpy(_sum_answers(reference))
            means["kl"] = estimate_kl(scores, reference)
        margins = pair_margins(
            options, torch.from_numpy(sums), torch.from_numpy(lengths), reference_sums
        )
        loss = float(pair_losses(options, margins).mean())
        if options.nll:
            loss -= options.nll * float(sums[:, 0].sum() / lengths[:, 0].sum())
        chosen_log_prob, rejected_log_prob = sums.mean(0).tolist()
        chosen_tokens, rejected_tokens = lengths.mean(0).tolist()
        means = {
            "loss": loss,
            "margin": float(margins.mean()),
            "chosen_log_prob": chosen_log_prob,
            "rejected_log_prob": rejected_log_prob,
            **means,
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
        }
        # A tie is no preference for the chosen answer.
        accuracy = Proportion(int((margins > 0).sum()), len(scores))
        return accuracy, count_longer_chosen(lengths), means

    def _answer(self, model: Llama, pairs: HeldOutPairs, step: int, log: MetricsLog) -> None:
        """Answer the first prompts of a set; log and print length, loops and `<eos>`."""
        evaluation = self.options.evaluation
        fitting = np.flatnonzero(pairs.examples.lengths(epoch=0))[: evaluation.examples]
        prompts = [pairs.examples.example(int(i), epoch=0).prompt.tolist() for i in fitting]
        if not prompts:
            return
        with progress_bar(f"answering {pairs.name}", len(prompts), "answers", delay=5) as bar:
            decoded = generate_batch(
                model, prompts, max_new_tokens=evaluation.max_new_tokens, on_progress=bar.update
            )
        answers = [self.tokenizer.decode(answer.ids) for answer in decoded]
        repetition = measure_repetition(answers)
        stopped = float(np.mean([answer.reached_stop_id for answer in decoded]))
        log.write(
            "answers",
            step,
            characters=repetition.characters,
            loops=repetition.loops,
            repeated_4grams=repetition.repeated_4grams,
            stopped=stopped,
            examples=len(answers),
            set=pairs.name,
        )
        print(
            f"step {step}  {pairs.name}, {len(answers)} answers: {repetition.characters:.0f} "
            f"characters  loops {repetition.loops:.1%}  stopped by <eos> {stopped:.1%}",
            flush=True,
        )
        for prompt, answer in list(zip(prompts, answers, strict=True))[:NUM_PRINTED_ANSWERS]:
            question = self.tokenizer.decode(prompt)
            log.write("sample", step, prompt=question, text=answer)
            print(f"  …{question[-40:]!r} → {answer!r}"[:MAX_PRINTED_CHARACTERS], flush=True)


def _sum_answers(scores: list[PairScore]) -> np.ndarray:
    """Return the sums of the log-probabilities of both answers of each pair, fp64[n, 2]."""
    return np.array(
        [
            [score.chosen.sum(dtype=np.float64), score.rejected.sum(dtype=np.float64)]
            for score in scores
        ]
    )


def estimate_kl(scores: list[PairScore], reference: list[PairScore]) -> float:
    """Return an estimate of the KL divergence from the reference, in nats per id.

    It is the mean of log(p / p_ref)² / 2 over the ids of all answers: estimator k2 of Schulman
    (2020, "Approximating KL divergence"), close to the divergence where the models differ little
    and the ids are drawn from either. Those of human answers are not: then it tells how much has
    changed, and is no divergence.
    """
    total, count = 0.0, 0
    for score, reference_score in zip(scores, reference, strict=True):
        for own, base in zip(score[1:], reference_score[1:], strict=True):
            total += 0.5 * float(np.square(own.astype(np.float64) - base).sum())
            count += len(own)
    return total / count
