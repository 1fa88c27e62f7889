"""The resolved description of a training run.

Each training command resolves its options into a `RunSpec`, and `train.run.start.start` makes a
trainer of it. The fingerprints of a run, on which its weights depend, are stored in
`run.json`. When the run is resumed, its options are resolved again, and the fingerprints compared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data.batching.collate import BatchLoader
from model.chat_template.template import Template
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import LoraOptions
from model.lora_options import Quantization
from model.precision import Precision, resolve_precision
from model.tokenizer.base import Tokenizer
from train.monitoring.metrics_log import MetricsLog, SelectionMetric
from train.objective import Objective
from train.options import TrainOptions
from train.run.initial_checkpoint import InitialCheckpoint
from train.run.mixture import MixtureSet


@dataclass(frozen=True)
class TrainingPlan:
    """The batches of a run, and its length."""

    batches: BatchLoader
    max_steps: int
    epochs: float
    num_tokens: float  # estimated number of tokens of all steps, without padding
    description: str  # a line about the data and the length of the run, for the summary
    # Of the first epoch, int64[n]: the lengths of the parts that rows cut documents into, for text,
    # or those of the examples.
    document_parts: np.ndarray | None = None
    example_lengths: np.ndarray | None = None


class TrainingData(Protocol):
    """The mixture that a run trains on: text, examples, or questions."""

    @property
    def sets(self) -> tuple[MixtureSet, ...]:
        """The shard sets, in the order of --data."""

    def plan(self, folder: Path) -> TrainingPlan:
        """Return the batches and the length of the run.

        The order of the data in an epoch is stored in `folder`, so that resuming need not compute
        it again.
        """


class Evaluator(Protocol):
    """Measures the model during training, and selects the best checkpoint."""

    @property
    def every(self) -> int:
        """Steps between evaluations."""

    @property
    def patience(self) -> int:
        """Evaluations without a better score that end the run; 0: never."""

    @property
    def metric(self) -> SelectionMetric:
        """The metric that selects the best checkpoint."""

    @property
    def has_data(self) -> bool:
        """Whether there is anything to evaluate on."""

    def evaluate(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score the model on the first part of the held-out data, the same at every step."""

    def evaluate_all(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score the model on all held-out data; called after the last `evaluate` of a run."""


@dataclass(frozen=True)
class RunSpec:
    """The resolved options of a run, and the objects that they name.

    All of it is resolved and checked before anything is written or trained. Two things follow when
    the run directory is open, because they are computed once and stored in it: the number of steps
    that `--epochs` makes, which depends on the packed rows (`TrainingPlan`), and how the device
    computes, which is measured on the model (`train.autotune.ComputePlan`).
    """

    command: str  # as in `python -m train.COMMAND`
    options: TrainOptions  # as they are written to config.yaml, with the resolved base
    folder: Path
    device: torch.device
    base: InitialCheckpoint
    tokenizer: Tokenizer
    template: Template | None  # None: checkpoints of the run have no chat template
    model_config: LlamaConfig
    model_name: str  # the base or the preset, for the summary
    lora: LoraOptions | None  # None: all weights train
    data: TrainingData
    objective: Objective[Any]  # of the batches that `data` plans
    evaluator: Evaluator
    command_fingerprints: dict[str, Any]  # the fingerprints that only this command has
    quantize: Quantization | None = None  # of the frozen weights below an adapter

    @property
    def precision(self) -> Precision:
        """The number format to compute in."""
        return resolve_precision(
            self.device,
            self.options.precision,
            trained=self.model_config,
            is_quantized=self.quantize is not None,
        )

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, over all processes."""
        return self.options.rows_per_step

    @property
    def fingerprints(self) -> dict[str, Any]:
        """Everything on which the order of data or the arithmetic of a step depends, as JSON."""
        options = self.options
        return {
            "data": [mixture_set.fingerprint for mixture_set in self.data.sets],
            "tokenizer": self.tokenizer.fingerprint,
            "base": self.base.fingerprint,
            "model": self.model_config.to_hf(),
            "seed": options.seed,
            **options.step_size,
            "sequence_length": options.sequence_length,
            "optimizer": options.optimizer.model_dump(mode="json"),
            "schedule": options.schedule.model_dump(mode="json"),
            **self.command_fingerprints,
        }

    @property
    def record(self) -> dict[str, Any]:
        """The record of the run in `run.json`: folders of the shard sets, and fingerprints."""
        folders = [str(mixture_set.shards.folder.resolve()) for mixture_set in self.data.sets]
        return {"shards": folders, "fingerprints": self.fingerprints}
