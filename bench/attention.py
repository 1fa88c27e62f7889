"""`python -m bench.attention`: attention by strips beside PyTorch's, on a CPU."""

import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from bench.options import AttentionOptions
from common.errors import run_main
from common.heap import keep_freed_memory
from common.machine import collect_environment
from common.options import parse_options

DESCRIPTION = """Compare attention by strips with PyTorch's, in whole and in packed rows, by turns.

With one thread, its processor time, so that other work on the machine distorts it less; with
several, the time that passes: then nothing else may run."""


def main() -> None:
    """Measure each variant once per round, and print the medians and the limit by products."""
    options = parse_options(
        AttentionOptions, sys.argv[1:], name="bench.attention", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from model.attention.blocks import AttentionFunction
    from model.attention.segments import Segment, Segments, whole_rows

    torch.set_num_threads(options.threads)
    # As in training: freed memory is kept, whose pages would be filled with zeros again and again.
    keep_freed_memory()
    seconds_now = time.thread_time if options.threads == 1 else time.perf_counter
    rows, heads, length = options.rows, options.heads, options.length
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    q, k, v, d_out = (
        torch.randn(rows, length, heads, options.head_dim, dtype=dtype) for _ in range(4)
    )
    rng = random.Random(0)
    items = []
    for row in range(rows):
        inner_bounds = [rng.randrange(length) for _ in range(options.segments - 1)]
        items += [Segment(row, *bounds) for bounds in pairwise([0, *sorted(inner_bounds), length])]
    packed = Segments(tuple(items), rows, length)
    mask = packed.mask_on(q.device)

    def torch_attention(mask: Tensor | None) -> Callable[..., Tensor]:
        return lambda q, k, v: F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
        ).transpose(1, 2)

    variants: dict[str, Callable[..., Tensor]] = {
        "torch": torch_attention(None),
        "strips": lambda *qkv: AttentionFunction.apply(*qkv, whole_rows(rows, length)),
        "torch, packed": torch_attention(mask),
        "strips, packed": lambda *qkv: AttentionFunction.apply(*qkv, packed),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    square, matmul_seconds = torch.randn(1024, 1024), []
    # One round more: in the first, buffers are made.
    for _ in range(options.rounds + 1):
        start = seconds_now()
        square @ square
        matmul_seconds.append(seconds_now() - start)
        for name, attention in variants.items():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            start = seconds_now()
            out = attention(*leaves)
            middle = seconds_now()
            torch.autograd.grad(out, leaves, d_out)
            seconds[name].append((middle - start, seconds_now() - middle))
    print(
        f"{rows} rows, {heads} heads of {options.head_dim}, {length} positions, packed: "
        f"{options.segments} segments, {options.precision}, {options.threads} threads; "
        f"{collect_environment()['platform']}"
    )
    totals = {name: statistics.median(map(sum, times[1:])) for name, times in seconds.items()}
    for name, times in seconds.items():
        forward, backward = (statistics.median(column) for column in zip(*times[1:], strict=True))
        ratio = totals["torch, packed" if "packed" in name else "torch"] / totals[name]
        print(
            f"{name:15}{forward * 1e3:8.1f} ms forward{backward * 1e3:8.1f} ms backward"
            f"{totals[name] * 1e3:8.1f} ms{ratio:6.2f} of torch's speed"
        )
    # Two products forward and five backward, in half of the pairs of positions.
    flops = 7 * 2 * rows * heads * length * (length + 1) / 2 * options.head_dim
    limit = statistics.median(matmul_seconds[1:]) * flops / (2 * len(square) ** 3)
    print(f"its products alone, at the rate of large ones in fp32: {limit * 1e3:.1f} ms")


if __name__ == "__main__":
    run_main(main)
