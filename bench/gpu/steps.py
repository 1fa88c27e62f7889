"""A step of the trainer on random ids, for speed and memory, without a run."""

import torch

from bench.gpu.context import random_ids
from model.llama import Llama
from train.autotune import ComputePlan, autocast
from train.optimizer import OptimizerOptions, build_optimizers


class TrainingStep:
    """Forward, backward, clip and update, in micro-batches, with the project's own optimizers."""

    def __init__(
        self, model: Llama, choices: ComputePlan, length: int, rows: int, *, optimizer: str = "muon"
    ) -> None:
        """Prepare steps of `rows` of `length` tokens, in micro-batches of `choices.micro_rows`."""
        self._model, self._choices, self._length, self._rows = model, choices, length, rows
        self.device = model.lm_head.weight.device
        options = OptimizerOptions.model_validate({"name": optimizer})
        self._clip = options.clip
        self._optimizers = list(build_optimizers(model, options).values())
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=choices.precision == "fp16")
        if choices.compile:
            model.model.compile()
        self._micro_rows = 0
        self.set_rows(choices.micro_rows)

    def set_rows(self, micro_rows: int) -> None:
        """Set the rows of a micro-batch; a step has at least one micro-batch."""
        self._micro_rows = micro_rows
        self._rows = max(self._rows, micro_rows)
        self._ids = random_ids(self._model.config, micro_rows, self._length).to(self.device)

    @property
    def tokens(self) -> int:
        """Return the tokens of a step."""
        return self._rows // self._micro_rows * self._micro_rows * self._length

    def __call__(self) -> float:
        """Train one step and return its loss (waits for the device)."""
        targets = self._ids.roll(-1, 1)
        total = torch.zeros((), device=self.device)
        for _ in range(self._rows // self._micro_rows):
            with autocast(self.device, self._choices.precision):
                loss = self._model(
                    self._ids, targets, scale=1 / self.tokens, loss_path=self._choices.loss_path
                )
            self._scaler.scale(loss).backward()
            total += loss.detach()
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        return float(total)
