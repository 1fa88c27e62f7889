"""`python -m train.memory`: the plan it prints, what fits a card, and what to change first."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.options import validate_options
from train.memory import main
from train.memory_options import MemoryOptions
from train.memory_report import (
    build_workload,
    find_largest_rows,
    find_savings,
)
from train.monitoring.memory_plan import plan_memory

GIB = 1 << 30


def options(**values: Any) -> MemoryOptions:
    return validate_options(MemoryOptions, {"device": "cpu", **values})


def test_options_of_a_run_are_read_and_the_others_ignored(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a planner that refuses the file of a run, or plans for another shape than it."""
    file = tmp_path / "plan.json"
    config = root / "configs" / "pretrain-43m.yaml"
    arguments = ["--vocab_size", "65000", "--device", "cuda", "--micro_batch", "8"]
    arguments += ["--tokens", "3600000", "--tokens_per_second", "500", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["train.memory", "--config", str(config), *arguments])
    main()
    printed = capsys.readouterr().out
    plan = json.loads(file.read_text(encoding="utf-8"))
    assert "babyllama-43m: 43.5M parameters, vocabulary 65,000" in printed
    # 131,072 tokens a step, as in the file, in micro-batches of 8 rows of 512.
    assert (plan["workload"]["micro_rows"], plan["workload"]["micro_batches"]) == (8, 32)
    assert "3,600,000 tokens take 2.0 hours" in printed and plan["hours"] == 2
    assert plan["peak_bytes"] == max(sum(parts.values()) for parts in plan["phases"].values())
    assert set(plan["largest_micro_batch"]) == {"6", "8", "12", "16", "24", "40", "80"}
    assert all(saving["bytes"] > 0 for saving in plan["savings"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_largest_micro_batch_is_the_last_that_fits(device: str) -> None:
    """Catch a search that ends one row too early or too late, and a card that seems all free."""
    workload = build_workload(options(device=device, vocab_size=65_000))
    limit = 6 * GIB * (0.9 if device == "cuda" else 1)
    rows = find_largest_rows(workload, 6 * GIB, process_bytes=10**8)
    peaks = [
        plan_memory(
            replace(workload, micro_rows=n, targets=None, micro_batches=1), 10**8
        ).peak_bytes
        for n in (rows, rows + 1)
    ]
    assert rows > workload.micro_rows and peaks[0] <= limit < peaks[1]
    assert find_largest_rows(workload, 10**8, process_bytes=10**8) == 0


def test_changes_save_what_they_name() -> None:
    """Prevents advice that saves nothing, and a promise of what training does not have."""
    workload = build_workload(options(device="cuda", precision="fp32", micro_batch=64))
    savings = find_savings(workload, process_bytes=0)
    names = [name for name, _ in savings]
    assert names[0].startswith("--micro_batch 32: ") and all(size > 0 for _, size in savings)
    assert "--precision bf16" in names
    assert [name.split(":")[0] for name in names if "--adapter" in name or "grad" in name] == [
        "--gradient_checkpointing true",
        "--adapter lora",
        "--adapter lora --quantize nf4",
    ]
    half = replace(workload, micro_rows=32, micro_batches=2, targets=32 * 512)
    peaks = [plan_memory(each).peak_bytes for each in (workload, half)]
    assert savings[0][1] == peaks[0] - peaks[1]


def plan_config(
    monkeypatch: pytest.MonkeyPatch, file: Path, config: Path, *arguments: str
) -> dict[str, Any]:
    """Return what the command writes for the options file of a run."""
    monkeypatch.setattr(
        sys,
        "argv",
        ["train.memory", "--config", str(config), *arguments, "--json", str(file)],
    )
    main()
    plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return plan


def test_33b_config_is_planned_as_it_is_trained(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents options of the recipe that the planner ignores, and a card of 24 GB too small."""
    config = root / "configs" / "qlora-33b.yaml"
    arguments = ["--base", "none", "--device", "cuda", "--vocab_size", "32000"]
    plan = plan_config(monkeypatch, tmp_path / "plan.json", config, *arguments)
    workload = plan["workload"]
    assert (workload["quantization"], workload["optimizer"]) == ("nf4", "paged_adamw8bit")
    assert workload["lora"]["dtype"] == "bf16" and workload["checkpointing"]
    assert workload["is_packed"] and not workload["is_compiled"]
    assert 20e9 < plan["peak_bytes"] < 23 * GIB
    assert plan["largest_micro_batch"]["24"] >= workload["micro_rows"] == 1
    # Nothing of it was measured on a GPU.
    assert not plan["is_measured"] and "arithmetic, not measured" in capsys.readouterr().out
    # The keys and values of three answers would not leave room.
    plan = plan_config(
        monkeypatch, tmp_path / "plan.json", config, *arguments, "--evaluation.examples", "3"
    )
    assert plan["peak_phase"] == "generation" and plan["largest_micro_batch"]["24"] == 0


def test_rows_of_pairs_and_of_drawn_answers_are_planned(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents plans of DPO without packed rows, and of GRPO without its KV cache."""
    shape = ["--model.preset", "babyllama-43m", "--vocab_size", "65000", "--device", "cuda"]
    file = tmp_path / "plan.json"
    pairs = plan_config(monkeypatch, file, root / "configs" / "dpo-43m.yaml", *shape)
    assert pairs["workload"]["is_packed"] and "sampling" not in pairs["phases"]
    drawn = plan_config(monkeypatch, file, root / "configs" / "grpo-43m.yaml", *shape)
    workload, config = drawn["workload"], drawn["workload"]["config"]
    # 32 questions with 8 answers each, 256 of which are decoded together.
    assert (workload["sampled_rows"], workload["micro_batches"]) == (256, 256)
    numbers = 2 * config["num_hidden_layers"] * config["hidden_size"]
    assert drawn["phases"]["sampling"]["KV cache"] == 256 * 1024 * numbers * 4
    assert "reference" not in drawn["phases"]["sampling"]
    kept = plan_config(
        monkeypatch, file, root / "configs" / "grpo-43m.yaml", *shape, "--grpo.kl", "0.1"
    )
    # The base is in memory too.
    parts = kept["phases"]["sampling"]
    assert parts["reference"] == parts["parameters"]


def test_hours_come_from_the_median_rate_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents hours from the first, slow line of a run, and a traceback without one."""
    rates = [10.0, 1000.0, 1000.0]
    lines = [
        json.dumps({"kind": "train", "step": step, "tokens_per_second": rate})
        for step, rate in enumerate(rates)
    ]
    arguments = [
        "train.memory",
        "--tokens",
        "7200000",
        "--rate_of",
        str(tmp_path),
        "--device",
        "cuda",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="has no record of training"):
        main()
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    main()
    assert "7,200,000 tokens take 2.0 hours" in capsys.readouterr().out


def test_a_row_that_is_longer_than_the_context_is_refused() -> None:
    """Prevents a plan for positions that the model does not have."""
    with pytest.raises(UserError, match="is longer than the context of the model, 2048"):
        build_workload(options(sequence_length=4096))
    workload = build_workload(
        options(sequence_length=4096, model={"max_position_embeddings": 4096})
    )
    assert workload.length == 4096
