"""Run the checks one after another, each in its own process with a timeout."""

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench.gpu import worker
from bench.gpu.checks import Check
from bench.gpu.results import FAILED, LOG_TAIL_CHARACTERS, NOT_RUN, PASSED, TIMED_OUT, Results
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
PROBE_SECONDS = 180.0  # for a first process that imports torch
WORK_KEY = "key.json"


@dataclass(frozen=True)
class Device:
    """The device of torch; `kind` is cpu or cuda, `torch` the version."""

    kind: str
    name: str
    torch: str

    def key(self) -> dict[str, str]:
        """Return what verdicts depend on: if anything of it changes, all checks run again."""
        shapes = "small" if self.kind == "cpu" else "full"
        return {"name": self.name, "torch": self.torch, "shapes": shapes, "source": source_digest()}


def source_digest() -> str:
    """Return a digest of the paths and contents of the project's code and configs."""
    digest = hashlib.sha256()
    for folder in (*worker.PACKAGES_OF_PROJECT, "configs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def start(target: Any, *arguments: Any) -> BaseProcess:
    """Start a process that calls `target`, as a fork of a server that has imported torch.

    The fork saves the seconds that torch takes to import.
    """
    multiprocessing_context = multiprocessing.get_context("forkserver")
    multiprocessing_context.set_forkserver_preload(["bench.gpu.preload"])
    process = multiprocessing_context.Process(target=target, args=arguments)
    process.start()
    return process


def probe(device: str, folder: Path) -> Device:
    """Return the device of `device` (auto, cpu, cuda). Raises UserError without torch or CUDA."""
    result_file = folder / "probe.json"
    result_file.unlink(missing_ok=True)
    process = start(worker.probe, device, result_file)
    process.join(PROBE_SECONDS)
    end(process)
    result = worker.read_json(result_file)
    result_file.unlink(missing_ok=True)
    if not result:
        raise UserError(
            f"torch cannot list its devices (exit code {process.exitcode}): see above, or try "
            "python -c 'import torch; print(torch.cuda.is_available())'"
        )
    if "error" in result:
        raise UserError(result["error"])
    return Device(result["device"], result["name"], result["torch"])


def end(process: BaseProcess) -> None:
    """End a process and its children with SIGTERM, and after GRACE_SECONDS with SIGKILL."""
    assert process.pid is not None
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        # A worker leads a process group of its own; its children may outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal_number)
        if process.is_alive():
            # Sent to the process itself too, because it may not lead its group yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)
            process.join(GRACE_SECONDS)


def open_work_folder(folder: Path, key: dict[str, str]) -> Path:
    """Return the work folder of all checks, emptied if another device or source code left it."""
    if worker.read_json(folder / WORK_KEY) != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / WORK_KEY, key)
    return folder


class Runner:
    """Run checks on one device, and store their results in the folder `out`."""

    def __init__(self, out: Path, work: Path, device: Device) -> None:
        key = device.key()
        environment = {
            name: value
            for name, value in collect_environment().items()
            if name in ("python", "platform", "cores", "commit")
        }
        self.device = device
        self.results = Results(out, key, environment)
        self.work = open_work_folder(work, key)

    def run(self, checks: Sequence[Check], minutes: float | None) -> list[str]:
        """Run checks, for `minutes` at most; return the names of those without a verdict."""
        deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        previous_handler = signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            for index, check in enumerate(checks):
                remaining_seconds = deadline - time.monotonic()
                if remaining_seconds <= 0 or not self._run_check(check, remaining_seconds):
                    return [unfinished.name for unfinished in checks[index:]]
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
        return []

    def _run_check(self, check: Check, remaining_seconds: float) -> bool:
        """Run a check for its time limit or `remaining_seconds`, whichever is less.

        Returns whether it has a verdict: it has none if `remaining_seconds` ended it.
        """
        if self.device.kind == "cpu" and check.cpu_reason:
            self._record(
                check,
                {
                    "verdict": NOT_RUN,
                    "reason": f"means nothing on a CPU: {check.cpu_reason}",
                    "seconds": 0.0,
                },
            )
            return True
        report_file, result_file, log_file = (
            self.work / f"{check.name}.{suffix}" for suffix in ("report", "result", "log")
        )
        for file in (report_file, result_file, log_file):
            file.unlink(missing_ok=True)
        self.results.begin(check.name)
        timeout = min(float(check.timeout), remaining_seconds)
        start_time = time.monotonic()
        process = start(
            worker.work,
            check.name,
            self.device.kind,
            self.work,
            report_file,
            result_file,
            log_file,
            timeout,
        )
        try:
            process.join(timeout)
            is_late = process.exitcode is None
        finally:
            end(process)
        if is_late and timeout < check.timeout:
            return False
        entry = worker.read_json(result_file)
        if is_late:
            # The report holds the measurements so far.
            entry = {
                "verdict": TIMED_OUT,
                "reason": f"did not end within {check.timeout} s",
                **worker.read_json(report_file),
            }
        elif not entry:
            entry = {
                "verdict": FAILED,
                "reason": _describe_death(process.exitcode),
                **worker.read_json(report_file),
            }
        if entry["verdict"] != PASSED:
            entry["log"] = _log_tail(log_file)
        self._record(check, {**entry, "seconds": round(time.monotonic() - start_time, 1)})
        return True

    def _record(self, check: Check, entry: dict[str, Any]) -> None:
        """Store and print the verdict of a check."""
        self.results.end(check.name, entry)
        print(
            f"{check.name:22} {entry['verdict']:9} {entry['seconds']:6.1f} s  {entry['reason']}",
            flush=True,
        )


def _exit_on_signal(signal_number: int, frame: FrameType | None) -> NoReturn:
    # SystemExit runs the `finally` that ends the processes of the check. 128 + n is the exit code
    # that shells report for a process ended by signal n.
    sys.exit(128 + signal_number)


def _describe_death(exit_code: int | None) -> str:
    """Return why a process without a verdict ended, from `exitcode` of `multiprocessing.Process`.

    A negative exit code is minus the number of the signal that ended the process. None would be the
    exit code of a process that is still running.
    """
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code} before it had a verdict"


def _log_tail(log: Path) -> str:
    """Return the last characters of a log, or an empty text if the process wrote none."""
    if not log.exists():
        return ""
    return log.read_text(encoding="utf-8", errors="replace").strip()[-LOG_TAIL_CHARACTERS:]
