"""The data of fine-tuning and of learning from preferences: examples, packed into rows."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batching.collate import PackedBatchLoader
from data.batching.examples import PackableExamples
from data.batching.packed_rows import PackedPlan
from model.chat_template.template import Template
from train import distributed
from train.options import FineTuneOptions
from train.run.mixture import MixtureSet
from train.run.spec import TrainingPlan


@dataclass(frozen=True)
class ExampleData:
    """Examples of one or more sets, packed into rows. It implements `train.run.spec.TrainingData`.

    `example_sets` are the training examples of the sets, in the same order; `loader` makes batches
    of them.
    """

    options: FineTuneOptions
    sets: tuple[MixtureSet, ...]
    template: Template
    example_sets: Sequence[PackableExamples]
    loader: type[PackedBatchLoader] = PackedBatchLoader

    def plan(self, folder: Path) -> TrainingPlan:
        """Return the batches and the length of the run; epoch plans are stored in `folder`."""
        options = self.options
        rows_per_step = options.rows_per_step
        row_plan = PackedPlan(
            self.example_sets,
            tuple(mixture_set.weight for mixture_set in self.sets),
            seed=options.seed,
            length=options.sequence_length,
            folder=folder,
            identity=self._identity(),
        )
        rows_per_epoch = row_plan.num_rows(epoch=0)
        # --max_steps replaces --epochs; `FineTuneOptions.find_conflicts` makes sure of one of them.
        max_steps = options.max_steps or 0
        assert options.epochs != "auto"  # `resolve_run` has replaced it
        if options.epochs is not None and not max_steps:
            max_steps = max(1, math.ceil(options.epochs * rows_per_epoch / rows_per_step))
        epochs = max_steps * rows_per_step / rows_per_epoch
        batches = self.loader(
            row_plan, rows_per_step, rank=distributed.rank(), world_size=distributed.world_size()
        )
        # Those that do not fit a row have length 0.
        lengths = np.concatenate([examples.lengths(epoch=0) for examples in self.example_sets])
        description = self._describe(
            row_plan, lengths, run_length=f"{max_steps:,} steps ({epochs:.2f} epochs)"
        )
        num_tokens = row_plan.num_tokens(epoch=0) * epochs
        return TrainingPlan(
            batches, max_steps, epochs, num_tokens, description, example_lengths=lengths
        )

    def _identity(self) -> str:
        """Return a sha256 of everything that the examples depend on.

        The stored epoch plans are computed again if it changes.
        """
        sets = [mixture_set.fingerprint for mixture_set in self.sets]
        return hashlib.sha256(json.dumps([sets, self.template.__dict__]).encode()).hexdigest()

    def _describe(self, row_plan: PackedPlan, lengths: np.ndarray, run_length: str) -> str:
        """Return the line of the summary about the data; `run_length` is its last part.

        `lengths` are those of all examples of epoch 0, with 0 for those that do not fit a row.
        """
        options = self.options
        num_skipped = int((lengths == 0).sum())
        num_examples = len(lengths) - num_skipped
        num_truncated = sum(examples.num_truncated for examples in self.example_sets)
        num_tokens = row_plan.num_tokens(epoch=0)
        num_rows = row_plan.num_rows(epoch=0)
        fill = num_tokens / num_rows / options.sequence_length
        return (
            f"{options.data}: {num_examples:,} examples, {num_truncated:,} cut to "
            f"{options.sequence_length} tokens, {num_skipped:,} too long and left out; "
            f"{num_tokens:,} tokens an epoch in {num_rows:,} rows ({fill:.0%} full); "
            f"{run_length}"
        )
