"""Kill -9 anywhere: a few of the kills of `python -m tests.fault_injection.kill`, at moments chosen for what they could break."""

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
from tests.reliability.conftest import goes_on

# A new run while it plans its data; in the writing of a checkpoint that takes the place of none, then of others; in an
# evaluation; in the rotation after it.
AIMS = [
    KillPoint("plan", 1, 0.01),
    KillPoint("checkpoint", 2, 0.03),
    KillPoint("evaluation", 1, 0.02),
    KillPoint("rotation", 3, 0.01),
]


def through(scenario: Scenario, run: Path, whole: Path, moments: list[KillPoint]) -> list[str]:
    places = []
    for aim in moments:
        code, place = kill_at(scenario, run, aim)
        assert code == -signal.SIGKILL and place in PHASES
        places.append(place)
    goes_on(scenario, run, whole)
    return places


@pytest.mark.slow
def test_killed_pretraining_is_bit_identical(
    pretrain: Scenario, whole: Path, tmp_path: Path
) -> None:
    """Half a checkpoint taken for a whole one, steps doubled or missing in the record, a best checkpoint that is lost."""
    places = through(pretrain, tmp_path / "run", whole, AIMS)
    assert "checkpoint" in places


@pytest.mark.slow
def test_killed_fine_tuning_is_bit_identical(tune: Scenario, tmp_path: Path) -> None:
    """What is true of pretraining alone: packed rows, answers that are scored, the best checkpoint by ROUGE."""
    child = tune.start(tmp_path / "whole", fresh_interpreter=True)
    assert child.wait() == 0, child.output
    through(
        tune,
        tmp_path / "run",
        tmp_path / "whole",
        [KillPoint("checkpoint", 2, 0.02), KillPoint("evaluation", 2, 0.01)],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("an adapter", [KillPoint("checkpoint", 2, 0.02), KillPoint("step", 2, 0.0)]),
        ("ending early", [KillPoint("evaluation", 2, 0.01), KillPoint("ending", 2, 0.005)]),
    ],
)
def test_killed_lora_and_early_stopping_runs_are_bit_identical(
    name: str, moments: list[KillPoint], tmp_path: Path
) -> None:
    """Dropout drawn anew, an adapter without its base; a run that patience ended and that trains on, or stands for the wrong
    checkpoint, because the kill came between its last evaluation and the word that it has ended."""
    scenario = SCENARIOS[name](tmp_path)
    child = scenario.start(tmp_path / "whole")
    assert child.wait() == 0 and (read_end_record(tmp_path / "whole") is not None) == (
        name == "ending early"
    ), child.output
    assert through(scenario, tmp_path / "run", tmp_path / "whole", moments)[-1] == moments[-1].phase


def test_harness_detects_differences(finished: Path, whole: Path) -> None:
    """A comparison that finds nothing whatever happens."""
    assert find_differences(finished, whole) == []
    with (finished / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 40, "loss": 1.0}\n')
    state = next((finished / "checkpoints").glob("step-*")) / "state.json"
    state.write_bytes(state.read_bytes() + b" ")
    (finished / ".x.tmp").touch()
    (finished / EARLY_STOP_FILE).touch()
    found = [said.split()[-1] for said in find_differences(finished, whole)]
    assert found == ["state.json", "metrics.jsonl", EARLY_STOP_FILE, ".x.tmp"]


def test_kill_points_cover_all_phases() -> None:
    """Fifty kills that are all at one place."""
    planned = sample_kill_points(random.Random(0), 60)
    assert len({aim.phase for aim in planned}) >= 5
    assert sum(aim.phase == "checkpoint" for aim in planned) >= 6
