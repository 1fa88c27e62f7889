"""Time and memory of each loss path, forward and backward, one process per path.

python -m bench.loss --tokens 4096 --hidden 256 --vocabulary 65000 --precision fp32 --turns 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from common.errors import UserError, run_main
from common.machine import collect_environment, peak_memory_bytes, resolve_device
from common.options import CommandParser

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    """Run the command: interleave the turns, each in its own process."""
    parser = CommandParser(prog="python -m bench.loss", description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="positions with a loss")
    parser.add_argument("--hidden", type=int, default=256, help="width")
    parser.add_argument("--vocabulary", type=int, default=65_000, help="ids")
    parser.add_argument(
        "--precision", choices=DTYPES, default="fp32", help="type that the head is computed in"
    )
    parser.add_argument("--turns", type=int, default=3, help="processes per path, interleaved")
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("tokens", "hidden", "vocabulary", "turns"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.path:
        print(json.dumps(_run_turn(options)))
        return
    import torch

    from model.loss import available_loss_paths

    paths = available_loss_paths(getattr(torch, DTYPES[options.precision]))
    results: dict[str, list[dict[str, float]]] = {path: [] for path in paths}
    for _ in range(options.turns):
        for path, turns in results.items():
            command = [sys.executable, "-m", "bench.loss", *sys.argv[1:], "--path", path]
            turns.append(
                json.loads(
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout
                )
            )
    print(
        f"{options.tokens} tokens, {options.hidden} wide, vocabulary {options.vocabulary}, "
        f"{options.precision}; {collect_environment()['platform']}"
    )
    for path, turns in results.items():
        seconds, memory = (
            statistics.median(turn[key] for turn in turns) for key in ("seconds", "memory")
        )
        print(f"{path:8}  {seconds:6.2f} s  {memory / 1e6:8,.0f} MB more than the inputs")


def _run_turn(options: argparse.Namespace) -> dict[str, float]:
    import torch

    from model.loss import linear_cross_entropy

    device, dtype = resolve_device("auto"), getattr(torch, DTYPES[options.precision])
    peak = torch.cuda.max_memory_allocated if device.type == "cuda" else peak_memory_bytes
    hidden = torch.randn(options.tokens, options.hidden, device=device).requires_grad_()
    weight = (
        torch.randn(options.vocabulary, options.hidden, device=device) * 0.02
    ).requires_grad_()
    targets = torch.randint(options.vocabulary, (options.tokens,), device=device)
    before, seconds = peak(), []
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = linear_cross_entropy(
                hidden, weight, targets, scale=1 / options.tokens, path=options.path
            )
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        hidden.grad = weight.grad = None
    return {"seconds": min(seconds), "memory": peak() - before}


if __name__ == "__main__":
    run_main(main)
