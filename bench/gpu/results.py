"""The results of all checks: a JSON file and a Markdown page, rewritten after each check."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.gpu.checks import CHECKS, Check
from bench.gpu.worker import format_number, read_json
from common.files import write_atomic, write_json

FORMAT = "babyllama-check-gpu-1"
JSON, PAGE = "results.json", "results.md"
PASSED, FAILED, NOT_RUN, TIMED_OUT = "passed", "failed", "not run", "timed out"
# Length of the tail of the log of a failed check, in characters.
LOG_TAIL_CHARACTERS = 3000


class Results:
    """The verdicts in a folder, which belong to one device, version of torch and source.

    Files of any other are renamed to `previous-…` when the folder is opened.
    """

    def __init__(self, folder: Path, key: dict[str, str], environment: dict[str, Any]) -> None:
        self.folder = folder
        self._key = key
        self._environment = environment
        # By the name of the check: its verdict, measurements and seconds, or only "begun", the
        # number of attempts, if it was interrupted.
        self.entries: dict[str, dict[str, Any]] = {}
        self.moved_previous = False
        folder.mkdir(parents=True, exist_ok=True)
        stored = read_json(folder / JSON)
        if stored.get("key") == key:
            self.entries = stored["checks"]
        elif stored:
            for name in (JSON, PAGE):
                if (folder / name).exists():
                    (folder / name).replace(folder / f"previous-{name}")
            self.moved_previous = True

    def verdict(self, name: str) -> str | None:
        """Return the verdict of a check, or None if it has not run or was interrupted."""
        return self.entries.get(name, {}).get("verdict")

    def begin(self, name: str) -> None:
        """Record an attempt at a check before it runs, so that an interruption is known later."""
        self.entries[name] = {"begun": self._num_attempts(name) + 1}
        self._write()

    def end(self, name: str, entry: dict[str, Any]) -> None:
        """Record the verdict and the measurements of a check."""
        self.entries[name] = entry
        self._write()

    def pending(self, checks: Iterable[Check]) -> list[Check]:
        """Return the checks without a verdict in their order, but interrupted ones last.

        A check that was not run is tried again: the missing package may be installed now.
        """
        pending = [check for check in checks if self.verdict(check.name) in (None, NOT_RUN)]
        # The sort is stable. A check that hangs is thus reached after all others.
        return sorted(pending, key=lambda check: self._num_attempts(check.name))

    def _num_attempts(self, name: str) -> int:
        """Return how often a check without a verdict has begun."""
        return self.entries.get(name, {}).get("begun", 0)

    @property
    def failures(self) -> list[str]:
        """Return the names of the checks that failed or timed out."""
        return [check.name for check in CHECKS if self.verdict(check.name) in (FAILED, TIMED_OUT)]

    def _write(self) -> None:
        write_json(
            self.folder / JSON,
            {"format": FORMAT, "key": self._key, "made": self._environment, "checks": self.entries},
        )
        write_atomic(self.folder / PAGE, self._page())

    def _page(self) -> str:
        """Return the Markdown page: a table of verdicts, then a section for each check."""
        verdicts = [self.verdict(check.name) for check in CHECKS]
        counts = [
            f"{verdicts.count(verdict)} {verdict}"
            for verdict in (PASSED, FAILED, TIMED_OUT, NOT_RUN)
        ]
        lines = [
            f"# check-gpu: {self._key['name']}",
            "",
            f"torch {self._key['torch']}, {self._key['shapes']} shapes, "
            f"commit {self._environment.get('commit') or 'unknown'}, "
            f"{self._environment.get('platform')}, Python {self._environment.get('python')}",
            "",
            f"{', '.join(counts)}, {verdicts.count(None)} to come. Bounds are stated in bench/gpu.",
            "",
            "| check | verdict | s | result |",
            "|---|---|--:|---|",
        ]
        for check in CHECKS:
            entry = self.entries.get(check.name, {})
            verdict = entry.get("verdict") or ("interrupted" if entry else "to come")
            seconds = f"{entry['seconds']:.0f}" if "seconds" in entry else ""
            lines.append(
                f"| {check.name} | {verdict} | {seconds} | {cell(entry.get('reason', ''))} |"
            )
        for check in CHECKS:
            lines += self._section(check)
        return "\n".join(lines) + "\n"

    def _section(self, check: Check) -> list[str]:
        """Return the lines on a check's figures, failed comparisons, notes and log, if any."""
        entry = self.entries.get(check.name, {})
        lines: list[str] = []
        if figures := entry.get("figures"):
            lines += ["", "| figure | value | unit |", "|---|--:|---|"]
        for figure in figures or ():
            value = cell(format_number(figure["value"]))
            lines.append(f"| {cell(figure['name'])} | {value} | {figure['unit']} |")
        failures = [
            comparison for comparison in entry.get("comparisons", ()) if not comparison["passed"]
        ]
        if failures:
            lines += ["", "| comparison that failed | error | bound |", "|---|--:|--:|"]
        for failure in failures:
            error, bound = format_number(failure["error"]), format_number(failure["bound"])
            lines.append(f"| {cell(failure['name'])} | {error} | {bound} |")
        if notes := entry.get("notes"):
            lines += ["", *(f"- {note}" for note in notes)]
        if log := entry.get("log"):
            # A line indented by four blanks is code in Markdown.
            lines += ["", "    " + log.replace("\n", "\n    ")]
        return ["", f"## {check.name}: {check.title}", *lines] if lines else []


def cell(text: str) -> str:
    """Return a text as a cell of a Markdown table: one line, without unescaped `|`."""
    return " ".join(text.replace("|", "\\|").split())
