"""What a training step minimizes: the loss of a batch, and the measures of a log line.

The trainer knows nothing about a loss except this interface. `CrossEntropy`, below, is that of
pretraining and fine-tuning.
"""

import abc
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from data.batching.collate import Batch
from model.llama import Llama
from model.loss import LossPath
from model.precision import Precision

BatchT = TypeVar("BatchT", bound=Batch)


class Objective(abc.ABC, Generic[BatchT]):
    """The loss of a run, a mean over the terms of a step, such as its targets.

    The terms of a step are spread over micro-batches and ranks, of which each holds another number
    of them. A micro-batch therefore divides by numbers of the whole step, `totals`: its terms are
    counted first, by `count`, and the counts are summed over micro-batches and ranks.
    """

    # What a log line can tell besides the loss: measures of each term, of which it has the mean.
    measure_names: tuple[str, ...]
    # True: measuring is cheap, and a log line has the mean over all terms since the last one.
    # False: it has that of the last step, and other steps do not measure.
    measures_every_step: ClassVar[bool]
    # Whether the loss stays near a level, so that a step far above it is worth a warning.
    has_loss_level: ClassVar[bool] = True
    # The loss is a cross-entropy with a choice of implementations. Log-probabilities of the targets
    # (`Llama.forward` with `per_target`) have one, which needs the memory of the chunked path.
    uses_loss_path: ClassVar[bool] = True

    def prepare(
        self,
        run: Path,
        load_initial_model: Callable[[], Llama],
        *,
        precision: Precision,
        micro_rows: int,
    ) -> None:
        """Compute what is computed once in a run, and stored in its directory; by default nothing.

        Called on all ranks before the first step of a process, also of one that resumes the run.
        `load_initial_model` returns the model as it was before the first step of the run, or raises
        UserError if its base is gone. In a new run it is the model that will be trained: leave it
        as it is. `precision` and `micro_rows` are those of training.
        """

    @abc.abstractmethod
    def count(self, batch: BatchT) -> list[int]:
        """Return the numbers that `loss` divides by; the first is the number of terms."""

    @abc.abstractmethod
    def loss(
        self,
        module: nn.Module,
        batch: BatchT,
        totals: list[float],
        loss_path: LossPath,
        sums: Tensor | None,
    ) -> Tensor:
        """Return this batch's share of the mean loss of the step, a scalar.

        Args:
            module: `Llama`, or DDP around it; called once.
            batch: a micro-batch on the device of the module.
            totals: the sums of `count` over all micro-batches of the step, as a mean over the
                ranks: gradients, and losses, are averaged over the ranks afterwards.
            loss_path: the implementation of the cross-entropy, see `model.loss`.
            sums: fp64[k], to which the measures of all terms of the batch are added; None: they
                are not needed.
        """

    @abc.abstractmethod
    def metrics(self, loss: float, measures: dict[str, float]) -> dict[str, float | None]:
        """Return the fields that a log line has besides those of every run.

        `loss` is the mean over the interval; `measures` are means by their names, and empty if no
        term was measured.
        """

    def format_metrics(self, metrics: dict[str, float | None]) -> str:
        """Return `metrics` for the terminal, beginning with two spaces; by default nothing."""
        return ""


class CrossEntropy(Objective[Batch]):
    """The mean cross-entropy of the targets, in nats."""

    measure_names = ("accuracy",)
    # Counting correct predictions takes another pass over the logits.
    measures_every_step = False

    def count(self, batch: Batch) -> list[int]:
        """Return the number of targets."""
        return [len(batch.targets)]

    def loss(
        self,
        module: nn.Module,
        batch: Batch,
        totals: list[float],
        loss_path: LossPath,
        sums: Tensor | None,
    ) -> Tensor:
        """See `Objective`."""
        loss: Tensor = module(
            batch.ids,
            batch.targets,
            target_positions=batch.loss_indices,
            scale=1 / totals[0],
            loss_path=loss_path,
            positions=batch.positions,
            mask=batch.segments,
            num_correct=None if sums is None else sums[0],
        )
        return loss

    def metrics(self, loss: float, measures: dict[str, float]) -> dict[str, float | None]:
        """Return accuracy and perplexity."""
        # The exponential of more than 709 overflows a float.
        return {"accuracy": measures.get("accuracy"), "perplexity": math.exp(min(loss, 700.0))}
