"""The list of checks, the most important first. It does not import torch: `--list` is quick."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A check: its function, its time limit, and whether it can run on a CPU."""

    name: str
    title: str
    function: str
    """`module:function` below `bench.gpu`; called with a `Context` and `arguments`."""
    arguments: tuple[str, ...] = ()
    timeout: int = 120
    """Time limit in seconds, on any device."""
    cpu_reason: str = ""
    """Reason to skip the check on a CPU; empty if it runs there with small models."""


COMPILER = "a CPU's compiler emits C++, which says nothing about a GPU's kernels"
ALLOCATOR = "only the memory of the CUDA allocator can be limited, and a CPU has none"

CHECKS = (
    # Equality first: the speed of a wrong model has no meaning.
    Check(
        "environment",
        "device, versions, packages; rates of the matmul and of memory",
        "speed:environment",
        timeout=90,
    ),
    Check(
        "loss-3m",
        "forward, every loss path and gradients against the CPU, fp32, 3M",
        "equality:losses",
        ("3m",),
    ),
    Check("loss-43m", "the same at 43M", "equality:losses", ("43m",), 180),
    Check(
        "narrow-3m",
        "bf16, and fp16 with loss scaling, against fp32, 3M",
        "equality:narrow",
        ("3m",),
    ),
    Check("narrow-43m", "the same at 43M", "equality:narrow", ("43m",)),
    Check(
        "packed",
        "packed rows against the same examples alone and against the CPU",
        "equality:packed",
    ),
    Check(
        "attention",
        "every attention kernel, causal, packed and grouped, against the CPU",
        "equality:attention",
    ),
    Check(
        "decode-3m",
        "decode and batched decode, fp32 and int8, against the CPU's ids, 3M",
        "decoding:decoding",
        ("3m",),
    ),
    Check("decode-43m", "the same at 43M", "decoding:decoding", ("43m",), 180),
    Check(
        "lora", "an adapter's loss, gradients, dropout and decode against the CPU", "equality:lora"
    ),
    Check("overflow", "training survives an overflow in fp16", "runs:overflow"),
    Check(
        "resume",
        "a resumed run ends in the bits of one that was not stopped",
        "runs:resume",
        timeout=400,
    ),
    Check(
        "oom",
        "running out of memory ends in one line",
        "runs:out_of_memory",
        timeout=180,
        cpu_reason=ALLOCATOR,
    ),
    Check(
        "compiled-3m",
        "eager against torch.compile, fp32 and narrow, packed too, 3M",
        "equality:compiled",
        ("3m",),
        240,
    ),
    Check(
        "micro-batch-6gb",
        "micro-batch search at 43M in 6 GB: planned and measured memory",
        "memory:micro_batch",
        ("6",),
        300,
        ALLOCATOR,
    ),
    Check(
        "train-43m-compiled",
        "training tokens/s at 43M, compiled",
        "speed:training",
        ("43m", "compiled"),
        300,
        COMPILER,
    ),
    Check(
        "train-43m-eager",
        "training tokens/s at 43M, eager",
        "speed:training",
        ("43m", "eager"),
        240,
    ),
    Check(
        "decode-speed",
        "prefill and decode tokens/s at 1, 16, 64 and 256 rows, 43M",
        "speed:decoding",
        timeout=180,
    ),
    Check(
        "transformers-eager",
        "transformers' Llama beside this project's, training and decode, eager",
        "peers:compare_with_transformers",
        ("eager",),
        300,
    ),
    Check(
        "across-devices",
        "a run begun on the CPU, continued on the device and back",
        "runs:across_devices",
        timeout=400,
    ),
    Check(
        "torchrun",
        "one process under torchrun trains like one without",
        "runs:torchrun",
        timeout=240,
    ),
    Check(
        "micro-batch-24gb",
        "micro-batch search at 43M in 24 GB",
        "memory:micro_batch",
        ("24",),
        300,
        ALLOCATOR,
    ),
    Check(
        "micro-batch-all",
        "micro-batch search at 43M in all memory",
        "memory:micro_batch",
        ("all",),
        300,
    ),
    Check(
        "compiled-43m",
        "eager against torch.compile at 43M",
        "equality:compiled",
        ("43m",),
        400,
        "the small model of a CPU would be that of compiled-3m once more",
    ),
    Check(
        "transformers-compiled",
        "transformers' Llama beside this project's, training, compiled",
        "peers:compare_with_transformers",
        ("compiled",),
        400,
        COMPILER,
    ),
    Check(
        "train-92m-compiled",
        "training tokens/s at 92M, compiled",
        "speed:training",
        ("92m", "compiled"),
        300,
        COMPILER,
    ),
    Check(
        "train-218m-compiled",
        "training tokens/s at 218M, compiled",
        "speed:training",
        ("218m", "compiled"),
        400,
        COMPILER,
    ),
    Check(
        "train-92m-eager",
        "training tokens/s at 92M, eager",
        "speed:training",
        ("92m", "eager"),
        240,
    ),
    Check(
        "train-218m-eager",
        "training tokens/s at 218M, eager",
        "speed:training",
        ("218m", "eager"),
        300,
    ),
    Check(
        "resume-deterministic",
        "resume with torch's deterministic algorithms: tells lost state from unordered sums",
        "runs:resume_deterministic",
        timeout=400,
        cpu_reason="the sums of a CPU have one order; see resume",
    ),
)
BY_NAME = {check.name: check for check in CHECKS}
