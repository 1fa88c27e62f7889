"""The README.md of an exported model: how it was made and what it scored, from the files of its run."""

from pathlib import Path
from typing import Any

import yaml

from common.files import read_json
from common.metrics_file import read_metrics
from common.options import load_yaml
from model.llama import Llama

# Records of a run's log that are no scores on held-out data.
_UNSCORED = ("train", "sample", "evaluated", "skipped")


def model_card(checkpoint: Path, name: str, model: Llama, dtype: str, *, converses: bool, imported: bool) -> str:
    """Markdown with a YAML head. What the checkpoint's run does not say is left out; a bare folder says little."""
    head = {"language": ["zh"], "library_name": "transformers", "pipeline_tag": "text-generation",
            "tags": ["llama", *(["conversational"] if converses else [])]}
    run = checkpoint.resolve().parent.parent
    known = (run / "run.json").is_file()
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---", f"# {name}", _shape(model, dtype), _use(converses, imported),
        *((_training(run, checkpoint), _log(run), *_results(run)) if known else ()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _shape(model: Llama, dtype: str) -> str:
    config = model.config
    return (f"A Llama (`LlamaForCausalLM`) of {config.parameters / 1e6:.1f}M parameters exported by babyllama: "
            f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads, vocabulary "
            f"{config.vocab_size:,}, rows of {model.context:,} tokens, stored in {dtype}.")


def _use(converses: bool, imported: bool) -> str:
    if imported:
        return "It was imported: its tokenizer, and its chat template where it has one, are those it came with."
    if not converses:
        return ("It was trained on text and continues text, which begins with `<s>` (id 1). It saw no conversation: the chat "
                "template is there for those who fine-tune it.")
    return ("It answers questions, and questions about a reference text, which is the message with the role `system`; "
            "`apply_chat_template` gives the ids that it was trained on. It stops with `</s>` (id 2).")


def _training(run: Path, checkpoint: Path) -> str:
    made = read_json(run / "run.json")
    facts = made["made"]
    options = load_yaml(run / "config.yaml", "") if (run / "config.yaml").is_file() else {}
    step = int(checkpoint.resolve().name.removeprefix("step-"))
    tokens = [record["tokens"] for record in read_metrics(run)
              if record["kind"] == "train" and record["step"] <= step and "tokens" in record]
    rows = {
        "imported from": made.get("imported_from"), "command": facts.get("command"),
        "data": options.get("data"), "base": options.get("base"),
        "steps": f"{step:,}", "tokens": f"{tokens[-1]:,}" if tokens else None, "device": facts.get("device"),
        "seed": options.get("seed"), "optimiser": (options.get("optimizer") or {}).get("name"), "commit": facts.get("commit"),
        "torch": facts.get("versions", {}).get("torch"), "tokenizer": str(made["fingerprints"].get("tokenizer", ""))[:12],
    }
    return "## Training\n\n" + _table(rows)


def _log(run: Path) -> str:
    newest: dict[str, dict[str, Any]] = {}
    for record in read_metrics(run):
        if record["kind"] not in _UNSCORED:
            newest[f"{record['kind']} {record.get('set', '')}".strip()] = record
    rows = {
        f"{kind} {key.replace('_', ' ')}": f"{_number(value)} (step {record['step']:,})"
        for kind, record in newest.items() for key, value in record.items() if key != "step" and _number(value)
    }
    return "## Scores on held-out text, measured while it was trained\n\n" + _table(rows) if rows else ""


def _results(run: Path) -> list[str]:
    """The figures of the evaluation commands, a section each."""
    sections = []
    for file in sorted((run / "results").glob("*.json")):
        figures = _figures(read_json(file))
        if figures:
            sections.append(f"## Scores: {file.stem}\n\n" + _table(figures))
    return sections


def _figures(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The numbers of a results file by dotted name; how they were made is the run's own affair."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key != "made":
            found |= _figures(value, f"{prefix}{key}.")
        elif (text := _number(value)) is not None:
            found[prefix + key] = text
    return found


def _number(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items() if value not in (None, "")]
    return "\n".join(["| | |", "|---|---|", *lines])
