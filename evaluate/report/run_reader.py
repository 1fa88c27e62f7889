"""Read the files of a run directory, without any trust in their contents.

A run may be in progress, from an earlier version, or incomplete: a missing file is an empty value
of `RunRecord`, never an error. A damaged file raises UserError.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.flat_tables import flatten, format_value, parse_number
from common.metrics_file import UNSCORED_KINDS, read_metrics
from common.run_layout import (
    CONFIG_FILE,
    METRICS_FILE,
    RESULTS_DIR,
    RUN_FILE,
    list_steps,
    step_folder,
)
from common.yaml_files import load_yaml
from model.config import LlamaConfig

# A lower value of a metric is better if its name contains one of these, otherwise a higher one.
LOWER_IS_BETTER = ("loss", "perplexity", "bits", "repeat", "repetition", "loops", "kl")
# Number of hexadecimal digits of a sha256 that the report shows.
FINGERPRINT_DIGITS = 12

Point = tuple[int, float]  # step, value


@dataclass(frozen=True)
class RunRecord:
    """The parsed files of one run."""

    name: str
    """The path that the user named."""
    config: dict[str, Any]
    """The options in `config.yaml`, flattened to dotted keys."""
    run_info: dict[str, Any]
    """The contents of `run.json`, flattened to dotted keys; lists are values."""
    model_config: dict[str, Any]
    """The `config.json` of the model, from `run.json` or the newest checkpoint."""
    records: list[dict[str, Any]]
    """The records in `metrics.jsonl`."""
    results: dict[str, dict[str, Any]]
    """The contents of `results/NAME.json`, flattened to dotted keys, by NAME."""

    def overview(self) -> dict[str, str | None]:
        """Return what the run is: its data, model, progress and environment, by label.

        None stands for an unknown value.
        """
        num_skipped = sum(record["kind"] == "skipped" for record in self.records)
        # The environment in run.json is under the key "made".
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
            "steps skipped": format_value(num_skipped) if self.records else None,
        }

    def _describe_data(self) -> str | None:
        """Return the option --data and the fingerprints of the shard sets."""
        shard_sets = self.run_info.get("fingerprints.data")
        if not isinstance(shard_sets, list):
            shard_sets = []
        fingerprints = []
        for entry in shard_sets:
            if isinstance(entry, dict) and "set" in entry:
                fingerprints.append(str(entry["set"])[:FINGERPRINT_DIGITS])
        return _join_parts(_to_text(self.config.get("data")), *fingerprints)

    def _describe_tokenizer(self) -> str | None:
        """Return the option --tokenizer, the vocabulary size and the fingerprint."""
        vocab_size = self.model_config.get("vocab_size")
        return _join_parts(
            _to_text(self.config.get("tokenizer")),
            f"{vocab_size:,} pieces" if isinstance(vocab_size, int) else None,
            self._short_fingerprint("tokenizer"),
        )

    def _describe_base(self) -> str | None:
        """Return the option --base and the fingerprint of the base."""
        base_option = _to_text(self.config.get("base"))
        if base_option in (None, "none"):
            return base_option
        return _join_parts(base_option, self._short_fingerprint("base"))

    def _short_fingerprint(self, name: str) -> str | None:
        """Return the first digits of a fingerprint in `run.json`."""
        value = self.run_info.get(f"fingerprints.{name}")
        return value[:FINGERPRINT_DIGITS] if isinstance(value, str) else None

    def _describe_parameters(self) -> str | None:
        """Return the number of parameters and, without a base, the preset."""
        count = None
        preset = None
        if self.model_config:
            config = LlamaConfig.from_hf(self.model_config, self.name)
            count = f"{config.num_parameters:,}"
        # A base model brings its own config, and the option `model.preset` has no effect.
        if self.config.get("base") in (None, "none"):
            preset = _to_text(self.config.get("model.preset"))
        return _join_parts(count, preset)

    def _describe_steps(self) -> str | None:
        """Return the last step, the planned length, and the number of tokens trained on.

        The length is planned in steps ("900 of 1,000 · 3,000,000 tokens") or in epochs
        ("900 (3 epochs planned) · 3,000,000 tokens"). Return None if all three are unknown.
        """
        last_step = max((record["step"] for record in self.records), default=None)
        planned_length = None
        # --max_steps replaces --epochs.
        if max_steps := self.config.get("max_steps"):
            planned_length = f"of {format_value(max_steps)}"
        elif epochs := self.config.get("epochs"):
            planned_length = f"({epochs} epochs planned)"
        progress = " ".join(part for part in (format_value(last_step), planned_length) if part)
        token_counts = [
            record["tokens"]
            for record in self.records
            if record["kind"] == "train" and "tokens" in record
        ]
        trained = f"{format_value(token_counts[-1])} tokens" if token_counts else None
        return _join_parts(progress, trained)

    def list_metrics(self) -> list[tuple[str, str]]:
        """Return the (kind, key) of all scores, in the order of their first occurrence.

        The kind of a record about one set of a mixture includes the name of the set.
        """
        metrics = []
        for record in self.records:
            if record["kind"] in UNSCORED_KINDS:
                continue
            for key, value in record.items():
                if key not in ("kind", "step") and parse_number(value) is not None:
                    metrics.append((_record_kind(record), key))
        return list(dict.fromkeys(metrics))

    def curve(self, kind: str, key: str) -> list[Point]:
        """Return (step, value) of all records of a kind with a number under `key`.

        NaN and infinities are included.
        """
        points = []
        for record in self.records:
            value = parse_number(record.get(key))
            if _record_kind(record) == kind and value is not None:
                points.append((record["step"], float(value)))
        return points

    def describe_eval_data(self, kind: str) -> str | None:
        """Return the data that records of a kind were measured on, as the options say.

        Returns None if it is unknown.
        """
        if not self.config or not any(_record_kind(record) == kind for record in self.records):
            return None
        # Without the name of the set, which `_record_kind` appends.
        base_kind = kind.partition(" ")[0]
        if base_kind in UNSCORED_KINDS:
            return None
        # Only the options of fine-tuning have `evaluation.examples`.
        is_fine_tuned = "evaluation.examples" in self.config
        if base_kind not in ("validation", "final"):
            # The other kinds are those of generated answers (`KindEvaluation.answers_metric`).
            num_examples = format_value(self.config.get("evaluation.examples"))
            label = f"greedy answers to the first {num_examples} records of the dev split"
            return label if is_fine_tuned else None
        data_label, key, unit = "held-out text", "tokens", "tokens"
        if is_fine_tuned:
            data_label, key, unit = "answers of the dev split", "scored", "examples of each set"
        limit = format_value(self.config.get(f"evaluation.{key}"))
        if base_kind == "validation" and limit:
            return f"{data_label}: the first {limit} {unit} at most"
        return f"{data_label}: all"

    def is_count(self, kind: str, key: str) -> bool:
        """Return whether a metric is a count, not a score: all its values are integers.

        This is also true of a metric without any value.
        """
        return all(
            isinstance(record[key], int)
            for record in self.records
            if _record_kind(record) == kind and key in record
        )

    def best_point(self, kind: str, key: str) -> Point | None:
        """Return the point with the best finite value, the first of equals; see LOWER_IS_BETTER."""
        points = [point for point in self.curve(kind, key) if math.isfinite(point[1])]
        # A term of a reward is higher for better answers, whatever it is called.
        is_lower_better = not key.startswith("reward") and any(
            word in key for word in LOWER_IS_BETTER
        )
        sign = 1 if is_lower_better else -1
        return min(points, key=lambda point: sign * point[1], default=None)

    def newest_samples(self) -> dict[str, tuple[int, str]]:
        """Return step and text of the newest sample of each prompt."""
        # Records are in the order of steps, so that later samples replace earlier ones.
        return {
            str(record.get("prompt", "")): (record["step"], str(record.get("text", "")))
            for record in self.records
            if record["kind"] == "sample"
        }


def read_run(folder: Path) -> RunRecord:
    """Read the files of a run directory.

    Raises UserError if `folder` is not a run directory, or if one of its files is damaged.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; name run directories, such as runs/pretrain-sample"
        )
    if not any((folder / name).is_file() for name in (RUN_FILE, CONFIG_FILE, METRICS_FILE)):
        raise UserError(
            f"{folder} is not a run: it has no run.json, config.yaml or metrics.jsonl; "
            "name run directories, such as runs/pretrain-sample"
        )
    config_file = folder / CONFIG_FILE
    run_file = folder / RUN_FILE
    run_info = _read_json_object(run_file) if run_file.is_file() else {}
    results = {}
    for path in sorted((folder / RESULTS_DIR).glob("*.json")):
        results[path.stem] = flatten(_read_json_object(path))
    return RunRecord(
        name=str(folder),
        config=flatten(load_yaml(config_file, error_prefix="")) if config_file.is_file() else {},
        run_info=flatten(run_info),
        model_config=_load_model_config(folder, run_info),
        records=read_metrics(folder),
        results=results,
    )


def _load_model_config(folder: Path, run_info: dict[str, Any]) -> dict[str, Any]:
    """Return the model's config from run.json or the newest checkpoint; empty if neither has it."""
    fingerprints = run_info.get("fingerprints")
    if isinstance(fingerprints, dict) and isinstance(fingerprints.get("model"), dict):
        return dict(fingerprints["model"])
    for step in reversed(list_steps(folder)):
        config_file = step_folder(folder, step) / "config.json"
        if config_file.is_file():
            return _read_json_object(config_file)
    return {}


def _read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file. Raises UserError if it is damaged, or does not hold an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: expected a JSON object, not a {type(value).__name__}; move it out of the run"
        )
    return value


def _record_kind(record: dict[str, Any]) -> str:
    """Return the kind of a record, with the name of its set if it is about one set of a mixture."""
    if isinstance(record.get("set"), str):
        return f"{record['kind']} {record['set']}"
    return str(record["kind"])


def _to_text(value: Any) -> str | None:
    """Return a value as text; None and the empty string are unknown values."""
    return None if value is None or value == "" else str(value)


def _join_parts(*parts: str | None) -> str | None:
    """Join the parts that are neither None nor empty; return None if there are none."""
    return " · ".join(part for part in parts if part) or None
