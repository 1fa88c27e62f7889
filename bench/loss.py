"""`python -m bench.loss`: time and extra memory of the loss implementations."""

import json
import statistics
import subprocess
import sys
import time
from typing import Literal

from bench.options import LossOptions
from common.errors import run_main
from common.machine import collect_environment, peak_memory_bytes, resolve_device
from common.options import parse_options

DESCRIPTION = """Compare the implementations of the loss (loss paths): seconds, peak extra memory.

A measurement is a forward and backward pass in a process of its own; the loss paths alternate."""
# Names of the dtypes in torch, which is imported late.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    """Measure every loss path once per round, in a new process, and print the medians.

    The new process is this command with the hidden option `--path`: it measures that loss path and
    prints the result as JSON.
    """
    options = parse_options(LossOptions, sys.argv[1:], name="bench.loss", description=DESCRIPTION)
    if options.path:
        print(json.dumps(_measure_path(options, options.path)))
        return
    # Imported here so that --help and invalid options answer without loading PyTorch.
    import torch

    from model.loss import available_loss_paths

    paths = available_loss_paths(getattr(torch, DTYPES[options.precision]))
    results: dict[str, list[dict[str, float]]] = {path: [] for path in paths}
    for _ in range(options.rounds):
        for path in paths:
            command = [sys.executable, "-m", "bench.loss", *sys.argv[1:], "--path", path]
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            results[path].append(json.loads(process.stdout))
    print(
        f"{options.tokens} tokens, {options.hidden} wide, vocabulary {options.vocabulary}, "
        f"{options.precision}; {collect_environment()['platform']}"
    )
    for name, measurements in results.items():
        seconds = statistics.median(measurement["seconds"] for measurement in measurements)
        memory = statistics.median(measurement["memory"] for measurement in measurements)
        print(f"{name:8}  {seconds:6.2f} s  {memory / 1e6:8,.0f} MB more than the inputs")


def _measure_path(
    options: LossOptions, path: Literal["full", "chunked", "torch"]
) -> dict[str, float]:
    """Return the `seconds` of the fastest of three passes, and the bytes of `memory` they added."""
    import torch

    from model.loss import linear_cross_entropy

    device = resolve_device("auto")
    dtype = getattr(torch, DTYPES[options.precision])
    peak_bytes = torch.cuda.max_memory_allocated if device.type == "cuda" else peak_memory_bytes
    hidden = torch.randn(options.tokens, options.hidden, device=device).requires_grad_()
    # 0.02 is the usual standard deviation of initial weights.
    weight = torch.randn(options.vocabulary, options.hidden, device=device) * 0.02
    weight.requires_grad_()
    targets = torch.randint(options.vocabulary, (options.tokens,), device=device)
    bytes_before = peak_bytes()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = linear_cross_entropy(
                hidden, weight, targets, scale=1 / options.tokens, path=path
            )
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        hidden.grad = weight.grad = None
    return {"seconds": min(seconds), "memory": peak_bytes() - bytes_before}


if __name__ == "__main__":
    run_main(main)
