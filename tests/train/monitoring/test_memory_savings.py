"""Changes that lower the peak, and the line that says how a run fits the memory."""

from dataclasses import replace
from typing import Any

import pytest

from model.config import LlamaConfig
from train.monitoring.memory_plan import Workload, plan_memory
from train.monitoring.memory_savings import change_rows, find_savings, suggest_fit

CONFIG = LlamaConfig(
    8192,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
WORKLOAD = Workload(CONFIG, length=8192, micro_rows=4, device="cuda", precision="bf16")


def change(**changes: Any) -> Workload:
    return replace(change_rows(WORKLOAD, changes.pop("rows", 4)), **changes)


@pytest.mark.parametrize(
    ("fitting", "options"),
    [
        (change(), None),
        (change(rows=2), "--micro_batch 2"),
        (change(rows=1), "--micro_batch 1"),
        (
            change(rows=1, checkpointing="layers", offloads=True),
            "--micro_batch 1 --gradient_checkpointing layers --offload_activations true",
        ),
    ],
)
def test_the_first_options_that_suffice_are_named(fitting: Workload, options: str | None) -> None:
    """Prevents advice that is not enough, and advice that costs more than needed."""
    line = suggest_fit(WORKLOAD, 0, plan_memory(fitting).peak_bytes)
    if options is None:
        assert line is None
    else:
        assert line is not None and line.endswith(f": use {options}")


@pytest.mark.parametrize("choice", ["attention", "layers"])
def test_a_single_row_is_recomputed(choice: Any) -> None:
    """Prevents advice to divide one row, and to keep nothing where keeping attention fits."""
    single = change_rows(WORKLOAD, 1)
    changed = replace(single, checkpointing=choice)
    line = suggest_fit(single, 0, plan_memory(changed).peak_bytes)
    assert line is not None and line.endswith(f": use --gradient_checkpointing {choice}")


def test_what_no_option_helps_is_said() -> None:
    """Prevents an option as the remedy with which the run fails all the same."""
    line = suggest_fit(WORKLOAD, 0, 1e6)
    assert line is not None and "use a smaller model or --sequence_length" in line


def test_what_is_chosen_already_is_not_proposed() -> None:
    """Prevents the advice to keep more than now, and to move what a CPU cannot move."""
    changes = [name for name, _ in find_savings(change(rows=1, checkpointing="layers"), 0)]
    assert any(name.startswith("--offload_activations true") for name in changes)
    assert not any("gradient_checkpointing" in name for name in changes)
    on_cpu = change(rows=1, checkpointing="attention", device="cpu", precision="fp32")
    changes = [name for name, _ in find_savings(on_cpu, 0)]
    assert any(name.startswith("--gradient_checkpointing layers") for name in changes)
    assert not any("offload" in name for name in changes)
