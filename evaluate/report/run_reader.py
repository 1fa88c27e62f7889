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
from common.figures import flatten, format_value, parse_number
from common.files import read_json
from common.metrics_file import METRICS_FILE, UNSCORED_KINDS, read_metrics
from common.options import load_yaml
from model.config import LlamaConfig

CONFIG_FILE, RUN_FILE, RESULTS_DIR = "config.yaml", "run.json", "results"
# Words in the names of the measures of which less is better; of all others more is.
LOWER_IS_BETTER = ("loss", "perplexity", "bits", "repeat", "repetition")
FINGERPRINT_DIGITS = 12

Point = tuple[int, float]


@dataclass(frozen=True)
class RunRecord:
    """The files of one run, parsed."""

    name: str
    """The path that was asked for."""
    config: dict[str, Any]
    """`config.yaml`, dotted key → value."""
    run_info: dict[str, Any]
    """`run.json`, dotted key → value; lists are values."""
    model_config: dict[str, Any]
    """The model's `config.json`, as `run.json` has it, or the newest checkpoint."""
    records: list[dict[str, Any]]
    """`metrics.jsonl`."""
    results: dict[str, dict[str, Any]]
    """`results/*.json`, what the evaluation commands wrote: file name without its end → dotted key → value."""

    def overview(self) -> dict[str, str | None]:
        """What the run is: command, commit, data, tokenizer, base, parameters, steps, device, seed; None is unknown."""
        return {
            "command": _to_text(self.run_info.get("made.command")),
            "commit": _to_text(self.run_info.get("made.commit")),
            "data": self._describe_data(),
            "tokenizer": self._describe_tokenizer(),
            "base": self._describe_base(),
            "parameters": self._describe_parameters(),
            "steps": self._describe_steps(),
            "device": _to_text(self.run_info.get("made.device")),
            "seed": _to_text(self.config.get("seed")),
            "steps skipped": format_value(
                sum(record["kind"] == "skipped" for record in self.records)
            )
            if self.records
            else None,
        }

    def _describe_data(self) -> str | None:
        set_fingerprints = self.run_info.get("fingerprints.data")
        short_fingerprints = (
            [
                str(each["set"])[:FINGERPRINT_DIGITS]
                for each in set_fingerprints
                if isinstance(each, dict) and "set" in each
            ]
            if isinstance(set_fingerprints, list)
            else []
        )
        return _join_parts(_to_text(self.config.get("data")), *short_fingerprints)

    def _describe_tokenizer(self) -> str | None:
        size = self.model_config.get("vocab_size")
        return _join_parts(
            _to_text(self.config.get("tokenizer")),
            f"{size:,} pieces" if isinstance(size, int) else None,
            self._short_fingerprint("tokenizer"),
        )

    def _describe_base(self) -> str | None:
        base_option = _to_text(self.config.get("base"))
        return (
            base_option
            if base_option in (None, "none")
            else _join_parts(base_option, self._short_fingerprint("base"))
        )

    def _short_fingerprint(self, name: str) -> str | None:
        value = self.run_info.get(f"fingerprints.{name}")
        return value[:FINGERPRINT_DIGITS] if isinstance(value, str) else None

    def _describe_parameters(self) -> str | None:
        # With a base, the shape is the base's, whatever the options say.
        preset = (
            self.config.get("model.preset") if self.config.get("base") in (None, "none") else None
        )
        count = (
            LlamaConfig.from_hf(self.model_config, self.name).num_parameters
            if self.model_config
            else None
        )
        return _join_parts(None if count is None else f"{count:,}", _to_text(preset))

    def _describe_steps(self) -> str | None:
        last = max((record["step"] for record in self.records), default=None)
        horizon, epochs = self.config.get("max_steps"), self.config.get("epochs")
        planned = (
            f"of {format_value(horizon)}" if horizon else f"of {epochs} epochs" if epochs else None
        )
        reached = " ".join(part for part in (format_value(last), planned) if part)
        tokens = [
            record["tokens"]
            for record in self.records
            if record["kind"] == "train" and "tokens" in record
        ]
        return _join_parts(reached, f"{format_value(tokens[-1])} tokens" if tokens else None)

    def list_measures(self) -> list[tuple[str, str]]:
        """The (kind, key) of all numbers in records of scores, in the order of their first appearance.

        Where several sets are scored at one step, the kind of a record is its own with the set's name.
        """
        kind_keys = [
            (_record_kind(record), key)
            for record in self.records
            if record["kind"] not in UNSCORED_KINDS
            for key, value in _record_values(record)
            if parse_number(value) is not None
        ]
        return list(dict.fromkeys(kind_keys))

    def curve(self, kind: str, key: str) -> list[Point]:
        """The (step, value) of every record of a kind that has the key; values may be NaN or infinite."""
        points = (
            (record["step"], parse_number(record.get(key)))
            for record in self.records
            if _record_kind(record) == kind
        )
        return [(step, float(value)) for step, value in points if value is not None]

    def describe_eval_data(self, kind: str) -> str | None:
        """What training measured for its records of a kind, by the run's options; None where they do not say."""
        base_kind, is_fine_tuned = kind.partition(" ")[0], "evaluation.examples" in self.config
        if not self.config or not any(_record_kind(record) == kind for record in self.records):
            return None
        if base_kind in ("rouge", "answers"):
            return f"greedy answers to the first {format_value(self.config.get('evaluation.examples'))} records of the dev split"
        data_label, key, unit = (
            ("answers of the dev split", "scored", "examples of each set")
            if is_fine_tuned
            else ("held-out text", "tokens", "tokens")
        )
        limit = format_value(self.config.get(f"evaluation.{key}"))
        if base_kind == "validation" and limit:
            return f"{data_label}: the first {limit} {unit} at most"
        return f"{data_label}: all" if base_kind in ("validation", "final") else None

    def is_count(self, kind: str, key: str) -> bool:
        """Whether a measure is a count (all its values whole numbers) and no score."""
        return all(
            isinstance(record[key], int)
            for record in self.records
            if _record_kind(record) == kind and key in record
        )

    def best_point(self, kind: str, key: str) -> Point | None:
        """The first best finite point of a curve; lower or higher is better by the measure's name."""
        points = [point for point in self.curve(kind, key) if math.isfinite(point[1])]
        sign = 1 if any(word in key for word in LOWER_IS_BETTER) else -1
        return min(points, key=lambda point: sign * point[1], default=None)

    def newest_samples(self) -> dict[str, tuple[int, str]]:
        """For each prompt its newest sample: the step, and the text."""
        return {
            str(record.get("prompt", "")): (record["step"], str(record.get("text", "")))
            for record in self.records
            if record["kind"] == "sample"
        }


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. UserError if it is none, or if a file in it is damaged."""
    if not any((folder / name).is_file() for name in (RUN_FILE, CONFIG_FILE, METRICS_FILE)):
        state = (
            "is no run: it has no run.json, config.yaml or metrics.jsonl"
            if folder.is_dir()
            else "does not exist"
        )
        raise UserError(
            f"{folder} {state}; name folders that training made, such as runs/pretrain-sample"
        )
    config, run_file = folder / CONFIG_FILE, folder / RUN_FILE
    run_info = _read_json_object(run_file) if run_file.is_file() else {}
    return RunRecord(
        name=str(folder),
        config=flatten(load_yaml(config, "")) if config.is_file() else {},
        run_info=flatten(run_info),
        model_config=_load_model_config(folder, run_info),
        records=read_metrics(folder),
        results={
            path.stem: flatten(_read_json_object(path))
            for path in sorted((folder / RESULTS_DIR).glob("*.json"))
        },
    )


def _load_model_config(folder: Path, run_info: dict[str, Any]) -> dict[str, Any]:
    fingerprints = run_info.get("fingerprints")
    shape = fingerprints.get("model") if isinstance(fingerprints, dict) else None
    checkpoints = sorted(folder.glob("checkpoints/step-*/config.json"))
    return (
        shape
        if isinstance(shape, dict)
        else _read_json_object(checkpoints[-1])
        if checkpoints
        else {}
    )


def _read_json_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: expected an object of figures, found {type(value).__name__}; move it out of the run"
        )
    return value


def _record_kind(record: dict[str, Any]) -> str:
    return (
        f"{record['kind']} {record['set']}"
        if isinstance(record.get("set"), str)
        else str(record["kind"])
    )


def _record_values(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in record.items() if key not in ("kind", "step"))


def _to_text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _join_parts(*parts: str | None) -> str | None:
    return " · ".join(part for part in parts if part) or None
