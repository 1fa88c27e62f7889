"""What is chosen once for a run's device, on a GPU by measuring, and then kept: micro-batch, loss path, precision."""

import time
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from common.errors import UserError
from data.batches import Batch
from model.llama import Llama
from model.loss import LossPath, available_paths, chunk_rows, linear_cross_entropy

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# On a CPU more tokens at once gain nothing (docs/log.md) and cost memory.
CPU_MICRO_TOKENS = 4096
# Bounded memory, and needs no particular torch; bench/loss.py compares the paths. Fixed, because a measured choice would
# differ from run to run where two are close, and with it the last bits of the weights.
CPU_LOSS_PATH: LossPath = "chunked"
# Where all logits of a micro-batch fit in this, computing them at once is worth trying.
FULL_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class Choices:
    """How a run computes. Any of it may differ between machines; the order of data does not depend on it."""

    device: str
    precision: Precision
    compile: bool
    micro_rows: int
    loss_path: LossPath


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which forward passes run; weights and optimiser state stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def choose_precision(device: torch.device, wish: str) -> Precision:
    """`auto`: bf16 on GPUs that compute in it (Ampere and later), fp16 on older ones, fp32 on a CPU."""
    if wish != "auto":
        return cast(Precision, wish)
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def measure(
    model: Llama, device: torch.device, *, precision: str, compile_wish: bool | str, micro_batch: int | str, rows: int,
    length: int,
) -> Choices:
    """Choose what is not given. `rows` of `length` tokens make a step; the micro-batch divides them."""
    kept: Any = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": choose_precision(device, precision),
        "compile": device.type == "cuda" if compile_wish == "auto" else bool(compile_wish),
    }
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    path = CPU_LOSS_PATH if device.type == "cpu" else _fastest_path(model, device, kept["precision"])
    if isinstance(micro_batch, int):
        micro_rows = max(n for n in divisors if n <= micro_batch)
    elif device.type == "cpu":
        micro_rows = max(n for n in divisors if n == 1 or n * length <= CPU_MICRO_TOKENS)
    else:
        micro_rows = _largest(model, device, kept["precision"], divisors, length, path)
    return Choices(**kept, micro_rows=micro_rows, loss_path=path)


def _fastest_path(model: Llama, device: torch.device, precision: Precision) -> LossPath:
    weight = model.lm_head.weight
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * chunk_rows(device)
    hidden = torch.randn(tokens, weight.shape[1], generator=generator).to(device)
    targets = torch.randint(len(weight), (tokens,), generator=generator).to(device)
    times: dict[LossPath, float] = {}
    for path in available_paths(DTYPES[precision]):
        if path == "full" and tokens * len(weight) * 4 > FULL_LOGITS_BYTES:
            continue
        for _ in range(2):  # the first turn warms up
            x, w = hidden.clone().requires_grad_(), weight.detach().requires_grad_()
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            with autocast(device, precision):
                linear_cross_entropy(x, w, targets, scale=1 / tokens, path=path).backward()
            torch.cuda.synchronize(device)
            times[path] = time.perf_counter() - start
    return min(times, key=lambda path: times[path])


def _largest(
    model: Llama, device: torch.device, precision: Precision, divisors: list[int], length: int, path: LossPath
) -> int:
    """The micro-batch that is fastest per row among those that fit, tried from one row upwards until memory ends."""
    best, best_time = 0, float("inf")
    for rows in divisors:
        ids = torch.randint(model.config.vocab_size, (rows, length), device=device)
        try:
            for _ in range(2):
                torch.cuda.reset_peak_memory_stats(device)
                torch.cuda.synchronize(device)
                start = time.perf_counter()
                with autocast(device, precision):
                    loss = model(ids, ids.flatten(), scale=0.0, loss_path=path)
                loss.backward()
                torch.cuda.synchronize(device)
                seconds = (time.perf_counter() - start) / rows
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            model.zero_grad(set_to_none=True)
        # Optimiser state (two numbers a weight) is not there yet, and fragmentation needs air.
        state = 8 * sum(parameter.numel() for parameter in model.parameters())
        limit = 0.9 * _gpu_memory(device)
        if best and torch.cuda.max_memory_allocated(device) + state > limit:
            break
        if seconds < 0.97 * best_time:
            best, best_time = rows, seconds
    torch.cuda.empty_cache()
    if not best:
        raise UserError(f"one row of {length} tokens does not fit in the GPU's memory: use a shorter --sequence_length "
                        "or a smaller --model.preset")
    return best


def _gpu_memory(device: torch.device) -> float:
    """Bytes that this process may have: its share of the card, and no more than others leave free."""
    free, total = torch.cuda.mem_get_info(device)
    return min(total * torch.cuda.get_per_process_memory_fraction(device), free + torch.cuda.memory_reserved(device))


def memory_needed(model: Llama, choices: Choices, length: int) -> int:
    """Bytes a run will need, by counting: weights, gradients, two moments, activations of one micro-batch, loss chunk.

    Activations per token and layer are what the backward pass keeps: about 10 hidden and 3 feed-forward vectors.
    """
    config, width = model.config, 4 if choices.precision == "fp32" else 2
    tokens = choices.micro_rows * length
    per_token = config.num_hidden_layers * (10 * config.hidden_size + 3 * config.intermediate_size)
    chunk = min(tokens, chunk_rows(model.lm_head.weight.device))
    logits = (tokens if choices.loss_path == "full" else chunk) * config.vocab_size * (width + 4)
    return 16 * config.parameters + width * tokens * per_token + logits + 4 * config.vocab_size * config.hidden_size


def check_batch(batch: Batch, vocabulary: int) -> None:
    """UserError if an id does not fit the model: an index error on a GPU says neither what nor where."""
    if int(batch.ids.max()) >= vocabulary:
        raise UserError(f"the data holds id {int(batch.ids.max())}, the model's vocabulary ends at {vocabulary - 1}")
