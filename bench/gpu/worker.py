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

ROOMS = ("assets", "bench", "chat", "common", "data", "evaluate", "model", "train")


def work(
    name: str, device: str, folder: Path, report: Path, result: Path, log: Path, timeout: float
) -> None:
    """Run a check; write its verdict to `result` and its output to `log`."""
    # Its own process group, so that the runner can end all processes of the check.
    os.setpgid(0, 0)
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(number, stream)
    faulthandler.enable()
    # A killed runner cannot end a check that hangs.
    signal.alarm(int(timeout) + 20)
    collected = Report(report)
    try:
        found = verdict(name, device, folder, collected)
    except Exception as error:
        traceback.print_exc()
        found = {
            "verdict": "failed",
            "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        }
    sys.stdout.flush()
    write_json(result, {**found, **collected.as_dict()})


def probe(device: str, result: Path) -> None:
    """Write the torch version and the device of `device` (auto, cpu, cuda), or an error."""
    try:
        import torch
    except ModuleNotFoundError:
        write_json(
            result,
            {"error": "torch is not installed: make setup, or pip install -r requirements.txt"},
        )
        return
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        write_json(
            result,
            {
                "error": "--device cuda: torch sees no CUDA device here; use --device cpu, or "
                "install a CUDA build of torch"
            },
        )
        return
    name = torch.cuda.get_device_name() if cuda else platform.machine()
    write_json(
        result, {"device": "cuda" if cuda else "cpu", "name": name, "torch": torch.__version__}
    )


def verdict(name: str, device: str, folder: Path, report: Report) -> dict[str, Any]:
    check = BY_NAME[name]
    module, function = check.function.split(":")
    try:
        import torch

        context_type = importlib.import_module("bench.gpu.context").Context
        target = getattr(importlib.import_module(f"bench.gpu.{module}"), function)
        # Comparisons need fp32; TF32 has the precision of fp16.
        torch.set_float32_matmul_precision("highest")
        target(context_type(torch.device(device), folder, report), *check.arguments)
    except NotRun as error:
        return {"verdict": "not run", "reason": str(error)}
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or package in ROOMS:
            raise
        return {"verdict": "not run", "reason": f"{package} is not installed"}
    failed = [each for each in report.comparisons if not each["passed"]]
    if failed:
        first = failed[0]
        measured, bound = number(first["error"]), number(first["bound"])
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        reason = f"{first['name']}: {measured} above the bound of {bound}{more}"
        return {"verdict": "failed", "reason": reason}
    return {"verdict": "passed", "reason": summary(report.as_dict())}


def summary(report: dict[str, Any]) -> str:
    """Return the line of a passed check: its tightest comparison, or its first figures."""
    bounded = [each for each in report["comparisons"] if each["bound"] > 0]
    if bounded:
        tightest = max(bounded, key=lambda each: each["error"] / each["bound"])
        count = len(report["comparisons"])
        error, bound = number(tightest["error"]), number(tightest["bound"])
        return f"{count} comparisons; tightest: {tightest['name']} {error} of {bound}"
    if report["comparisons"]:
        return f"{len(report['comparisons'])} conditions hold"
    return "; ".join(
        f"{each['name']} {number(each['value'])} {each['unit']}".strip()
        for each in report["figures"][:3]
    )


def number(value: float | str) -> str:
    """Format a measured value for a table."""
    if isinstance(value, str):
        return value
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) < 1e9 and abs(value) >= 1 else f"{value:.2e}"


def read(path: Path) -> dict[str, Any]:
    """Return the output of a worker; empty if it wrote nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
