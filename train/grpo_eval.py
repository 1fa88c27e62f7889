"""Evaluation while learning from rewards: greedy answers to dev questions, beside the base's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.metrics.repetition import is_looping
from evaluate.metrics.rouge import bootstrap_mean_interval
from evaluate.rewards.scorer import AnswerScorer
from evaluate.rewards.terms import sum_terms
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train.monitoring.metrics_log import MetricsLog, SelectionMetric
from train.options import GrpoOptions
from train.start_scores import DevSet, StartScores, answer_greedily

# Number of answers of each set that are printed and logged after an evaluation.
NUM_PRINTED_ANSWERS = 2
# Length of the line that the terminal shows of an answer and its question.
MAX_PRINTED_CHARACTERS = 160


@dataclass(frozen=True)
class RewardEvaluator:
    """Scores the answers to dev questions. It implements `train.run.spec.Evaluator`.

    The best checkpoint is the one with the highest mean reward.
    """

    options: GrpoOptions
    tokenizer: Tokenizer
    scorer: AnswerScorer
    dev_sets: Sequence[DevSet]
    start_scores: StartScores

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.options.evaluation.every

    @property
    def patience(self) -> int:
        """Evaluations without a higher reward that end the run; 0: never."""
        return self.options.evaluation.patience

    @property
    def metric(self) -> SelectionMetric:
        """The metric that selects the best checkpoint."""
        return SelectionMetric("reward", "reward", higher_is_better=True)

    @property
    def has_data(self) -> bool:
        """Whether there is any dev question."""
        return bool(self.dev_sets)

    def evaluate(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Answer the dev questions of each set; log and print rewards beside the base's."""
        for set_index in range(len(self.dev_sets)):
            self._evaluate_set(model, set_index, step, log)

    def evaluate_all(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Do nothing: the questions of `evaluate` are all."""

    def _evaluate_set(self, model: Llama, set_index: int, step: int, log: MetricsLog) -> None:
        dev_set = self.dev_sets[set_index]
        answers, terms = answer_greedily(model, dev_set, self.scorer, self.options)
        rewards = sum_terms(self.scorer.terms, terms)
        start = self.start_scores.rewards(set_index)
        mean, low, high = bootstrap_mean_interval(rewards)
        # Of the same questions, so that the difference is told more exactly than either.
        gain, gain_low, gain_high = bootstrap_mean_interval(rewards - start)
        divergence = self.start_scores.estimate_divergence(model, set_index)
        of_terms = {
            f"reward_{term.label}": float(value)
            for term, value in zip(self.scorer.terms, terms.mean(0), strict=True)
        }
        others = {
            "stopped": float(np.mean([answer.has_eos for answer in answers])),
            "loops": float(np.mean([is_looping(answer.text) for answer in answers])),
            "answer_tokens": float(np.mean([answer.num_tokens for answer in answers])),
            "kl": divergence,
        }
        log.write(
            "reward",
            step,
            reward=float(mean),
            reward_low=float(low),
            reward_high=float(high),
            start_reward=float(start.mean()),
            gain=float(gain),
            gain_low=float(gain_low),
            gain_high=float(gain_high),
            **of_terms,
            **others,
            examples=len(answers),
            set=dev_set.name,
        )
        print(
            f"step {step}  {dev_set.name}, {len(answers)} dev answers: reward {mean:.4f} "
            f"({low:.4f} – {high:.4f}), base {start.mean():.4f}, gain {gain:+.4f} "
            f"({gain_low:+.4f} – {gain_high:+.4f})  "
            + "  ".join(f"{name} {value:.4f}" for name, value in of_terms.items())
            + f"  <eos> {others['stopped']:.0%}  loops {others['loops']:.1%}  "
            f"{others['answer_tokens']:.1f} tokens  KL {divergence:.4f}",
            flush=True,
        )
        for index, answer in enumerate(answers[:NUM_PRINTED_ANSWERS]):
            question = self.tokenizer.decode(dev_set.prompts[index].ids.tolist())
            reward = f"[{rewards[index]:+.3f}; base {start[index]:+.3f}]"
            log.write("sample", step, prompt=question, text=f"{answer.text} {reward}")
            # Of a long answer the end is left out, not its reward.
            shown = f"  …{question[-40:]!r} → {answer.text!r}"[:MAX_PRINTED_CHARACTERS]
            print(f"{shown} {reward}", flush=True)
