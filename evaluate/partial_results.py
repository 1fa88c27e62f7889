"""Results of single questions on disk, so that an interrupted measurement goes on where it was.

A command that writes FILE (`--json`, else `--predictions`) keeps the results that it has so far in
`FILE.partial` until FILE is written. It has a first line that says what the results
depend on, and then a line for each question: a checksum and `{"key": …, "result": …}`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Questions that are computed between two writes.
CHUNK_QUESTIONS = 64


class PartialResults:
    """The results so far, in memory and, if a file is written, on disk."""

    def __init__(self, path: Path | None, depends_on: dict[str, Any]) -> None:
        """Read the results of an earlier call, if they depend on the same.

        Args:
            path: the file with the partial results; None: keep them in memory alone.
            depends_on: JSON that the results depend on: the model, and the options of decoding.
        """
        self._path = path
        self._header = json.dumps(depends_on, sort_keys=True)
        self._results: dict[str, Any] = {}
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        """Read the lines of the file whose checksum is right; the last one may be torn.

        A file with another header is moved away: it may have taken hours.
        """
        text = path.read_text("utf-8", errors="replace")
        header, *lines = text.split("\n")
        if header != self._header:
            backup = path.with_name(path.name + ".old")
            path.replace(backup)
            print(f"{path} is of another model or other options: moved to {backup}")
            return
        if not text.endswith("\n"):
            # Without this the next line would continue the torn one.
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in lines:
            checksum, _, entry_text = line.partition(" ")
            if checksum == _hash(entry_text):
                entry = json.loads(entry_text)
                self._results[entry["key"]] = entry["result"]

    def compute(
        self,
        name: str,
        items: Sequence[Item],
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        unit: str = "questions",
        chunk_size: int = CHUNK_QUESTIONS,
    ) -> list[Result]:
        """Return the result of each item, and show a progress bar.

        Args:
            name: what is computed, in the bar and in the keys of the results.
            items: what to compute results of. Equal items, by their `repr`, have equal results.
            compute: returns the results of a chunk of items, as JSON values.
            unit: what the items are, in the bar.
            chunk_size: number of items that `compute` gets at a time.
        """
        keys = [_hash(f"{name}\n{item!r}") for item in items]
        with progress_bar(name, len(items), unit) as bar:
            by_key = dict(zip(keys, items, strict=True))
            missing = [(key, item) for key, item in by_key.items() if key not in self._results]
            if len(missing) < len(by_key):
                print(f"{name}: {len(by_key) - len(missing):,} of {len(by_key):,} were done before")
            bar.update(len(items) - len(missing))
            for start in range(0, len(missing), chunk_size):
                chunk = missing[start : start + chunk_size]
                results = compute([item for _, item in chunk])
                self._append(dict(zip([key for key, _ in chunk], results, strict=True)))
                bar.update(len(chunk))
        return [self._results[key] for key in keys]

    def _append(self, results: dict[str, Any]) -> None:
        """Add the results of a chunk, also to the file."""
        self._results |= results
        if self._path is None:
            return
        is_new = not self._path.is_file()
        if is_new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(self._header + "\n")
            for key, result in results.items():
                entry_text = json.dumps({"key": key, "result": result}, ensure_ascii=False)
                file.write(f"{_hash(entry_text)} {entry_text}\n")


def partial_results(output: Path | None, depends_on: dict[str, Any]) -> PartialResults:
    """Return the partial results of a command that writes `output`, if it writes a file at all.

    `evaluate.result.report_result` deletes their file once `output` is written.
    """
    return PartialResults(partial_path(output) if output is not None else None, depends_on)


def partial_path(output: Path) -> Path:
    """Return the file of the partial results of a command that writes `output`."""
    return output.with_name(output.name + ".partial")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
