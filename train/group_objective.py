"""The loss of group-relative policy optimization (GRPO, Shao et al. 2024, arXiv:2402.03300).

Every token of an answer has the advantage of its answer. The loss is the clipped one of PPO
(Schulman et al. 2017, arXiv:1707.06347), with the ratio of the probability of a token now to that
at which it was drawn, and, if asked for, the divergence from the base: estimator k3 of Schulman
(2020, "Approximating KL divergence").

It is the sum over all tokens, divided by the number of answers and by the longest length that one
may have. Divided by its own length instead, a long answer that is bad would be punished less than a
short one (Liu et al. 2025, arXiv:2503.20783).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from data.batching.group_rows import GroupBatch
from evaluate.rewards.terms import RewardTerm
from model.llama import Llama
from model.loss import LossPath
from model.precision import Precision
from train.objective import Objective
from train.options import GroupOptions
from train.reference_model import ReferenceModel
from train.rollouts import measure_names
from train.start_scores import StartScores


class GroupObjective(Objective[GroupBatch]):
    """The loss of groups of answers, and the measures of the answers that were drawn."""

    measures_every_step = True
    # Advantages sum to 0 in each group, so the loss is near 0, whatever the model has learned.
    has_loss_level = False
    uses_loss_path = False

    def __init__(
        self,
        options: GroupOptions,
        terms: tuple[RewardTerm, ...],
        reference: ReferenceModel,
        start_scores: StartScores,
    ) -> None:
        """Use the `reference` in rollouts; `start_scores` are computed by `prepare`."""
        self._options = options
        self._reference = reference
        self._start_scores = start_scores
        self._rollout_names = measure_names(terms)
        loss_names = ["kl"] if options.kl else []
        # In the first update after answers were drawn, no probability has moved.
        loss_names += ["clipped"] if options.updates > 1 else []
        self.measure_names = (*self._rollout_names, *loss_names)

    def prepare(
        self,
        run: Path,
        load_initial_model: Callable[[], Llama],
        *,
        precision: Precision,
        micro_rows: int,
    ) -> None:
        """Score the dev answers of the initial model, and keep it if need be; see `Objective`."""
        if self._options.kl:
            self._reference.keep(load_initial_model)
        self._start_scores.load_or_compute(run, load_initial_model, rows=micro_rows)

    def count(self, batch: GroupBatch) -> list[int]:
        """Return the number of answers, including those that are in no row."""
        return [batch.num_samples]

    def loss(
        self,
        module: nn.Module,
        batch: GroupBatch,
        totals: list[float],
        loss_path: LossPath,
        sums: Tensor | None,
    ) -> Tensor:
        """See `Objective`."""
        log_probs = module(
            batch.ids,
            batch.targets,
            target_positions=batch.loss_indices,
            per_target=True,
            positions=batch.positions,
            mask=batch.segments,
        )
        advantages = batch.advantages.repeat_interleave(batch.answer_lengths)
        losses, is_clipped = clipped_losses(
            log_probs, batch.old_log_probs, advantages, self._options.clip
        )
        measures = {}
        if self._options.updates > 1:
            measures["clipped"] = is_clipped.float()
        if self._options.kl:
            assert batch.reference_log_probs is not None
            divergences = estimate_divergences(log_probs, batch.reference_log_probs)
            losses = losses + self._options.kl * divergences
            measures["kl"] = divergences.detach()
        if sums is not None:
            sums[: len(self._rollout_names)] += batch.measure_sums
            for name, values in measures.items():
                means = torch.segment_reduce(values, "mean", lengths=batch.answer_lengths)
                sums[self.measure_names.index(name)] += means.double().sum()
        return losses.sum() / (totals[0] * self._options.max_new_tokens)

    def metrics(self, loss: float, measures: dict[str, float]) -> dict[str, float | None]:
        """Return the measures: means over the answers since the last log line."""
        return {name: measures.get(name) for name in self.measure_names}

    def format_metrics(self, metrics: dict[str, float | None]) -> str:
        """Return rewards, and what tells that there is nothing to learn, or that it goes wrong."""
        labels = {
            "reward": "reward {:.4f}",
            "reward_std": "± {:.4f} in a group",
            "no_gradient": "equal {:.0%}",
            "answer_tokens": "{:.1f} tokens",
            "stopped": "<eos> {:.0%}",
            "loops": "loops {:.1%}",
            "kl": "KL {:.4f}",
            "clipped": "clipped {:.1%}",
        }
        parts = [
            text.format(metrics[name])
            for name, text in labels.items()
            if metrics.get(name) is not None
        ]
        return "".join(f"  {part}" for part in parts)


def clipped_losses(
    log_probs: Tensor, old_log_probs: Tensor | None, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, [N], and whether clipping takes its gradient away, bool[N].

    Without old log-probabilities they are those of now: all ratios are 1, and have a gradient.
    """
    old = log_probs.detach() if old_log_probs is None else old_log_probs
    ratios = torch.exp(log_probs - old)
    gains = ratios * advantages
    clipped_gains = ratios.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(gains, clipped_gains), (clipped_gains < gains).detach()


def estimate_divergences(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Return the estimate k3 of the divergence from the reference at each token, [N].

    It is unbiased for tokens that were drawn from the model, and never negative.
    """
    log_ratios = reference_log_probs - log_probs
    return torch.exp(log_ratios) - log_ratios - 1
