"""A few of the kills of `python -m tests.fault_injection.kill`, where much can break."""

import random
import signal
from pathlib import Path

import pytest

from common.run_layout import EARLY_STOP_FILE
from tests.fault_injection.child import run_in_test_process
from tests.fault_injection.kill import (
    PHASES,
    SCENARIOS,
    KillPoint,
    Scenario,
    find_differences,
    kill_at,
    read_early_stop,
    sample_kill_points,
)
from tests.helpers.training import tensorboard_losses
from tests.reliability.conftest import assert_resumes_like

# While a new run plans its data, writes a checkpoint, evaluates, and deletes old checkpoints.
KILL_POINTS = [
    KillPoint("plan", 1, 0.01),
    KillPoint("checkpoint", 2, 0.03),
    KillPoint("evaluation", 1, 0.02),
    KillPoint("rotation", 3, 0.01),
]


def kill_and_compare(
    scenario: Scenario, run: Path, whole: Path, kill_points: list[KillPoint]
) -> list[str]:
    """Kill a run at each point, let it end, compare it with `whole`; return the phases."""
    phases = []
    for kill_point in kill_points:
        code, phase = kill_at(scenario, run, kill_point)
        assert code == -signal.SIGKILL and phase in PHASES
        phases.append(phase)
    assert_resumes_like(scenario, run, whole)
    return phases


@pytest.mark.slow
def test_killed_pretraining_is_bit_identical(
    pretrain: Scenario, whole: Path, tmp_path: Path
) -> None:
    """Catch half a checkpoint taken for a whole one, and steps doubled or missing in the logs."""
    run = tmp_path / "run"
    assert "checkpoint" in kill_and_compare(pretrain, run, whole, KILL_POINTS)
    # TensorBoard too has what the killed processes had not flushed.
    assert tensorboard_losses(run) == tensorboard_losses(whole)


@pytest.mark.slow
def test_killed_early_stopping_run_is_bit_identical(tmp_path: Path) -> None:
    """Catch a kill just before the early-stop record, after which the run would train on.

    Killed fine-tuning is tested by train/test_sft.py, a killed adapter by
    train/test_lora_training.py.
    """
    scenario = SCENARIOS["ending early"](tmp_path)
    run_in_test_process(scenario.module, [*scenario.arguments, "--run", str(tmp_path / "whole")])
    assert read_early_stop(tmp_path / "whole") is not None
    kill_points = [KillPoint("ending", 2, 0.005)]
    phases = kill_and_compare(scenario, tmp_path / "run", tmp_path / "whole", kill_points)
    assert phases == ["ending"]


@pytest.mark.slow
def test_killed_preferences_are_bit_identical(tmp_path: Path) -> None:
    """Catch half a reference, or one of the trained model, after a kill while it is written."""
    scenario = SCENARIOS["preferences"](tmp_path)
    run_in_test_process(scenario.module, [*scenario.arguments, "--run", str(tmp_path / "whole")])
    kill_points = [
        KillPoint("reference", 1, 0.05),
        KillPoint("checkpoint", 1, 0.03),
        KillPoint("evaluation", 1, 0.02),
    ]
    phases = kill_and_compare(scenario, tmp_path / "run", tmp_path / "whole", kill_points)
    assert "reference" in phases


@pytest.mark.slow
def test_killed_rewards_are_bit_identical(tmp_path: Path) -> None:
    """Catch half the answers of a round, or those of other weights, after a kill between updates.

    Checkpoints come after steps 4, 5, 8 …, and a round has three steps: 4 and 5 are within one.
    """
    scenario = SCENARIOS["rewards"](tmp_path)
    run_in_test_process(scenario.module, [*scenario.arguments, "--run", str(tmp_path / "whole")])
    kill_points = [
        KillPoint("answers", 1, 0.01),
        KillPoint("step", 6, 0.01),
        KillPoint("evaluation", 2, 0.02),
    ]
    phases = kill_and_compare(scenario, tmp_path / "run", tmp_path / "whole", kill_points)
    assert "answers" in phases


@pytest.mark.slow
def test_harness_detects_differences(finished: Path, whole: Path) -> None:
    """Catch a comparison that never finds a difference."""
    assert find_differences(finished, whole) == []
    with (finished / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 20, "loss": 1.0}\n')
    state = next((finished / "checkpoints").glob("step-*")) / "state.json"
    state.write_bytes(state.read_bytes() + b" ")
    (finished / ".x.tmp").touch()
    (finished / EARLY_STOP_FILE).touch()
    names = [line.split()[-1] for line in find_differences(finished, whole)]
    assert names == ["state.json", "metrics.jsonl", EARLY_STOP_FILE, ".x.tmp"]


def test_kill_points_cover_all_phases() -> None:
    """Catch fifty kills in one phase."""
    phases = [point.phase for point in sample_kill_points(random.Random(0), 60)]
    assert len(set(phases)) >= 5 and phases.count("checkpoint") >= 6
