"""Speed: rates of the machine, training throughput beside two limits, prefill and decode.

The compute limit of training is the measured matmul rate over `LlamaConfig.flops_per_token`. The
bandwidth limit is the measured rate of a copy over `bytes_per_token`.
"""

import platform
import time
from importlib import metadata
from importlib.util import find_spec

import torch

from bench.gpu.context import UNITS, Context, best_precision, random_ids
from bench.gpu.report import NotRun
from bench.gpu.steps import TrainingStep
from common.machine import matmul_flops, num_cores
from model.config import LlamaConfig
from model.decode.batched_inference import InferenceBatch
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
# Rows and tokens of a step (configs/pretrain-43m.yaml), timed seconds at most, warm-up steps.
ROWS, LENGTH = 256, 512
TIMED_SECONDS, TIMED_STEPS, WARM_UP = 15.0, 6, 2
PROMPT, NEW = 128, 64
DECODE_ROWS = (1, 16, 64, 256)


def environment(context: Context) -> None:
    """Record the device, the versions, the matmul rate of each type and the bandwidth of memory."""
    report, device = context.report, context.device
    report.figure("python", platform.python_version())
    report.figure("torch", torch.__version__)
    for package in PACKAGES:
        report.figure(package, metadata.version(package) if find_spec(package) else "not installed")
    report.figure("CPU cores", float(num_cores()))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        report.figure("device", torch.cuda.get_device_name())
        report.figure("compute capability", f"{major}.{minor}")
        report.figure("memory", total / 1e9, "GB")
        report.figure("memory free", free / 1e9, "GB")
        report.figure("CUDA of torch", str(torch.version.cuda))
        report.figure("cuDNN", str(torch.backends.cudnn.version()))
    narrow = [each for each in UNITS if not context.small]
    for precision in ("fp32", *narrow):
        rate = matmul_flops(device, DTYPES[precision], 256 if context.small else None)
        report.figure(f"matmul rate, {precision}", rate / 1e12, "TFLOP/s")
    report.figure("memory bandwidth (read + written)", bandwidth(context) / 1e9, "GB/s")


def bandwidth(context: Context) -> float:
    """Return the memory bandwidth, bytes/s read and written: the best of several copies."""
    count = 2**20 if context.small else 2**28
    source = torch.ones(count, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(8):
        context.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        context.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * count / best


def bytes_per_token(config: LlamaConfig, width: int) -> int:
    """Return a lower bound of the bytes that training moves per token, with one kernel per matmul.

    A matmul of `inputs` to `outputs` reads and writes inputs + outputs numbers of `width` bytes in
    the forward pass, and as many for each of its two gradients. All other operations count as
    fused. Not counted are weights (a large micro-batch shares them), attention scores and the
    optimizer.
    """
    size, inner = config.hidden_size, config.intermediate_size
    heads, groups = (
        each * config.head_dim for each in (config.num_attention_heads, config.num_key_value_heads)
    )
    attention = 2 * (size + heads) + 2 * (size + groups)
    feed_forward = 3 * (size + inner)
    return (
        3
        * width
        * (config.num_hidden_layers * (attention + feed_forward) + size + config.vocab_size)
    )


def timed(context: Context, step: TrainingStep) -> float:
    """Return tokens/s of the median step, after compilation and warm-up."""
    for _ in range(1 if context.small else WARM_UP):
        step()
    seconds: list[float] = []
    while len(seconds) < (1 if context.small else TIMED_STEPS) and sum(seconds) < TIMED_SECONDS:
        context.synchronize()
        start = time.perf_counter()
        step()
        context.synchronize()
        seconds.append(time.perf_counter() - start)
    return step.tokens / sorted(seconds)[len(seconds) // 2]


def training(context: Context, name: str, how: str) -> None:
    """Measure training in the best precision, with the micro-batch and loss path of the search."""
    report, device, compiled = context.report, context.device, how == "compiled"
    rows, length = (2, 32) if context.small else (ROWS, LENGTH)
    config = context.shape(name)
    precision, dtype = best_precision(device)
    model = Llama(config).init_weights(0).to(device).train()
    choices = autotune(
        model,
        device,
        precision="auto",
        compile_mode=compiled,
        micro_batch="auto",
        rows_per_step=rows,
        length=length,
    )
    if choices.compile != compiled:
        raise NotRun("torch.compile does not work here; its reason is in the log of this check")
    step = TrainingStep(model, choices, length, rows)
    speed = timed(context, step)
    report.figure("tokens/s", speed)
    report.figure(
        "micro-batch",
        f"{choices.micro_rows} rows of {length}, {precision}, {choices.loss_path} loss",
    )
    report.figure("parameters", config.num_parameters / 1e6, "M")
    flops, rate = (
        config.flops_per_token(length),
        matmul_flops(device, dtype, 256 if context.small else None),
    )
    report.figure("FLOP per token", flops / 1e6, "M")
    report.figure("share of the matmul rate", 100 * speed * flops / rate, "%")
    moved, copied = bytes_per_token(config, dtype.itemsize), bandwidth(context)
    report.figure("bytes per token, at least", moved / 1e6, "MB")
    report.figure("share of the bandwidth", 100 * speed * moved / copied, "%")
    report.figure("limit of arithmetic", rate / flops, "tokens/s")
    report.figure("limit of bandwidth", copied / moved, "tokens/s")
    if device.type == "cuda":
        report.figure("peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB")


def decoding(context: Context) -> None:
    """Measure prefill and decode at several batch sizes; the limit is reading the weights."""
    report = context.report
    config = context.shape("43m")
    precision, dtype = best_precision(context.device)
    model = Llama(config).init_weights(0).to(context.device, dtype).eval()
    copied = bandwidth(context)
    prompt, new = (8, 4) if context.small else (PROMPT, NEW)
    for rows in (1, 4) if context.small else DECODE_ROWS:
        prompts = random_ids(config, rows, prompt).tolist()
        time_decode(context, model, prompts, 4)
        before, after = time_decode(context, model, prompts, new)
        report.figure(f"prefill, {rows} rows", rows * prompt / before, "tokens/s")
        report.figure(f"decode, {rows} rows", rows * (new - 1) / after, "tokens/s")
        # A decode step reads all matrices, and the KV cache of each row (half of the new ids on
        # average).
        cached = (
            2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim
            * (prompt + new / 2)
        )
        step_bytes = dtype.itemsize * (config.num_matmul_parameters + rows * cached)
        report.figure(
            f"decode, {rows} rows, limit of bandwidth", rows * copied / step_bytes, "tokens/s"
        )
    report.figure("precision", precision)


@torch.inference_mode()
def time_decode(
    context: Context, model: Llama, prompts: list[list[int]], new: int
) -> tuple[float, float]:
    """Return the seconds of the prefill and of the `new` - 1 decode steps."""
    context.synchronize()
    start = time.perf_counter()
    reader = InferenceBatch(model, prompts, max_new_tokens=new)
    ids = reader.head.argmax(reader.prefill())
    context.synchronize()
    first = time.perf_counter()
    for _ in range(new - 1):
        ids = reader.head.argmax(reader.decode_step(ids))
    context.synchronize()
    return first - start, time.perf_counter() - first
