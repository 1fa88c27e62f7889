"""The benchmark of memory: its configurations, and one of them measured."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.memory_runs import (
    CONFIGURATIONS,
    MAX_RATIO,
    MIN_RATIO,
    RandomBatches,
    compare_memory,
    write_base,
)
from bench.options import MemoryOptions
from common.errors import UserError
from common.files import read_json, write_json
from model.checkpoint import weights
from model.checkpoint.locate import weights_files
from model.lora_options import LoraOptions
from train.monitoring.memory_plan import plan_memory


@pytest.mark.slow
def test_planned_memory_is_at_least_the_peak_of_the_process(root: Path, tmp_path: Path) -> None:
    """Prevents a plan that a run does not keep, or that asks for much more than it needs."""
    file = tmp_path / "memory.json"
    # In a fresh interpreter, because the memory of an idle process is measured in it. Smaller
    # configurations are mostly libraries, of which 25 MB more or less are resident in each run.
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--only", "5,8", "--json", str(file)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 5 | 12M | 65,000 | 2 × 512 of 4 rows |" in done.stdout
    results = read_json(file)["results"]
    assert [result["number"] for result in results] == [5, 8]
    for result in results:
        ratio = result["planned_bytes"] / result["peak_bytes"]
        assert MIN_RATIO <= ratio == result["ratio"] <= MAX_RATIO, result


def test_plan_is_compared_with_earlier_peaks(tmp_path: Path) -> None:
    """Prevents a status of 0 for a plan out of bounds, and peaks of another configuration."""
    file = tmp_path / "memory.json"
    workload = CONFIGURATIONS[7].workload
    peak_bytes = plan_memory(workload, 10**8).peak_bytes
    result = {"number": 8, "workload": workload.to_json(), "peak_bytes": peak_bytes}
    earlier = {"made": {}, "process_bytes": 10**8, "results": [result]}
    write_json(file, earlier)
    options = MemoryOptions(only=(8,), peaks=file)
    assert compare_memory(options) == 0
    for factor in (1.01, 0.86):
        changed = {**result, "peak_bytes": round(peak_bytes * factor)}
        write_json(file, {**earlier, "results": [changed]})
        assert compare_memory(options) == 1
    for number, changes in ((1, {}), (8, {"workload": {**workload.to_json(), "length": 9}})):
        write_json(file, {**earlier, "results": [{**result, **changes}]})
        with pytest.raises(UserError, match=f"has no peak of configuration {number} as it is now"):
            compare_memory(MemoryOptions(only=(number,), peaks=file))


def test_configurations_cover_what_memory_depends_on() -> None:
    """Prevents bounds that hold for one size, precision, loss or kind of rows only."""
    assert len(set(map(repr, CONFIGURATIONS))) == len(CONFIGURATIONS) >= 20
    sizes = [configuration.config.num_parameters for configuration in CONFIGURATIONS]
    assert min(sizes) < 3e6 and max(sizes) > 1.4e9
    for name, values in {
        "vocab_size": {4096, 8192, 32_000, 65_000},
        "precision": {"fp32", "bf16"},
        "loss_path": {"full", "chunked", "torch"},
        "optimizer": {"muon", "adamw", "adamw8bit", "paged_adamw8bit"},
        "quantize": {None, "nf4"},
        "checkpointing": {"none", "attention", "layers"},
    }.items():
        assert {getattr(configuration, name) for configuration in CONFIGURATIONS} == values
    assert sum(configuration.lora is not None for configuration in CONFIGURATIONS) >= 3
    assert sum(configuration.example_tokens > 0 for configuration in CONFIGURATIONS) >= 3
    # Within the memory of a machine of 16 GB.
    for configuration in CONFIGURATIONS:
        assert plan_memory(configuration.workload).peak_bytes < 9e9


def test_a_large_base_is_written_layer_by_layer(tmp_path: Path) -> None:
    """Prevents a base of which loading refuses a file, and the memory of a whole model for it."""
    configuration = replace(CONFIGURATIONS[0], lora=LoraOptions(), quantize="nf4")
    folder = write_base(configuration, tmp_path)
    config = configuration.config
    assert len(weights_files(folder)) == config.num_hidden_layers + 1
    model, _ = weights.load_checkpoint(folder, torch.device("cpu"))
    assert sum(weight.numel() for weight in model.parameters()) == config.num_parameters
    assert 0.015 < float(model.lm_head.weight.std()) < 0.025


def test_batches_are_those_of_the_workload() -> None:
    """Prevents a plan for other rows, targets or masks than the run has."""
    for configuration in CONFIGURATIONS:
        workload = configuration.workload
        batches = RandomBatches(configuration).micro_batches(0, configuration.micro_rows)
        assert len(batches) == workload.micro_batches
        for batch in batches:
            assert batch.ids.shape == (workload.micro_rows, workload.length)
            assert int(batch.ids.max()) < workload.config.vocab_size
            assert (batch.segments is not None) == workload.is_packed
            assert len(batch.targets) == pytest.approx(workload.num_targets, rel=0.03)
