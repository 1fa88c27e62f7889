"""Kill -9 anywhere: a few of the kills of `python -m tests.fault_injection.kill`, at moments chosen for what they could break."""

import random
import signal
from pathlib import Path

import pytest

from tests.fault_injection.kill import PLACES, SCENARIOS, Aim, Scenario, aims, differences, kill, sealed
from model.checkpoint.locate import ENDED
from tests.reliability.conftest import goes_on

# A new run while it plans its data; in the writing of a checkpoint that takes the place of none, then of others; in an
# evaluation; in the rotation after it.
AIMS = [Aim("plan", 1, 0.01), Aim("checkpoint", 2, 0.03), Aim("evaluation", 1, 0.02), Aim("rotation", 3, 0.01)]


def through(scenario: Scenario, run: Path, whole: Path, moments: list[Aim]) -> list[str]:
    places = []
    for aim in moments:
        code, place = kill(scenario, run, aim)
        assert code == -signal.SIGKILL and place in PLACES
        places.append(place)
    goes_on(scenario, run, whole)
    return places


@pytest.mark.slow
def test_pretraining_killed_anywhere_ends_in_the_same_bits(pretrain: Scenario, whole: Path, tmp_path: Path) -> None:
    """Half a checkpoint taken for a whole one, steps doubled or missing in the record, a best checkpoint that is lost."""
    places = through(pretrain, tmp_path / "run", whole, AIMS)
    assert "checkpoint" in places


@pytest.mark.slow
def test_fine_tuning_killed_anywhere_ends_in_the_same_bits(tune: Scenario, tmp_path: Path) -> None:
    """What is true of pretraining alone: packed rows, answers that are scored, the best checkpoint by ROUGE."""
    child = tune.start(tmp_path / "whole", anew=True)
    assert child.wait() == 0, child.said
    through(tune, tmp_path / "run", tmp_path / "whole", [Aim("checkpoint", 2, 0.02), Aim("evaluation", 2, 0.01)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moments"), [
    ("an adapter", [Aim("checkpoint", 2, 0.02), Aim("step", 2, 0.0)]),
    ("ending early", [Aim("evaluation", 2, 0.01), Aim("ending", 2, 0.005)]),
])
def test_other_fine_tuning_killed_anywhere_ends_in_the_same_bits(name: str, moments: list[Aim], tmp_path: Path) -> None:
    """Dropout drawn anew, an adapter without its base; a run that patience ended and that trains on, or stands for the wrong
    checkpoint, because the kill came between its last evaluation and the word that it has ended."""
    scenario = SCENARIOS[name](tmp_path)
    child = scenario.start(tmp_path / "whole")
    assert child.wait() == 0 and (sealed(tmp_path / "whole") is not None) == (name == "ending early"), child.said
    assert through(scenario, tmp_path / "run", tmp_path / "whole", moments)[-1] == moments[-1].place


def test_the_harness_sees_what_it_looks_for(finished: Path, whole: Path) -> None:
    """A comparison that finds nothing whatever happens."""
    assert differences(finished, whole) == []
    with (finished / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 40, "loss": 1.0}\n')
    state = next((finished / "checkpoints").glob("step-*")) / "state.json"
    state.write_bytes(state.read_bytes() + b" ")
    (finished / ".x.tmp").touch()
    (finished / ENDED).touch()
    found = [said.split()[-1] for said in differences(finished, whole)]
    assert found == ["state.json", "metrics.jsonl", ENDED, ".x.tmp"]


def test_kills_are_spread_over_a_run() -> None:
    """Fifty kills that are all at one place."""
    planned = aims(random.Random(0), 60)
    assert len({aim.place for aim in planned}) >= 5
    assert sum(aim.place == "checkpoint" for aim in planned) >= 6
