"""What a run's folder says about itself: its facts, its curves, its figures, its samples. Read only, trusting nothing.

A run may be young, old or half there: whatever is missing is absent from what these functions return, never an error.
A file that is there and cannot be read is one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.metrics_file import FILE as METRICS
from common.metrics_file import UNSCORED, read_metrics
from common.options import load_yaml
from model.config import LlamaConfig

CONFIG, MADE, RESULTS = "config.yaml", "run.json", "results"
# Words in the names of the measures of which less is better; of all others more is.
LESS_IS_BETTER = ("loss", "perplexity", "bits", "repeat", "repetition")
# What a figure with its confidence interval is in a results file.
INTERVAL = {"mean", "low", "high"}
# Longest list of numbers that is shown as a figure.
LONGEST_LIST = 4
SHOWN_DIGITS = 12

Point = tuple[int, float]


@dataclass(frozen=True)
class RunRecord:
    """The files of one run, parsed."""

    name: str
    """The path that was asked for."""
    config: dict[str, Any]
    """`config.yaml`, dotted key → value."""
    made: dict[str, Any]
    """`run.json`, dotted key → value; lists are values."""
    shape: dict[str, Any]
    """The model's `config.json`, as `run.json` has it, or the newest checkpoint."""
    records: list[dict[str, Any]]
    """`metrics.jsonl`."""
    results: dict[str, dict[str, Any]]
    """`results/*.json`, what the evaluation commands wrote: file name without its end → dotted key → value."""

    def facts(self) -> dict[str, str | None]:
        """What the run is: command, commit, data, tokenizer, base, parameters, steps, device, seed; None is unknown."""
        return {
            "command": _text(self.made.get("made.command")), "commit": _text(self.made.get("made.commit")),
            "data": self._data(), "tokenizer": self._tokenizer(), "base": self._base(),
            "parameters": self._parameters(), "steps": self._steps(), "device": _text(self.made.get("made.device")),
            "seed": _text(self.config.get("seed")),
            "steps skipped": show(sum(record["kind"] == "skipped" for record in self.records)) if self.records else None,
        }

    def _data(self) -> str | None:
        sets = self.made.get("fingerprints.data")
        prints = [str(each["set"])[:SHOWN_DIGITS] for each in sets if isinstance(each, dict) and "set" in each] \
            if isinstance(sets, list) else []
        return _joined(_text(self.config.get("data")), *prints)

    def _tokenizer(self) -> str | None:
        size = self.shape.get("vocab_size")
        return _joined(_text(self.config.get("tokenizer")), f"{size:,} pieces" if isinstance(size, int) else None,
                       self._fingerprint("tokenizer"))

    def _base(self) -> str | None:
        said = _text(self.config.get("base"))
        return said if said in (None, "none") else _joined(said, self._fingerprint("base"))

    def _fingerprint(self, name: str) -> str | None:
        value = self.made.get(f"fingerprints.{name}")
        return value[:SHOWN_DIGITS] if isinstance(value, str) else None

    def _parameters(self) -> str | None:
        # With a base, the shape is the base's, whatever the options say.
        preset = self.config.get("model.preset") if self.config.get("base") in (None, "none") else None
        count = LlamaConfig.from_hf(self.shape, self.name).parameters if self.shape else None
        return _joined(None if count is None else f"{count:,}", _text(preset))

    def _steps(self) -> str | None:
        last = max((record["step"] for record in self.records), default=None)
        horizon, epochs = self.config.get("max_steps"), self.config.get("epochs")
        planned = f"of {show(horizon)}" if horizon else f"of {epochs} epochs" if epochs else None
        reached = " ".join(part for part in (show(last), planned) if part)
        tokens = [record["tokens"] for record in self.records if record["kind"] == "train" and "tokens" in record]
        return _joined(reached, f"{show(tokens[-1])} tokens" if tokens else None)

    def measures(self) -> list[tuple[str, str]]:
        """The (kind, key) of all numbers in records of scores, in the order of their first appearance.

        Where several sets are scored at one step, the kind of a record is its own with the set's name.
        """
        found = [(_kind(record), key) for record in self.records if record["kind"] not in UNSCORED
                 for key, value in _values(record) if number(value) is not None]
        return list(dict.fromkeys(found))

    def curve(self, kind: str, key: str) -> list[Point]:
        """The (step, value) of every record of a kind that has the key; values may be NaN or infinite."""
        found = ((record["step"], number(record.get(key))) for record in self.records if _kind(record) == kind)
        return [(step, float(value)) for step, value in found if value is not None]

    def measured_on(self, kind: str) -> str | None:
        """What training measured for its records of a kind, by the run's options; None where they do not say."""
        found, tuned = kind.partition(" ")[0], "evaluation.examples" in self.config
        if not self.config or not any(_kind(record) == kind for record in self.records):
            return None
        if found in ("rouge", "answers"):
            return f"greedy answers to the first {show(self.config.get('evaluation.examples'))} records of the dev split"
        what, key, unit = ("answers of the dev split", "scored", "examples of each set") if tuned else \
            ("held-out text", "tokens", "tokens")
        most = show(self.config.get(f"evaluation.{key}"))
        if found == "validation" and most:
            return f"{what}: the first {most} {unit} at most"
        return f"{what}: all" if found in ("validation", "final") else None

    def is_count(self, kind: str, key: str) -> bool:
        """Whether a measure is a count (all its values whole numbers) and no score."""
        return all(isinstance(record[key], int) for record in self.records if _kind(record) == kind and key in record)

    def best(self, kind: str, key: str) -> Point | None:
        """The first best finite point of a curve; lower or higher is better by the measure's name."""
        points = [point for point in self.curve(kind, key) if math.isfinite(point[1])]
        sign = 1 if any(word in key for word in LESS_IS_BETTER) else -1
        return min(points, key=lambda point: sign * point[1], default=None)

    def samples(self) -> dict[str, tuple[int, str]]:
        """For each prompt its newest sample: the step, and the text."""
        return {str(record.get("prompt", "")): (record["step"], str(record.get("text", "")))
                for record in self.records if record["kind"] == "sample"}


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. UserError if it is none, or if a file in it is damaged."""
    if not any((folder / name).is_file() for name in (MADE, CONFIG, METRICS)):
        state = "is no run: it has no run.json, config.yaml or metrics.jsonl" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {state}; name folders that training made, such as runs/pretrain-sample")
    config, made = folder / CONFIG, folder / MADE
    facts = _object(made) if made.is_file() else {}
    return RunRecord(
        name=str(folder), config=flat(load_yaml(config, "")) if config.is_file() else {},
        made=flat(facts), shape=_shape(folder, facts), records=read_metrics(folder),
        results={path.stem: flat(_object(path)) for path in sorted((folder / RESULTS).glob("*.json"))},
    )


def _shape(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    fingerprints = made.get("fingerprints")
    shape = fingerprints.get("model") if isinstance(fingerprints, dict) else None
    checkpoints = sorted(folder.glob("checkpoints/step-*/config.json"))
    return shape if isinstance(shape, dict) else _object(checkpoints[-1]) if checkpoints else {}


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object of figures, found {type(value).__name__}; move it out of the run")
    return value


def flat(value: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted key → leaf; an empty mapping and a mean with its interval are leaves."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        nested = isinstance(item, dict) and item and item.keys() != INTERVAL
        result.update(flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item})
    return result


def number(value: Any) -> int | float | None:
    """A JSON value as a number, None if it is none. The log writes NaN and infinities as strings."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return float(value) if value in ("nan", "inf", "-inf") else None


def show(value: Any) -> str | None:
    """A figure as text: numbers to four decimals or digits, intervals and short lists of numbers; None if it is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:,.4g}" if abs(value) < 1 \
            else f"{value:,.1f}"
    if isinstance(value, dict) and value.keys() == INTERVAL:
        return f"{show(value['mean'])} ({show(value['low'])} – {show(value['high'])})"
    if isinstance(value, list) and 0 < len(value) <= LONGEST_LIST and all(number(item) is not None for item in value):
        return f"[{', '.join(str(show(item)) for item in value)}]"
    return value if isinstance(value, str) else None


def _kind(record: dict[str, Any]) -> str:
    return f"{record['kind']} {record['set']}" if isinstance(record.get("set"), str) else str(record["kind"])


def _values(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in record.items() if key not in ("kind", "step"))


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _joined(*parts: str | None) -> str | None:
    return " · ".join(part for part in parts if part) or None
