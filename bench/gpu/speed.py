"""Speed: rates of the machine, training throughput beside two limits, prefill and decode.

The compute limit of training is the measured matmul rate divided by `LlamaConfig.flops_per_token`.
The bandwidth limit is the measured rate of a copy divided by `bytes_per_token`.
"""

import platform
import statistics
import time
from importlib import metadata
from importlib.util import find_spec

import torch

from bench.gpu.context import UNIT_ROUNDOFF, Context, best_precision, random_ids
from bench.gpu.report import NotRun
from bench.gpu.steps import TrainingStep
from common.machine import matmul_flops, num_cores
from model.config import LlamaConfig
from model.decode.batched_inference import start_batch
from model.llama import Llama
from model.precision import DTYPES
from train.autotune import autotune

PACKAGES = (
    "numpy",
    "pydantic",
    "safetensors",
    "sentencepiece",
    "tensorboard",
    "transformers",
    "triton",
)
ROWS, LENGTH = 256, 512  # rows of a step and tokens of a row, as in configs/pretrain-43m.yaml
# Timing a training step ends after this many steps or seconds, whichever comes first.
TIMED_STEPS, TIMED_SECONDS = 6, 15.0
WARM_UP_STEPS = 2
PROMPT, NEW = 128, 64  # ids of a prompt, and new ids
DECODE_ROWS = (1, 16, 64, 256)


def environment(context: Context) -> None:
    """Record the device, the versions, the matmul rate of each type and the memory bandwidth."""
    report, device = context.report, context.device
    report.figure("python", platform.python_version())
    report.figure("torch", torch.__version__)
    for package in PACKAGES:
        report.figure(package, metadata.version(package) if find_spec(package) else "not installed")
    report.figure("CPU cores", float(num_cores()))
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        report.figure("device", torch.cuda.get_device_name())
        report.figure("compute capability", f"{major}.{minor}")
        report.figure("memory", total_bytes / 1e9, "GB")
        report.figure("memory free", free_bytes / 1e9, "GB")
        report.figure("CUDA of torch", str(torch.version.cuda))
        report.figure("cuDNN", str(torch.backends.cudnn.version()))
    # A CPU only tests the code of this check, for which fp32 is enough.
    low_precisions = () if context.is_small else tuple(UNIT_ROUNDOFF)
    for precision in ("fp32", *low_precisions):
        rate = _matmul_rate(context, DTYPES[precision])
        report.figure(f"matmul rate, {precision}", rate / 1e12, "TFLOP/s")
    report.figure("memory bandwidth (read + written)", memory_bandwidth(context) / 1e9, "GB/s")


def _matmul_rate(context: Context, dtype: torch.dtype) -> float:
    """Return the matmul rate of the device in FLOP/s, measured with small matrices on a CPU."""
    return matmul_flops(context.device, dtype, size=256 if context.is_small else None)


def memory_bandwidth(context: Context) -> float:
    """Return the memory bandwidth, bytes/s read and written: the best of several copies."""
    num_bytes = 2**20 if context.is_small else 2**28
    source = torch.ones(num_bytes, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    fastest_seconds = float("inf")
    for _ in range(8):
        context.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        context.synchronize()
        fastest_seconds = min(fastest_seconds, time.perf_counter() - start)
    # A copy reads every byte and writes it.
    return 2 * num_bytes / fastest_seconds


def bytes_per_token(config: LlamaConfig, bytes_per_value: int) -> int:
    """Return a lower bound of the bytes that training moves per token, with one kernel per matmul.

    A linear layer reads its input and writes its output in the forward pass, and moves as many
    values for each of its two gradients. All other operations count as fused. Weights (a large
    micro-batch shares them), attention scores and the optimizer are not counted.
    """
    hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
    query_size = config.num_attention_heads * config.head_dim
    key_value_size = config.num_key_value_heads * config.head_dim
    # Input and output sizes of W_q and W_o, and of W_k and W_v.
    attention_values = 2 * (hidden_size + query_size) + 2 * (hidden_size + key_value_size)
    # Gate, up and down projection of SwiGLU.
    feed_forward_values = 3 * (hidden_size + intermediate_size)
    lm_head_values = hidden_size + config.vocab_size
    layer_values = config.num_hidden_layers * (attention_values + feed_forward_values)
    # Forward, gradient of the input, gradient of the weight.
    num_passes = 3
    return num_passes * bytes_per_value * (layer_values + lm_head_values)


def measure_training_speed(context: Context, train_step: TrainingStep) -> float:
    """Return tokens/s of the median step, after compilation and warm-up."""
    num_warm_up_steps, max_steps = (1, 1) if context.is_small else (WARM_UP_STEPS, TIMED_STEPS)
    for _ in range(num_warm_up_steps):
        train_step()
    seconds: list[float] = []
    while len(seconds) < max_steps and sum(seconds) < TIMED_SECONDS:
        context.synchronize()
        start = time.perf_counter()
        train_step()
        context.synchronize()
        seconds.append(time.perf_counter() - start)
    return train_step.num_tokens / statistics.median(seconds)


def training(context: Context, name: str, mode: str) -> None:
    """Measure the training throughput of the model `name`, and compare it with two limits.

    `mode` is "eager" or "compiled". One limit is the throughput at which the matmul rate of the
    device would be used up, the other that at which its memory bandwidth would be. The precision,
    the micro-batch and the loss path are those that `train.pretrain` would choose. Raises NotRun if
    torch.compile does not work on this machine.
    """
    report, device, is_compiled = context.report, context.device, mode == "compiled"
    rows, length = (2, 32) if context.is_small else (ROWS, LENGTH)
    config = context.model_config(name)
    model = Llama(config).init_weights(0).to(device).train()
    compute_plan = autotune(
        model,
        device,
        precision="auto",
        compile=is_compiled,
        micro_batch="auto",
        rows_per_step=rows,
        length=length,
    )
    # The search falls back to eager mode where compilation fails.
    if compute_plan.compile != is_compiled:
        raise NotRun("torch.compile does not work here; its reason is in the log of this check")
    precision, dtype = compute_plan.precision, DTYPES[compute_plan.precision]
    train_step = TrainingStep(model, compute_plan, length, rows)
    # The search tries larger micro-batches than the chosen one, which do not count.
    context.reset_peak_memory()
    speed = measure_training_speed(context, train_step)
    # Read before the rates are measured: that allocates tensors of its own.
    peak_bytes = context.peak_memory_bytes()
    report.figure("tokens/s", speed)
    report.figure(
        "micro-batch",
        f"{compute_plan.micro_rows} rows of {length}, {precision}, {compute_plan.loss_path} loss",
    )
    report.figure("parameters", config.num_parameters / 1e6, "M")
    flops_per_token = config.flops_per_token(length)
    matmul_rate = _matmul_rate(context, dtype)
    report.figure("FLOP per token", flops_per_token / 1e6, "M")
    report.figure("share of the matmul rate", 100 * speed * flops_per_token / matmul_rate, "%")
    moved_bytes = bytes_per_token(config, dtype.itemsize)
    bandwidth = memory_bandwidth(context)
    report.figure("bytes per token, at least", moved_bytes / 1e6, "MB")
    report.figure("share of the bandwidth", 100 * speed * moved_bytes / bandwidth, "%")
    # The throughput of a step that is bound by the matmuls alone, and by the memory alone.
    report.figure("limit of arithmetic", matmul_rate / flops_per_token, "tokens/s")
    report.figure("limit of bandwidth", bandwidth / moved_bytes, "tokens/s")
    if peak_bytes is not None:
        report.figure("peak memory", peak_bytes / 1e9, "GB")


def decoding(context: Context) -> None:
    """Measure prefill and decode at several batch sizes, beside the limit of memory bandwidth.

    A decode step cannot be faster than reading the weights and the KV cache once.
    """
    report = context.report
    config = context.model_config("43m")
    precision, dtype = best_precision(context.device)
    model = Llama(config).init_weights(0).to(context.device, dtype).eval()
    bandwidth = memory_bandwidth(context)
    prompt_length, num_new = (8, 4) if context.is_small else (PROMPT, NEW)
    # Keys and values of all layers. On average half of the new ids are in the cache.
    values_per_position = (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    )
    cached_values_per_row = values_per_position * (prompt_length + num_new / 2)
    for rows in (1, 4) if context.is_small else DECODE_ROWS:
        prompts = random_ids(config, rows, prompt_length).tolist()
        time_decode(context, model, prompts, 4)  # warm-up
        prefill_seconds, decode_seconds = time_decode(context, model, prompts, num_new)
        report.figure(f"prefill, {rows} rows", rows * prompt_length / prefill_seconds, "tokens/s")
        # The first new id of a row comes from the prefill.
        report.figure(f"decode, {rows} rows", rows * (num_new - 1) / decode_seconds, "tokens/s")
        values_per_step = config.num_matmul_parameters + rows * cached_values_per_row
        max_steps_per_second = bandwidth / (dtype.itemsize * values_per_step)
        report.figure(
            f"decode, {rows} rows, limit of bandwidth", rows * max_steps_per_second, "tokens/s"
        )
    report.figure("precision", precision)


@torch.inference_mode()
def time_decode(
    context: Context, model: Llama, prompts: list[list[int]], num_new: int
) -> tuple[float, float]:
    """Return the seconds of the prefill, and of all decode steps after it together.

    The prefill includes the allocation of the KV cache and the first of the `num_new` ids of every
    row; each decode step adds one id per row.
    """
    context.synchronize()
    start_time = time.perf_counter()
    batch, hidden = start_batch(model, prompts, max_new_tokens=num_new)
    ids = batch.head.argmax(hidden)
    context.synchronize()
    first_id_time = time.perf_counter()
    for _ in range(num_new - 1):
        ids = batch.head.argmax(batch.decode_step(ids))
    context.synchronize()
    return first_id_time - start_time, time.perf_counter() - first_id_time
