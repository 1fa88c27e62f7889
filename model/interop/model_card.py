"""The README.md of an exported model: how it was trained and what it scored."""

from pathlib import Path
from typing import Any

import yaml

from common import run_layout
from common.files import read_json
from common.flat_tables import flatten, format_value
from common.metrics_file import UNSCORED_KINDS, read_metrics
from common.yaml_files import load_yaml
from model.checkpoint import locate
from model.llama import Llama
from model.lora_options import Merge

# Figures further down in a results file, such as those of single families of rules, are left out.
MAX_SCORE_DEPTH = 2
# Of an export with `merge` "original": evaluation commands load the other merge.
_OTHER_WEIGHTS_NOTE = (
    "Measured with the weights that the adapter was trained beside, in 4 bits or dequantized, and "
    "not with the weights of this export, which are its sum with the base's own: "
    "`python -m evaluate.merge` compares them."
)


def build_model_card(
    checkpoint: Path,
    name: str,
    model: Llama,
    dtype: str,
    *,
    is_conversational: bool,
    is_imported: bool,
    merge: Merge | None,
) -> str:
    """Return the README.md of an export as Markdown with YAML front matter.

    If `checkpoint` belongs to a run, it includes the settings of training and the scores of that
    step. `name` is the title, `dtype` the number format of the exported weights, `merge` that of
    `weights.load_checkpoint`.
    """
    front_matter = {
        "language": ["zh"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", *(["conversational"] if is_conversational else [])],
    }
    sections = [
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---",
        f"# {name}",
        _size_section(model, dtype),
        _usage_section(is_conversational, is_imported),
    ]
    step = locate.read_step(checkpoint)
    if step is not None:
        run = checkpoint.resolve().parent.parent
        sections.append("## Training\n\n" + _markdown_table(_training_rows(run, step, merge)))
        if scores := _score_rows(run, step):
            sections.append(f"## Scores at step {step:,}")
            if merge == "original":
                sections.append(_OTHER_WEIGHTS_NOTE)
            sections.append(_markdown_table(scores))
    text = "\n\n".join(sections) + "\n"
    # JSON can hold lone surrogates, which cannot be written as UTF-8.
    return text.encode(errors="replace").decode()


def _size_section(model: Llama, dtype: str) -> str:
    """Return a sentence with the sizes of the model."""
    config = model.config
    architecture = config.to_hf()["architectures"][0]
    return (
        f"A Llama (`{architecture}`) of {config.num_parameters / 1e6:.1f}M parameters exported "
        f"by babyllama: {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size:,}, rows of "
        f"{model.trained_context:,} tokens, stored in {dtype}."
    )


def _usage_section(is_conversational: bool, is_imported: bool) -> str:
    """Return a paragraph about where the model is from and how to use it."""
    if is_imported:
        return (
            "It was imported, with its tokenizer and, where it has one that can be used, its chat "
            "template."
        )
    if not is_conversational:
        return (
            "It was trained on text and continues text, which begins with `<s>` (id 1). It was not "
            "trained on conversations: the chat template is for fine-tuning."
        )
    return (
        "It was fine-tuned on the data below, and for nothing else. `apply_chat_template` formats "
        "messages as in training. A reference text, which the questions are about, is its argument "
        "`documents=[{'text': …}]`. An answer ends with `</s>` (id 2)."
    )


def _training_rows(run: Path, step: int, merge: Merge | None) -> dict[str, Any]:
    """Return the rows of the table of training; values that the run does not record are None."""
    run_info = read_json(run / run_layout.RUN_FILE)
    run_info = flatten(run_info) if isinstance(run_info, dict) else {}
    config_file = run / run_layout.CONFIG_FILE
    config = flatten(load_yaml(config_file, error_prefix="")) if config_file.is_file() else {}
    is_lora = config.get("adapter") == "lora"
    # Tokens trained on so far, as logged at each step.
    tokens = [
        record["tokens"]
        for record in read_metrics(run)
        if record["kind"] == "train" and record["step"] <= step and "tokens" in record
    ]
    rows = {
        "imported from": run_info.get("imported_from"),
        "command": run_info.get("made.command"),
        "data": config.get("data"),
        "shard sets": _shard_set_names(run_info),
        "base": config.get("base"),
        "steps": f"{step:,}",
        "tokens": format_value(tokens[-1]) if tokens else None,
        "device": run_info.get("made.device"),
        "seed": config.get("seed"),
        "optimizer": config.get("optimizer.name"),
    }
    if is_lora:
        rows |= {key: value for key, value in config.items() if key.startswith("lora.")}
        # Muon trains no adapter: AdamW does, even if the option names the other.
        if rows["optimizer"] == "muon":
            rows["optimizer"] = "adamw"
        if config.get("quantize") == "nf4":
            merged_into = "the base's own" if merge == "original" else "these, dequantized"
            rows["trained beside"] = f"nf4 weights; merged into {merged_into}"
    return rows | {
        "commit": run_info.get("made.commit"),
        "torch": run_info.get("made.versions.torch"),
        "tokenizer": str(run_info.get("fingerprints.tokenizer") or "")[:12],
    }


def _shard_set_names(run_info: dict[str, Any]) -> str | None:
    """Return the names of the shard sets that the run was trained on, or None.

    They may differ from the option `data`: a part of the shipped sample may have replaced a corpus.
    """
    folders = run_info.get("shards")
    if not isinstance(folders, list):
        return None
    return ", ".join(Path(folder).name for folder in folders if isinstance(folder, str))


def _score_rows(run: Path, step: int) -> dict[str, str]:
    """Return the scores of one step, from the training log and the results of evaluation commands.

    Keys are readable labels, values are formatted numbers.
    """
    scores: dict[str, Any] = {}
    for record in read_metrics(run):
        if record["step"] == step and record["kind"] not in UNSCORED_KINDS:
            label = f"{record['kind']} {record.get('set', '')}".strip()
            values = {key: value for key, value in record.items() if key not in ("kind", "step")}
            scores |= {f"{label} {key}": value for key, value in flatten(values).items()}
    for file in sorted((run / run_layout.RESULTS_DIR).glob("*.json")):
        # What changed from another model is no score.
        if file.stem == run_layout.BEFORE_AFTER_NAME:
            continue
        values = read_json(file)
        if not isinstance(values, dict) or values.get("step") != step:
            continue
        # Measured with quantized weights or a narrower KV cache: not what is exported.
        if "weights" not in values and "kv_cache" not in values:
            del values["step"]
            values.pop("made", None)  # command, versions, machine
            scores |= {
                f"{file.stem} {key}": value
                for key, value in flatten(values).items()
                if key.count(".") <= MAX_SCORE_DEPTH
            }
    rows = {}
    for key, value in scores.items():
        if not isinstance(value, str | bool) and (text := format_value(value)):
            rows[key] = text
    return rows


def _markdown_table(rows: dict[str, Any]) -> str:
    """Return a table of two columns, without the rows whose value is None or empty."""
    lines = ["| | |", "|---|---|"]
    for key, value in rows.items():
        if value not in (None, ""):
            # A vertical bar would end the cell.
            lines.append(f"| {key} | {str(value).replace('|', '/')} |")
    return "\n".join(lines)
