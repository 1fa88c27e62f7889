"""Cores, memory, device, matmul rate and software versions of the machine."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def num_cores() -> int:
    """Return the number of cores this process may use (respects taskset and cpusets)."""
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
        return int(line.split()[1]) * 1024
    import resource  # not on native Windows, where no command needs it to start

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """Return the resident set size of this process, in bytes; the peak on systems without /proc."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return peak_memory_bytes()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def total_memory_bytes() -> int:
    """Return the memory of the machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_device(name: str) -> Any:
    """Return the `torch.device` of `auto`, `cpu` or `cuda`; `auto` prefers a GPU.

    Raises UserError if `cuda` is requested and not available.
    """
    import torch

    from common.errors import UserError

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device here; use --device cpu "
            "or install a CUDA build of torch"
        )
    return torch.device(name)


def matmul_flops(device: Any, dtype: Any, size: int | None = None) -> float:
    """Measure the matmul rate of the device in FLOP/s: the best of five square products.

    It is the denominator of MFU, which is thus relative to a measurement, not to a data sheet.
    """
    import torch

    # A CPU without arithmetic for a narrow type multiplies 2048 × 2048 of it for a minute and more.
    cpu_size = 1024 if dtype == torch.float32 else 256
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
    return 2 * size**3 / best


def collect_environment(device: Any | None = None) -> dict[str, Any]:
    """Return the command, git commit, versions and machine, to be stored in runs and results."""
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
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if process.returncode != 0:
        return None
    return process.stdout.strip() or None
