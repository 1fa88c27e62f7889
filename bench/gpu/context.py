"""The common parts of the checks: device, model configs, random models, error measures."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu.report import Report
from data.batching.collate import Batch, collate
from data.batching.examples import Example
from model.config import LlamaConfig, config_from_preset
from model.llama import Llama
from model.loss import LossPath
from model.precision import DTYPES, Precision, resolve_precision
from train.autotune import autocast

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
# Vocabulary sizes: of the tokenizer in assets/, and of the one of the larger models (not included).
VOCAB_SIZES = {"3m": 8192, "43m": 65_000, "92m": 65_000, "218m": 65_000}
# The model of most checks on a CPU, where they test only the code.
SMALL_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALL_VOCAB_SIZE = 500
# The largest relative rounding error of each 16-bit type: 2 ** -(stored mantissa bits + 1).
# The bounds of 16-bit types are multiples of it.
UNIT_ROUNDOFF: dict[Precision, float] = {"bf16": 2.0**-8, "fp16": 2.0**-11}
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """Device and report of a check. All checks of one results folder share the folder `work`."""

    device: torch.device
    work: Path
    report: Report

    @property
    def is_small(self) -> bool:
        """Return whether the check runs on a CPU, where small models test only the code."""
        return self.device.type == "cpu"

    def model_config(self, name: str) -> LlamaConfig:
        """Return the config of the model "3m", "43m", "92m" or "218m".

        On a CPU it is that of SMALL_CONFIG, with a tied LM head if the named model has one.
        """
        if not self.is_small:
            return config_from_preset(f"babyllama-{name}", VOCAB_SIZES[name])
        is_tied = name == "3m"
        return LlamaConfig(SMALL_VOCAB_SIZE, **SMALL_CONFIG, tie_word_embeddings=is_tied)

    def low_precisions(self) -> list[Precision]:
        """Return the 16-bit types of the device: a GPU before Ampere only emulates bf16."""
        if self.device.type == "cuda" and resolve_precision(self.device, "auto") != "bf16":
            self.report.note("bf16 is left out: this GPU has no arithmetic for it")
            return ["fp16"]
        return ["bf16", "fp16"]

    def synchronize(self) -> None:
        """Wait until the GPU has run all kernels, which are launched asynchronously."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_peak_memory(self) -> None:
        """Count the peak of the GPU memory from here on; cached blocks are freed before."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> int | None:
        """Return the peak of the allocated GPU memory since the reset; None on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return None


def build_model(config: LlamaConfig, device: torch.device, *, seed: int = 0) -> Llama:
    """Return a model in training mode with the same random weights on every device.

    The matrices of the layers are twice as large as at initialization, where attention is nearly
    uniform for any input, so that errors of queries and keys would hardly show.
    """
    model = Llama(config).init_weights(seed)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
    return model.to(device).train()


def random_ids(config: LlamaConfig, rows: int, length: int, *, seed: int = 1) -> Tensor:
    """Return int64[rows, length] on the CPU; low ids are common, as in text."""
    generator = torch.Generator().manual_seed(seed)
    # The fourth power of uniform numbers in [0, 1) is dense near 0. Ids 0 to 2 are special tokens.
    skewed = torch.rand(rows, length, generator=generator) ** 4
    return 3 + (skewed * (config.vocab_size - 3)).long()


def packed_batch(config: LlamaConfig, rows: Iterable[Iterable[int]], length: int) -> Batch:
    """Return packed rows of `length` positions; a row is given by the sizes of its examples.

    The loss is on the second half of each example.
    """
    return collate([list(_random_examples(config, sizes)) for sizes in rows], length)


def _random_examples(config: LlamaConfig, sizes: Iterable[int]) -> Iterator[Example]:
    """Yield an example (`data.batching.examples`) for each size, its number of positions."""
    for index, size in enumerate(sizes):
        ids = random_ids(config, 1, size + 1, seed=100 + index)[0].numpy()
        loss_mask = np.arange(size) >= size // 2
        yield ids, loss_mask


def loss_and_gradients(
    model: Llama,
    batch: Batch,
    *,
    precision: Precision = "fp32",
    loss_path: LossPath = "chunked",
    num_correct: Tensor | None = None,
) -> tuple[float, Gradients]:
    """Return the mean loss and the gradients of a training step on a batch.

    The step is computed in `precision` on the device of the model, with loss scaling in fp16. The
    gradients are returned as fp32 on the CPU, by the name of the parameter. `num_correct`, int64[],
    is increased by the number of targets that are the argmax of the logits.
    """
    device = model.lm_head.weight.device
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    # Never stepped: GradScaler.unscale_ takes an optimizer to find the gradients.
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    batch = batch.to(device)
    with autocast(device, precision):
        loss = model(
            batch.ids,
            batch.targets,
            target_positions=batch.loss_indices,
            scale=1 / len(batch.targets),
            loss_path=loss_path,
            positions=batch.positions,
            mask=batch.segments,
            num_correct=num_correct,
        )
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = {
        name: parameter.grad.detach().float().cpu()
        for name, parameter in parameters.items()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients


def text_batch(ids: Tensor, targets: Tensor | None = None) -> Batch:
    """Return a batch of rows ids[R, T] with a loss at every position.

    `targets`[R, T] default to the next id in the row. The last position gets the first id of its
    row, because these checks only compare implementations and any id will do.
    """
    if targets is None:
        targets = ids.roll(-1, 1)
    # A batch has its targets without rows, [R * T].
    return Batch(ids, targets.flatten())


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return |value - reference| / |reference| in Euclidean norms, computed in fp64 on the CPU."""
    reference = reference.detach().double().cpu()
    difference = value.detach().double().cpu() - reference
    # If the reference is all zeros, an equal value has the error 0, not NaN, and any other a huge
    # one.
    return float(difference.norm() / reference.norm().clamp_min(1e-300))


def gradient_errors(
    value: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Return the relative error of all gradients as one vector, and that of the worst tensor.

    Both are infinite if a gradient is missing in one of them.
    """
    if value.keys() != reference.keys():
        return math.inf, math.inf
    total_error = relative_error(
        torch.cat([gradient.flatten() for gradient in value.values()]),
        torch.cat([reference[name].flatten() for name in value]),
    )
    worst_error = max(relative_error(gradient, reference[name]) for name, gradient in value.items())
    return total_error, worst_error


def compare_step(
    report: Report,
    name: str,
    value: tuple[float, Gradients],
    reference: tuple[float, Gradients],
    *,
    loss: float,
    gradients: float,
    worst: float,
) -> None:
    """Compare a loss and its gradients (`loss_and_gradients`) with a reference, in the report.

    `loss`, `gradients` and `worst` are upper bounds of the relative errors of the loss, of all
    gradients together, and of the worst tensor.
    """
    value_loss, value_gradients = value
    reference_loss, reference_gradients = reference
    loss_error = abs(value_loss - reference_loss) / abs(reference_loss)
    report.compare(f"{name}: loss", loss_error, loss)
    total_error, worst_error = gradient_errors(value_gradients, reference_gradients)
    report.compare(f"{name}: gradients", total_error, gradients)
    report.compare(f"{name}: gradients, worst tensor", worst_error, worst)


def best_precision(device: torch.device) -> tuple[Precision, torch.dtype]:
    """Return the precision that training chooses on a device by default, and its dtype."""
    precision = resolve_precision(device, "auto")
    return precision, DTYPES[precision]
