"""Processes that are forked from one server are as different from one another as those of a user where it matters."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fault_injection.child import create_process, set_up_command_process


def draw(number: int, folder: Path) -> None:
    """Write down what a process draws, how it hashes, and what it is told on its command line."""
    file = folder / str(number)
    set_up_command_process(["module", str(number)], file, file)
    print(np.random.random(), hash("a word"), *sys.argv)


@pytest.mark.slow
def test_forks_have_own_rng_and_fresh_interpreters_own_hash_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that draws from NumPy's own generator, or takes texts in the order of a set, and seems to go on to the same bits
    because what it is compared with has the same seed."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    children = [
        create_process(draw, number, tmp_path, fresh_interpreter=number == 2) for number in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    said = [(tmp_path / str(number)).read_text().split() for number in range(3)]
    numbers, hashes, *words = zip(*said, strict=True)
    assert len(set(numbers)) == 3 and words == [("module",) * 3, ("0", "1", "2")]
    assert hashes[0] == hashes[1] != hashes[2]
