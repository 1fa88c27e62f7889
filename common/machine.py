"""Cores, memory, device, matmul rate and software versions of the machine."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    import torch


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    # The affinity, unlike os.cpu_count(), respects taskset and cpusets. macOS does not have it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Return the peak resident set size of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` of getrusage would include the size of the parent process before the exec.
        (line,) = (
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM:")
        )
        return int(line.split()[1]) * 1024  # "VmHWM:   123456 kB"
    # Imported here because native Windows does not have it.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, other systems in KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """Return the resident set size of this process, in bytes; the peak on systems without /proc."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return peak_memory_bytes()
    # The second number of statm is the resident set size in pages.
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def total_memory_bytes() -> int:
    """Return the physical memory of the machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_device(name: str) -> "torch.device":
    """Return the `torch.device` named `auto`, `cpu`, `cuda` or `cuda:N`; `auto` prefers a GPU.

    Raises UserError if `cuda` is requested and not available.
    """
    # Imported here so that commands that use this module answer --help without loading PyTorch.
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device here; use --device cpu "
            "or install a CUDA build of torch"
        )
    return torch.device(name)


def matmul_flops(device: "torch.device", dtype: "torch.dtype", size: int | None = None) -> float:
    """Return the matmul rate of the device in FLOP/s: the best of five square matmuls.

    `size` is the number of rows. The rate is the denominator of model FLOPs utilization (MFU),
    which is thus relative to a measurement, not to a data sheet.
    """
    import torch

    # A run waits for this at every start. A CPU without arithmetic for a narrow type needs a minute
    # and more for five products of 2048 x 2048, and 256 x 256 is too little for the full rate.
    has_arithmetic = dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    )
    cpu_size = 1024 if has_arithmetic else 256
    size = size or (8192 if device.type == "cuda" else cpu_size)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    # Each of the size² sums has `size` multiplications and as many additions.
    return 2 * size**3 / best


def collect_environment(device: "torch.device | None" = None) -> dict[str, Any]:
    """Return the command, git commit, package versions and machine, to store in runs and results.

    With a `torch.device`, add its name and the number of threads of PyTorch.
    """
    environment: dict[str, Any] = {
        "command": _command_line(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": num_cores(),
        "commit": _git_commit(),
        "versions": {
            name: _package_version(name)
            for name in ("torch", "numpy", "sentencepiece", "safetensors")
        },
    }
    if device is not None:
        import torch

        environment["device"] = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        )
        environment["threads"] = torch.get_num_threads()
    return environment


def _command_line() -> str:
    """Return the command line as a user would type it."""
    # Under `python -m`, sys.argv[0] is a file; the name of the module is in its spec.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return " ".join(["python -m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the current folder, with `-dirty` after uncommitted changes, or None."""
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if process.returncode != 0:
        return None
    return process.stdout.strip() or None
