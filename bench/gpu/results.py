"""The results of all checks: a JSON file and a Markdown page, complete after each check."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.gpu.checks import CHECKS, Check
from bench.gpu.worker import number, read
from common.files import write_atomic, write_json

FORMAT = "babyllama-check-gpu-1"
JSON, PAGE = "results.json", "results.md"
PASSED, FAILED, NOT_RUN, TIMED_OUT = "passed", "failed", "not run", "timed out"
BAD = (FAILED, TIMED_OUT)
# Length of the tail of the log of a failed check, in characters.
TAIL = 3000


class Results:
    """The verdicts in a folder. Verdicts of another device, torch or source are moved away."""

    def __init__(self, folder: Path, key: dict[str, str], made: dict[str, Any]) -> None:
        self.folder, self._key, self._made = folder, key, made
        self.entries: dict[str, dict[str, Any]] = {}
        self.put_aside = False
        folder.mkdir(parents=True, exist_ok=True)
        before = read(folder / JSON)
        if before.get("key") == key:
            self.entries = before["checks"]
        elif before:
            for name in (JSON, PAGE):
                if (folder / name).exists():
                    (folder / name).replace(folder / f"previous-{name}")
            self.put_aside = True

    def verdict(self, name: str) -> str | None:
        """Return the verdict of a check; None if it has not run, or was interrupted."""
        return self.entries.get(name, {}).get("verdict")

    def begin(self, name: str) -> None:
        """Record that a check has begun: after an interruption it runs last."""
        self.entries[name] = {"begun": self.entries.get(name, {}).get("begun", 0) + 1}
        self.write()

    def end(self, name: str, entry: dict[str, Any]) -> None:
        """Record a verdict."""
        self.entries[name] = entry
        self.write()

    def pending(self, checks: Iterable[Check]) -> list[Check]:
        """Return the checks without a verdict in order, interrupted ones last."""
        left = [check for check in checks if self.verdict(check.name) in (None, NOT_RUN)]
        return sorted(left, key=lambda check: self.entries.get(check.name, {}).get("begun", 0))

    @property
    def bad(self) -> list[str]:
        """Return the names of the checks that failed or timed out."""
        return [check.name for check in CHECKS if self.verdict(check.name) in BAD]

    def write(self) -> None:
        """Write both files."""
        write_json(
            self.folder / JSON,
            {"format": FORMAT, "key": self._key, "made": self._made, "checks": self.entries},
        )
        write_atomic(self.folder / PAGE, self.page())

    def page(self) -> str:
        """Return the Markdown page: a table of verdicts, the figures, and the failures."""
        counts = [
            f"{sum(self.verdict(check.name) == each for check in CHECKS)} {each}"
            for each in (PASSED, FAILED, TIMED_OUT, NOT_RUN)
        ]
        left = sum(self.verdict(check.name) is None for check in CHECKS)
        lines = [
            f"# check-gpu: {self._key['name']}",
            "",
            f"torch {self._key['torch']}, {self._key['shapes']} shapes, "
            f"commit {self._made.get('commit') or 'unknown'}, "
            f"{self._made.get('platform')}, Python {self._made.get('python')}",
            "",
            f"{', '.join(counts)}, {left} to come. Bounds are stated in bench/gpu.",
            "",
            "| check | verdict | s | result |",
            "|---|---|--:|---|",
        ]
        for check in CHECKS:
            entry = self.entries.get(check.name, {})
            verdict = entry.get("verdict") or ("cut off" if entry else "to come")
            seconds = f"{entry['seconds']:.0f}" if "seconds" in entry else ""
            lines.append(
                f"| {check.name} | {verdict} | {seconds} | {cell(entry.get('reason', ''))} |"
            )
        for check in CHECKS:
            lines += self._section(check)
        return "\n".join(lines) + "\n"

    def _section(self, check: Check) -> list[str]:
        entry = self.entries.get(check.name, {})
        figures = entry.get("figures", [])
        lines = [
            f"| {cell(each['name'])} | {cell(number(each['value']))} | {each['unit']} |"
            for each in figures
        ]
        if lines:
            lines = ["", "| figure | value | unit |", "|---|--:|---|", *lines]
        failed = [each for each in entry.get("comparisons", []) if not each["passed"]]
        if failed:
            lines += ["", "| comparison that failed | error | bound |", "|---|--:|--:|"]
            lines += [
                f"| {cell(each['name'])} | {number(each['error'])} | {number(each['bound'])} |"
                for each in failed
            ]
        lines += ["", *(f"- {each}" for each in entry["notes"])] if entry.get("notes") else []
        if entry.get("log"):
            lines += ["", "    " + entry["log"].replace("\n", "\n    ")]
        return ["", f"## {check.name}: {check.title}", *lines] if lines else []


def cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
