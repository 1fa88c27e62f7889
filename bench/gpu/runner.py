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
from bench.gpu.results import FAILED, NOT_RUN, PASSED, TAIL, TIMED_OUT, Results
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment

ROOT = Path(__file__).resolve().parents[2]
# Seconds from SIGTERM to SIGKILL, and for the start of a process.
GRACE, PROBE = 5.0, 180.0
WORK_KEY = "key.json"


@dataclass(frozen=True)
class Device:
    """The device of torch; `kind` is cpu or cuda."""

    kind: str
    name: str
    torch: str

    def key(self) -> dict[str, str]:
        """Return the key of verdicts: another device, torch or source needs new checks."""
        shapes = "small" if self.kind == "cpu" else "full"
        return {"name": self.name, "torch": self.torch, "shapes": shapes, "source": source_digest()}


def source_digest() -> str:
    """Return a digest of the code and configurations of the project."""
    digest = hashlib.sha256()
    for folder in (*worker.ROOMS, "configs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def start(target: Any, *arguments: Any) -> BaseProcess:
    """Start a fork of a server that has imported torch, which saves seconds per check."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.gpu.preload"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def probe(device: str, folder: Path) -> Device:
    """Return the device of `device` (auto, cpu, cuda). Raises UserError without torch or CUDA."""
    result = folder / "probe.json"
    result.unlink(missing_ok=True)
    process = start(worker.probe, device, result)
    process.join(PROBE)
    end(process)
    found = worker.read(result)
    result.unlink(missing_ok=True)
    if not found:
        raise UserError(
            f"torch cannot list its devices (exit code {process.exitcode}): see above, or try "
            "python -c 'import torch; print(torch.cuda.is_available())'"
        )
    if "error" in found:
        raise UserError(found["error"])
    return Device(found["device"], found["name"], found["torch"])


def end(process: BaseProcess) -> None:
    """End a process and its children."""
    assert process.pid is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if process.is_alive():
            # The process may not have a group yet.
            process.terminate() if number == signal.SIGTERM else process.kill()
            process.join(GRACE)


def open_work(folder: Path, key: dict[str, str]) -> Path:
    """Return the common folder of the checks; empty it if it belongs to another key."""
    if worker.read(folder / WORK_KEY) != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / WORK_KEY, key)
    return folder


class Runner:
    """Run checks and store their results."""

    def __init__(self, out: Path, work: Path, device: Device) -> None:
        key = device.key()
        made = {
            name: value
            for name, value in collect_environment().items()
            if name in ("python", "platform", "cores", "commit")
        }
        self.device, self.results = device, Results(out, key, made)
        self.work = open_work(work, key)

    def run(self, checks: Sequence[Check], minutes: float | None) -> list[str]:
        """Run checks for `minutes`; return the names of those that were not reached."""
        deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            for place, check in enumerate(checks):
                left = deadline - time.monotonic()
                if left <= 0 or not self._make(check, left):
                    return [each.name for each in checks[place:]]
        finally:
            signal.signal(signal.SIGTERM, before)
        return []

    def _make(self, check: Check, left: float) -> bool:
        """Run a check; return False if the time of this call ended it without a verdict."""
        if self.device.kind == "cpu" and check.cpu_reason:
            self._end(
                check,
                {
                    "verdict": NOT_RUN,
                    "reason": f"means nothing on a CPU: {check.cpu_reason}",
                    "seconds": 0.0,
                },
            )
            return True
        files = {name: self.work / f"{check.name}.{name}" for name in ("report", "result", "log")}
        for file in files.values():
            file.unlink(missing_ok=True)
        self.results.begin(check.name)
        limit = min(float(check.timeout), left)
        begun = time.monotonic()
        process = start(
            worker.work, check.name, self.device.kind, self.work, *files.values(), limit
        )
        try:
            process.join(limit)
            late = process.exitcode is None
        finally:
            end(process)
        entry = worker.read(files["result"])
        if late and limit < check.timeout:
            return False
        if late:
            entry = {
                "verdict": TIMED_OUT,
                "reason": f"did not end within {check.timeout} s",
                **worker.read(files["report"]),
            }
        elif not entry:
            entry = {
                "verdict": FAILED,
                "reason": _death(process.exitcode),
                **worker.read(files["report"]),
            }
        if entry["verdict"] != PASSED:
            entry["log"] = _tail(files["log"])
        self._end(check, {**entry, "seconds": round(time.monotonic() - begun, 1)})
        return True

    def _end(self, check: Check, entry: dict[str, Any]) -> None:
        self.results.end(check.name, entry)
        print(
            f"{check.name:22} {entry['verdict']:9} {entry['seconds']:6.1f} s  {entry['reason']}",
            flush=True,
        )


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    # SystemExit runs the `finally` that ends the processes of the check.
    sys.exit(128 + number)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code} before it had a verdict"


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    return log.read_text(encoding="utf-8", errors="replace").strip()[-TAIL:]
