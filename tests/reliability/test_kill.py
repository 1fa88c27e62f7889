"""SIGKILL during training: a few kills of `python -m tests.fault_injection.kill`.

Their kill_points are chosen for what they could break.
"""

import random
import signal
from pathlib import Path

import pytest

from common.run_layout import EARLY_STOP_FILE
from tests.fault_injection.kill import (
    PHASES,
    SCENARIOS,
    KillPoint,
    Scenario,
    find_differences,
    kill_at,
    read_end_record,
    sample_kill_points,
)
from tests.reliability.conftest import check_resumed_run

# While a new run plans its data; while the first checkpoint is written, then later ones; during an
# evaluation; during the rotation that follows.
KILL_POINTS = [
    KillPoint("plan", 1, 0.01),
    KillPoint("checkpoint", 2, 0.03),
    KillPoint("evaluation", 1, 0.02),
    KillPoint("rotation", 3, 0.01),
]


def kill_and_resume(
    scenario: Scenario, run: Path, uninterrupted: Path, kill_points: list[KillPoint]
) -> list[str]:
    phases = []
    for kill_point in kill_points:
        code, phase = kill_at(scenario, run, kill_point)
        assert code == -signal.SIGKILL and phase in PHASES
        phases.append(phase)
    check_resumed_run(scenario, run, uninterrupted)
    return phases


@pytest.mark.slow
def test_killed_pretraining_is_bit_identical(
    pretrain: Scenario, uninterrupted: Path, tmp_path: Path
) -> None:
    """Prevents torn checkpoints, repeated or missing steps, and a lost best checkpoint."""
    phases = kill_and_resume(pretrain, tmp_path / "run", uninterrupted, KILL_POINTS)
    assert "checkpoint" in phases


@pytest.mark.slow
def test_killed_fine_tuning_is_bit_identical(tune: Scenario, tmp_path: Path) -> None:
    """Prevents a resume that works only for pretraining: packed rows, generation, ROUGE."""
    child = tune.start(tmp_path / "uninterrupted", fresh_interpreter=True)
    assert child.wait() == 0, child.output
    kill_and_resume(
        tune,
        tmp_path / "run",
        tmp_path / "uninterrupted",
        [KillPoint("checkpoint", 2, 0.02), KillPoint("evaluation", 2, 0.01)],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kill_points"),
    [
        ("an adapter", [KillPoint("checkpoint", 2, 0.02), KillPoint("step", 2, 0.0)]),
        ("ending early", [KillPoint("evaluation", 2, 0.01), KillPoint("ending", 2, 0.005)]),
    ],
)
def test_killed_lora_and_early_stopping_runs_are_bit_identical(
    name: str, kill_points: list[KillPoint], tmp_path: Path
) -> None:
    """Prevents a restarted dropout generator, an adapter without its base, and wrong early stops.

    A kill between the last evaluation and the early-stop file must not let the run train on.
    """
    scenario = SCENARIOS[name](tmp_path)
    child = scenario.start(tmp_path / "uninterrupted")
    assert child.wait() == 0 and (read_end_record(tmp_path / "uninterrupted") is not None) == (
        name == "ending early"
    ), child.output
    assert (
        kill_and_resume(scenario, tmp_path / "run", tmp_path / "uninterrupted", kill_points)[-1]
        == kill_points[-1].phase
    )


def test_harness_detects_differences(finished: Path, uninterrupted: Path) -> None:
    """Prevents a comparison that never finds a difference."""
    assert find_differences(finished, uninterrupted) == []
    with (finished / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 40, "loss": 1.0}\n')
    state = next((finished / "checkpoints").glob("step-*")) / "state.json"
    state.write_bytes(state.read_bytes() + b" ")
    (finished / ".x.tmp").touch()
    (finished / EARLY_STOP_FILE).touch()
    differing = [difference.split()[-1] for difference in find_differences(finished, uninterrupted)]
    assert differing == ["state.json", "metrics.jsonl", EARLY_STOP_FILE, ".x.tmp"]


def test_kill_points_cover_all_phases() -> None:
    """Prevents kills that all hit one phase."""
    planned = sample_kill_points(random.Random(0), 60)
    assert len({kill_point.phase for kill_point in planned}) >= 5
    assert sum(kill_point.phase == "checkpoint" for kill_point in planned) >= 6
