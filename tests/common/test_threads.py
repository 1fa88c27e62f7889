"""Tests of how long threads wait for each other before they sleep."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate

# Every command begins like this one, with `run_main`. libgomp prints its settings when it loads.
COMMAND = """
from common.errors import run_main

def main():
    import torch

run_main(main)
"""
BATCH_COMMAND = COMMAND.replace("run_main(main)", "run_main(main, decodes_batches=True)")


def settings_of_libgomp(command: str = COMMAND, **variables: str) -> str:
    """Return the settings that libgomp prints in a command with these environment variables."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    process = subprocess.run(
        [sys.executable, "-c", command],
        env={**environment, "OMP_DISPLAY_ENV": "verbose", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in process.stderr:
        pytest.skip("this build of PyTorch does not use libgomp")
    return process.stderr


def test_threads_sleep_soon() -> None:
    """Beside another process, waiting threads would take the time of those that work."""
    assert "GOMP_SPINCOUNT = '1000'" in settings_of_libgomp()


def test_threads_of_batches_wait_as_libgomp_does_where_they_adapt_to_the_load() -> None:
    """On an idle machine waking up costs batches a fifth; with fixed threads it has to be paid."""
    assert "GOMP_SPINCOUNT = '1000'" not in settings_of_libgomp(BATCH_COMMAND)
    fixed = settings_of_libgomp(BATCH_COMMAND, OMP_NUM_THREADS="2")
    assert "GOMP_SPINCOUNT = '1000'" in fixed


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        # libgomp's own spin count for this policy; GOMP_SPINCOUNT would override it.
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "GOMP_SPINCOUNT = '0'"),
    ],
)
def test_environment_of_the_user_wins(variables: dict[str, str], expected: str) -> None:
    """A user who knows the machine better could not say so."""
    assert expected in settings_of_libgomp(**variables)


def commands_with_answers() -> list[Path]:
    """Return the evaluations that generate answers: they have an option for the longest one."""
    [package] = map(Path, evaluate.__path__)
    found = []
    for path in package.rglob("*.py"):
        options = re.search(r"parse_options\(\s*(\w+)", path.read_text("utf-8"))
        if options is None or "run_main(main" not in path.read_text("utf-8"):
            continue
        name = ".".join(("evaluate", *path.relative_to(package).with_suffix("").parts))
        fields = getattr(importlib.import_module(name), options[1]).model_fields
        if "max_new_tokens" in fields:
            found.append(path)
    return found


def test_evaluations_with_answers_decode_at_full_speed() -> None:
    """Prevents a new evaluation whose threads sleep between all products of a batch."""
    commands = commands_with_answers()
    assert len(commands) > 5
    for path in commands:
        assert "run_main(main, decodes_batches=True)" in path.read_text("utf-8"), path
