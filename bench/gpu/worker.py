"""The process of one check: a crash, a hang or full memory affects no other check."""

import faulthandler
import importlib
import json
import os
import platform
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from bench.gpu.checks import BY_NAME
from bench.gpu.report import NotRun, Report
from common.files import write_json

# A missing module of one of these is a bug, and not a package to be installed.
PACKAGES_OF_PROJECT = ("assets", "bench", "chat", "common", "data", "evaluate", "model", "train")


def work(
    name: str,
    device: str,
    work_folder: Path,
    report_file: Path,
    result_file: Path,
    log_file: Path,
    timeout: float,
) -> None:
    """Run a check as this process: write its verdict to `result_file`, its output to `log_file`.

    `report_file` holds the measurements so far, which remain if the process dies. `timeout` is the
    runner's limit in seconds.
    """
    # Its own process group, so that the runner can end all processes of the check.
    os.setpgid(0, 0)
    log_descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    # Descriptors 1 and 2 themselves, so that output of C++ code and subprocesses is logged too.
    for descriptor in (1, 2):
        os.dup2(log_descriptor, descriptor)
    faulthandler.enable()
    # If the runner is killed, nobody else ends a check that hangs.
    signal.alarm(int(timeout) + 20)
    report = Report(report_file)
    try:
        result = judge_check(name, device, work_folder, report)
    except Exception as error:
        traceback.print_exc()
        result = {
            "verdict": "failed",
            "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        }
    sys.stdout.flush()
    write_json(result_file, {**result, **report.as_dict()})


def probe(device: str, result_file: Path) -> None:
    """Write the torch version, and which device `device` (auto, cpu, cuda) means, or an error.

    It runs in a process of its own, because torch may crash or hang while it looks for devices.
    """
    try:
        import torch
    except ModuleNotFoundError:
        write_json(
            result_file,
            {"error": "torch is not installed: make setup, or pip install -r requirements.txt"},
        )
        return
    uses_cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not uses_cuda:
        write_json(
            result_file,
            {
                "error": "--device cuda: torch sees no CUDA device here; use --device cpu, or "
                "install a CUDA build of torch"
            },
        )
        return
    kind, name = (
        ("cuda", torch.cuda.get_device_name()) if uses_cuda else ("cpu", platform.machine())
    )
    write_json(result_file, {"device": kind, "name": name, "torch": torch.__version__})


def judge_check(name: str, device: str, work_folder: Path, report: Report) -> dict[str, Any]:
    """Run a check in this process, and return its `verdict` and the `reason` for it.

    Measurements go into `report`. Exceptions of the check are raised, except those that say that it
    cannot run on this machine.
    """
    check = BY_NAME[name]
    module_name, function_name = check.function.split(":")
    try:
        # Imported inside the block, because a missing package means that the check cannot run.
        import torch

        from bench.gpu.context import Context

        module = importlib.import_module(f"bench.gpu.{module_name}")
        run_check = getattr(module, function_name)
        # Comparisons need fp32; TF32 has the precision of fp16.
        torch.set_float32_matmul_precision("highest")
        run_check(Context(torch.device(device), work_folder, report), *check.arguments)
    except NotRun as error:
        return {"verdict": "not run", "reason": str(error)}
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or package in PACKAGES_OF_PROJECT:
            raise
        return {"verdict": "not run", "reason": f"{package} is not installed"}
    failures = [comparison for comparison in report.comparisons if not comparison["passed"]]
    if failures:
        first = failures[0]
        measured, bound = format_number(first["error"]), format_number(first["bound"])
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        reason = f"{first['name']}: {measured} above the bound of {bound}{more}"
        return {"verdict": "failed", "reason": reason}
    return {"verdict": "passed", "reason": _summarize(report)}


def _summarize(report: Report) -> str:
    """Return a line on a passed check: its tightest comparison, or its first three figures."""
    # The bound of a condition is 0: only the others say how close the error came to its bound.
    bounded = [comparison for comparison in report.comparisons if comparison["bound"] > 0]
    if bounded:
        tightest = max(bounded, key=lambda comparison: comparison["error"] / comparison["bound"])
        error, bound = format_number(tightest["error"]), format_number(tightest["bound"])
        num_comparisons = len(report.comparisons)
        return f"{num_comparisons} comparisons; tightest: {tightest['name']} {error} of {bound}"
    if report.comparisons:
        return f"{len(report.comparisons)} conditions hold"
    return "; ".join(
        f"{figure['name']} {format_number(figure['value'])} {figure['unit']}".strip()
        for figure in report.figures[:3]
    )


def format_number(value: float | str) -> str:
    """Format a measured value for a table.

    Four significant digits from 0.001 to 10,000, whole numbers up to a billion, else an exponent.
    """
    if isinstance(value, str):
        return value
    magnitude = abs(value)
    if magnitude == 0 or 1e-3 <= magnitude < 1e4:
        return f"{value:.4g}"
    if 1e4 <= magnitude < 1e9:
        return f"{value:,.0f}"
    return f"{value:.2e}"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if it is missing, damaged or not an object.

    A process that is killed may leave any of these.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
