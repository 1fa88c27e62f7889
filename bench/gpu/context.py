"""The common parts of the checks: device, shapes, random models, error measures."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.report import Report
from data.batching.collate import Batch, collate
from model.config import LlamaConfig, config_from_preset
from model.llama import Llama
from model.loss import LossPath
from model.precision import DTYPES, Precision, resolve_precision
from train.autotune import autocast

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
# Vocabulary sizes: of the tokenizer in assets/, and of the one of the larger models (not included).
VOCABULARIES = {"3m": 8192, "43m": 65_000, "92m": 65_000, "218m": 65_000}
# Small shapes for a CPU, where the checks test only the code.
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALL_VOCABULARY = 500
# The largest relative rounding error of each type; bounds of narrow types are multiples of it.
UNITS: dict[Precision, float] = {"bf16": 2.0**-8, "fp16": 2.0**-11}
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """Device and report of a check. All checks of one results folder share the folder `work`."""

    device: torch.device
    work: Path
    report: Report

    @property
    def small(self) -> bool:
        """Return True on a CPU, where small shapes test only the code."""
        return self.device.type == "cpu"

    def shape(self, name: str, **changes: Any) -> LlamaConfig:
        """Return the shape "3m", "43m", "92m" or "218m"; on a CPU a small one with such a head."""
        if not self.small:
            return config_from_preset(f"babyllama-{name}", VOCABULARIES[name], **changes)
        tied = {"tie_word_embeddings": name == "3m"}
        return LlamaConfig(**{"vocab_size": SMALL_VOCABULARY, **SMALL, **tied, **changes})

    def precisions(self) -> list[Precision]:
        """Return the narrow types of the device: a GPU before Ampere only emulates bf16."""
        if self.device.type == "cuda" and resolve_precision(self.device, "auto") != "bf16":
            self.report.note("bf16 is left out: this GPU has no arithmetic for it")
            return ["fp16"]
        return ["bf16", "fp16"]

    def synchronize(self) -> None:
        """Wait for the kernels of the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build_model(config: LlamaConfig, device: torch.device, *, seed: int = 0) -> Llama:
    """Return a model in training mode with the same random weights on every device.

    The matrices of the layers are twice as large as at initialization, where attention is nearly
    uniform for any input.
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
    skewed = torch.rand(rows, length, generator=generator) ** 4
    return 3 + (skewed * (config.vocab_size - 3)).long()


def packed_batch(config: LlamaConfig, sizes: Iterable[Iterable[int]], length: int) -> Batch:
    """Return packed rows of examples of these sizes, with a loss on the second half of each."""
    return collate([list(_examples(config, row)) for row in sizes], length)


def _examples(config: LlamaConfig, sizes: Iterable[int]) -> Iterator[tuple[Any, Any]]:
    for number, size in enumerate(sizes):
        ids = random_ids(config, 1, size + 1, seed=100 + number)[0].numpy()
        scored = torch.arange(size) >= size // 2
        yield ids, scored.numpy()


def loss_and_gradients(
    model: Llama,
    batch: Batch,
    *,
    precision: Precision = "fp32",
    path: LossPath = "chunked",
    hits: Tensor | None = None,
) -> tuple[float, Gradients]:
    """Return the mean loss and the gradients of a training step on a batch, in fp32 on the CPU."""
    device = model.lm_head.weight.device
    parameters = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    # GradScaler.unscale_ takes an optimizer; only its gradients matter here.
    optimizer = torch.optim.SGD([each for _, each in parameters], lr=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    batch = batch.to(device)
    with autocast(device, precision):
        loss = model(
            batch.ids,
            batch.targets,
            target_positions=batch.loss_indices,
            scale=1 / len(batch.targets),
            loss_path=path,
            positions=batch.positions,
            mask=batch.attention_mask(),
            num_correct=hits,
        )
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = {
        name: each.grad.detach().float().cpu() for name, each in parameters if each.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients


def text_batch(ids: Tensor, targets: Tensor | None = None) -> Batch:
    """Return rows of text with a loss at every position; by default the target is the next id."""
    return Batch(ids, (ids.roll(-1, 1) if targets is None else targets).flatten())


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return |value - reference| / |reference| (Euclidean norms)."""
    reference = reference.detach().double().cpu()
    return float(
        (value.detach().double().cpu() - reference).norm() / reference.norm().clamp_min(1e-300)
    )


def gradient_errors(
    value: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Return the relative error of all gradients together, and of the worst tensor.

    A missing gradient is an infinite error.
    """
    if value.keys() != reference.keys():
        return math.inf, math.inf
    together = relative_error(
        torch.cat([each.flatten() for each in value.values()]),
        torch.cat([reference[name].flatten() for name in value]),
    )
    return together, max(relative_error(each, reference[name]) for name, each in value.items())


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
    """Compare loss and gradients with a reference.

    `loss`, `gradients` and `worst` bound the relative errors.
    """
    report.compare(f"{name}: loss", abs(value[0] - reference[0]) / abs(reference[0]), loss)
    together, single = gradient_errors(value[1], reference[1])
    report.compare(f"{name}: gradients", together, gradients)
    report.compare(f"{name}: gradients, worst tensor", single, worst)


def best_precision(device: torch.device) -> tuple[Precision, torch.dtype]:
    """Return the precision that training chooses on a device, and its type."""
    precision = resolve_precision(device, "auto")
    return precision, DTYPES[precision]
