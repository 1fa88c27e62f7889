"""The README.md of an exported model: how it was made and what it scored, from the files of its run."""

from pathlib import Path
from typing import Any

import yaml

from common.files import read_json
from common.metrics_file import UNSCORED_KINDS, read_metrics
from common.nested import flatten
from common.options import load_yaml
from model.checkpoint import locate
from model.llama import Llama


def build_model_card(
    checkpoint: Path,
    name: str,
    model: Llama,
    dtype: str,
    *,
    is_conversational: bool,
    is_imported: bool,
) -> str:
    """Markdown with a YAML head. What the checkpoint's run does not say is left out; a bare folder says little."""
    front_matter = {
        "language": ["zh"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", *(["conversational"] if is_conversational else [])],
    }
    run = checkpoint.resolve().parent.parent
    step = locate.read_step(checkpoint)
    sections = [
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---",
        f"# {name}",
        _shape_section(model, dtype),
        _usage_section(is_conversational, is_imported),
        *(
            (
                _training_section(run, step),
                _training_scores_section(run, step),
                *_evaluation_sections(run, checkpoint, step),
            )
            if step is not None
            else ()
        ),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    # JSON can say half a character, which no file can hold.
    return text.encode(errors="replace").decode()


def _shape_section(model: Llama, dtype: str) -> str:
    config = model.config
    return (
        f"A Llama (`LlamaForCausalLM`) of {config.num_parameters / 1e6:.1f}M parameters exported by babyllama: "
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads, vocabulary "
        f"{config.vocab_size:,}, rows of {model.trained_context:,} tokens, stored in {dtype}."
    )


def _usage_section(is_conversational: bool, is_imported: bool) -> str:
    if is_imported:
        return "It was imported: its tokenizer, and its chat template where it has one, are those it came with."
    if not is_conversational:
        return (
            "It was trained on text and continues text, which begins with `<s>` (id 1). It saw no conversation: the chat "
            "template is there for those who fine-tune it."
        )
    return (
        "It was fine-tuned to answer what the data below asks, and nothing else can be expected of it. A reference text is "
        "the message with the role `system`; `apply_chat_template` gives the ids that it was trained on. It stops with "
        "`</s>` (id 2)."
    )


def _training_section(run: Path, step: int) -> str:
    run_info = read_json(run / "run.json")
    options = load_yaml(run / "config.yaml", "") if (run / "config.yaml").is_file() else {}
    lora = options.get("adapter") == "lora"
    tokens = [
        _format_number(record["tokens"])
        for record in read_metrics(run)
        if record["kind"] == "train" and record["step"] <= step and "tokens" in record
    ]
    rows = {
        "imported from": _get_nested(run_info, "imported_from"),
        "command": _get_nested(run_info, "made", "command"),
        "data": _describe_data(options.get("data"), run_info),
        "base": options.get("base"),
        "steps": f"{step:,}",
        "tokens": tokens[-1] if tokens else None,
        "device": _get_nested(run_info, "made", "device"),
        "seed": options.get("seed"),
        "adapter": _describe_adapter(options) if lora else None,
        # Whatever was asked for, AdamW moves an adapter.
        "optimiser": "adamw" if lora else _get_nested(options, "optimizer", "name"),
        "commit": _get_nested(run_info, "made", "commit"),
        "torch": _get_nested(run_info, "made", "versions", "torch"),
        "tokenizer": str(_get_nested(run_info, "fingerprints", "tokenizer") or "")[:12],
    }
    return "## Training\n\n" + _markdown_table(rows)


def _describe_data(data_option: Any, run_info: Any) -> str | None:
    """What `data` said, and the shard sets that this was: a part of the shipped sample may have stood in for a corpus."""
    shards = _get_nested(run_info, "shards")
    names = (
        ", ".join(Path(folder).name for folder in shards if isinstance(folder, str))
        if isinstance(shards, list)
        else ""
    )
    return f"{data_option} ({names})" if data_option and names else data_option or names or None


def _describe_adapter(options: dict[str, Any]) -> str:
    rank, alpha, dropout, targets = (
        _get_nested(options, "lora", key) for key in ("rank", "alpha", "dropout", "targets")
    )
    return (
        f"LoRA of rank {rank} (alpha {alpha}, dropout {dropout}) on {', '.join(map(str, targets or ()))}, merged into "
        "the base's weights"
    )


def _get_nested(values: Any, *keys: str) -> Any:
    """What lies under these keys, one inside the other; None where there is nothing. A run's files may say anything."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _training_scores_section(run: Path, step: int) -> str:
    """What training measured at the exported step: a run's best step is not always its last."""
    newest: dict[str, dict[str, Any]] = {}
    for record in read_metrics(run):
        if record["kind"] not in UNSCORED_KINDS and record["step"] == step:
            newest[f"{record['kind']} {record.get('set', '')}".strip()] = record
    rows = {
        f"{kind} {key.replace('_', ' ')}": f"{_format_number(value)} (step {record['step']:,})"
        for kind, record in newest.items()
        for key, value in record.items()
        if key != "step" and _format_number(value)
    }
    return (
        "## Scores on held-out text, measured while it was trained\n\n" + _markdown_table(rows)
        if rows
        else ""
    )


def _evaluation_sections(run: Path, checkpoint: Path, step: int) -> list[str]:
    """The figures of the evaluation commands, a section each: those that were measured on the exported weights.

    And those of baselines that were counted on the data of the run, without a model.
    """
    sections = []
    data = _get_nested(read_json(run / "run.json"), "fingerprints", "data")
    data_fingerprints = (
        [_get_nested(each, "set") for each in data] if isinstance(data, list) else []
    )
    for file in sorted((run / "results").glob("*.json")):
        values = read_json(file)
        if not isinstance(values, dict) or "weights" in values:
            continue
        baseline = "data_fingerprint" in values and values["data_fingerprint"] in data_fingerprints
        figures = _numbers_by_name({key: value for key, value in values.items() if key != "step"})
        if figures and (baseline or _is_for_checkpoint(values, checkpoint, step)):
            kind = "Beside it, a baseline on the same data" if baseline else "Scores"
            sections.append(f"## {kind}: {file.stem}\n\n" + _markdown_table(figures))
    return sections


def _is_for_checkpoint(values: dict[str, Any], checkpoint: Path, step: int) -> bool:
    if "step" in values:
        return bool(values["step"] == step)
    # Of an earlier version, which wrote no step.
    return (
        isinstance(values.get("checkpoint"), str)
        and Path(values["checkpoint"]).resolve() == checkpoint.resolve()
    )


def _numbers_by_name(values: dict[str, Any]) -> dict[str, str]:
    """Return the numbers of a results file by dotted name, without the environment of the command."""
    numbers = {}
    for name, value in flatten(values).items():
        text = _format_number(value)
        if text is not None and not name.startswith("made."):
            numbers[name] = text
    return numbers


def _format_number(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _markdown_table(rows: dict[str, Any]) -> str:
    lines = [
        f"| {key} | {str(value).replace('|', '/')} |"
        for key, value in rows.items()
        if value not in (None, "")
    ]
    return "\n".join(["| | |", "|---|---|", *lines])
