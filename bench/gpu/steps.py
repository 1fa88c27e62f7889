"""A training step on random ids, as the trainer runs it, to measure speed and memory."""

from typing import Any

import torch

from bench.gpu.context import random_ids
from model.llama import Llama
from train.autotune import ComputePlan, autocast
from train.optimizer import OptimizerOptions, build_optimizers


class TrainingStep:
    """Forward, backward, clip and update, in micro-batches, with the project's own optimizers.

    All micro-batches have the same ids: neither speed nor memory depends on them.
    """

    def __init__(
        self,
        model: Llama,
        compute_plan: ComputePlan,
        length: int,
        rows: int,
        *,
        optimizer: str = "muon",
    ) -> None:
        """Prepare steps of `rows` rows of `length` tokens, in the micro-batches of the plan."""
        self._model = model
        self._compute_plan = compute_plan
        self._length = length
        self._rows = rows
        self._device = model.lm_head.weight.device
        options = OptimizerOptions.model_validate({"name": optimizer})
        self._clip = options.clip
        self._optimizers = list(build_optimizers(model, options).values())
        # Only gradients in fp16 underflow without loss scaling.
        is_fp16 = compute_plan.precision == "fp16"
        # `Any`: the optimizers are not those of PyTorch.
        self._scaler: Any = torch.amp.GradScaler(self._device.type, enabled=is_fp16)
        if compute_plan.compile:
            model.model.compile()
        self.set_micro_rows(compute_plan.micro_rows)

    def set_micro_rows(self, micro_rows: int) -> None:
        """Set the rows of a micro-batch; a step has at least one micro-batch."""
        self._micro_rows = micro_rows
        self._rows = max(self._rows, micro_rows)
        self._ids = random_ids(self._model.config, micro_rows, self._length).to(self._device)

    @property
    def _num_micro_batches(self) -> int:
        return self._rows // self._micro_rows

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of a step."""
        return self._num_micro_batches * self._micro_rows * self._length

    def __call__(self) -> float:
        """Train one step and return its mean loss, which waits for the device."""
        targets = self._ids.roll(-1, 1)
        step_loss = torch.zeros((), device=self._device)
        for _ in range(self._num_micro_batches):
            with autocast(self._device, self._compute_plan.precision):
                loss = self._model(
                    self._ids,
                    targets,
                    scale=1 / self.num_tokens,
                    loss_path=self._compute_plan.loss_path,
                )
            self._scaler.scale(loss).backward()
            step_loss += loss.detach()
        # Unscaled before clipping, whose limit is for true gradients.
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        self._model.zero_grad()
        return float(step_loss)
