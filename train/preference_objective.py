"""The losses of preferences: DPO's sigmoid loss, and SimPO.

A pair has a margin: how much more the model prefers the chosen answer to the rejected one. DPO
(Rafailov et al. 2023, arXiv:2305.18290) measures it against a reference model, the base of the run:
beta times the difference of log(p / p_ref) of the two answers. SimPO (Meng et al. 2024,
arXiv:2405.14734) takes mean log-probabilities per id, and asks for a margin of gamma. The loss of
either is -log sigmoid(margin - gamma).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.run_layout import REFERENCE_DIR
from data.batching.preference_rows import PreferenceBatch, PreferenceExamples
from model.llama import Llama
from model.loss import LossPath
from model.precision import Precision
from train import distributed
from train.objective import Objective
from train.options import PairLossOptions
from train.reference import ReferenceLogProbs, load_or_compute_reference


def pair_margins(
    options: PairLossOptions, log_probs: Tensor, lengths: Tensor, reference: Tensor | None
) -> Tensor:
    """Return the margin of each pair, [n].

    `log_probs`[n, 2] are sums over the chosen and over the rejected answer, `lengths`[n, 2] their
    numbers of ids, `reference`[n, 2] the sums of the reference, which SimPO does without.
    """
    if options.loss == "simpo":
        rewards = log_probs / lengths
    else:
        assert reference is not None
        rewards = log_probs - reference
    margins: Tensor = options.beta * (rewards[:, 0] - rewards[:, 1])
    return margins


def pair_losses(options: PairLossOptions, margins: Tensor) -> Tensor:
    """Return the loss of each pair, [n], without the term of the chosen answers' cross-entropy."""
    excess = margins - options.gamma
    smoothing = options.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(excess) - smoothing * F.logsigmoid(-excess)


@dataclass
class PreferenceObjective(Objective[PreferenceBatch]):
    """The mean loss of the pairs, plus `nll` times the mean cross-entropy of the chosen answers."""

    options: PairLossOptions
    row_length: int
    train: Sequence[PreferenceExamples]
    validation: Sequence[PreferenceExamples]
    identity: dict[str, Any]  # what the reference depends on
    reference: ReferenceLogProbs | None = field(default=None, init=False)
    precision: Precision = field(default="fp32", init=False)
    micro_rows: int = field(default=1, init=False)
    _reference_sums: Tensor | None = field(default=None, init=False)

    measure_names = (
        "margin",
        "reward_accuracy",
        "chosen_log_prob",
        "rejected_log_prob",
        "chosen_tokens",
        "rejected_tokens",
    )
    measures_every_step: ClassVar[bool] = True
    uses_loss_path: ClassVar[bool] = False

    def prepare(
        self,
        run: Path,
        load_initial_model: Callable[[], Llama],
        *,
        precision: Precision,
        micro_rows: int,
    ) -> None:
        """Load the log-probabilities of the reference, or compute them; see `Objective`."""
        self.precision, self.micro_rows = precision, micro_rows
        if self.options.loss == "simpo":
            return
        # The other ranks find what the main process has stored.
        self.reference = distributed.main_process_first(
            lambda: load_or_compute_reference(
                run / REFERENCE_DIR,
                {**self.identity, "precision": precision},
                load_initial_model,
                self.train,
                self.validation,
                row_length=self.row_length,
                rows=micro_rows,
                precision=precision,
            )
        )

    def count(self, batch: PreferenceBatch) -> list[int]:
        """Return the numbers of pairs, and of ids in chosen answers."""
        return [len(batch.pairs), int(batch.answer_lengths[:, 0].sum())]

    def loss(
        self,
        module: nn.Module,
        batch: PreferenceBatch,
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
        answers = sum_answers(log_probs, batch.answer_lengths)
        margins = pair_margins(
            self.options, answers, batch.answer_lengths, self._reference_of(batch)
        )
        loss = pair_losses(self.options, margins).sum() / totals[0]
        if self.options.nll:
            loss = loss - self.options.nll * answers[:, 0].sum() / totals[1]
        if sums is not None:
            measures = torch.cat(
                [
                    torch.stack([margins, (margins > 0).float()], dim=1),
                    answers,
                    batch.answer_lengths,
                ],
                dim=1,
            )
            sums += measures.detach().double().sum(0)
        return loss

    def _reference_of(self, batch: PreferenceBatch) -> Tensor | None:
        """Return the reference's log-probabilities of both answers of each pair, fp32[n, 2]."""
        if self.reference is None:
            return None
        if self._reference_sums is None:
            # The memory map is read-only, which PyTorch does not have.
            self._reference_sums = torch.from_numpy(self.reference.train.copy()).to(
                batch.pairs.device
            )
        return self._reference_sums[batch.pairs]

    def metrics(self, loss: float, measures: dict[str, float]) -> dict[str, float | None]:
        """Return the measures: means over the pairs since the last log line."""
        return {name: measures.get(name) for name in self.measure_names}

    def format_metrics(self, metrics: dict[str, float | None]) -> str:
        """Return margin and reward accuracy for the terminal."""
        margin, accuracy = metrics["margin"], metrics["reward_accuracy"]
        if margin is None or accuracy is None:
            return ""
        return f"  margin {margin:+.3f}  accuracy {accuracy:.0%}"


def sum_answers(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Return the sum of each answer's log-probabilities, [N] -> [n, 2]; lengths[n, 2]."""
    # Unlike `index_add`, this adds in the same order every time on a GPU, too.
    return torch.segment_reduce(log_probs, "sum", lengths=lengths.flatten()).view(-1, 2)
