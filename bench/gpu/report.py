"""The report of a check: comparisons, figures, notes. Imports the standard library only."""

import math
from pathlib import Path
from typing import Any

from common.files import write_json


class NotRun(Exception):
    """The check cannot run, or has no meaning, on this machine; the message is the reason."""


class Report:
    """Collect the measurements of a check in a file that is complete after each entry.

    A check that crashes or times out leaves its earlier measurements.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.comparisons: list[dict[str, Any]] = []  # measured errors and their bounds
        self.figures: list[dict[str, Any]] = []  # measured values without a bound
        self.notes: list[str] = []

    def compare(self, name: str, error: float, bound: float) -> None:
        """Record a measured error and its upper bound; NaN exceeds every bound."""
        passed = bool(error <= bound)
        # JSON has no number for NaN and infinity.
        stored_error = error if math.isfinite(error) else str(error)
        self.comparisons.append(
            {"name": name, "error": stored_error, "bound": bound, "passed": passed}
        )
        self._write()

    def require(self, name: str, condition: bool) -> None:
        """Record a condition that must hold, as an error of 0 or 1 with the bound 0."""
        self.compare(name, error=0.0 if condition else 1.0, bound=0.0)

    def figure(self, name: str, value: float | str, unit: str = "") -> None:
        """Record a measured value without a bound."""
        self.figures.append({"name": name, "value": value, "unit": unit})
        self._write()

    def note(self, text: str) -> None:
        """Record a sentence for the reader of the results; a repeated one is stored once."""
        if text not in self.notes:
            self.notes.append(text)
            self._write()

    def _write(self) -> None:
        write_json(self._path, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {"comparisons": self.comparisons, "figures": self.figures, "notes": self.notes}
