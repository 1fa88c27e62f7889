"""Forked test processes have independent random states."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fault_injection.child import create_process, set_up_command_process


def draw(number: int, folder: Path) -> None:
    """Write a random number, a string hash and the arguments of a process."""
    file = folder / str(number)
    set_up_command_process(["module", str(number)], file, file)
    print(np.random.random(), hash("a word"), *sys.argv)


def write_hash(file: Path) -> None:
    """Write a string hash."""
    file.write_text(str(hash("a word")))


@pytest.mark.slow
def test_forks_have_own_rng_and_fresh_interpreters_own_hash_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a false proof of exact resumption, by processes that share one random state."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    children = [
        *(create_process(draw, number, tmp_path) for number in range(2)),
        create_process(write_hash, tmp_path / "fresh", fresh_interpreter=True),
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    outputs = [(tmp_path / str(number)).read_text().split() for number in range(2)]
    numbers, hashes, *arguments = zip(*outputs, strict=True)
    assert len(set(numbers)) == 2 and arguments == [("module",) * 2, ("0", "1")]
    assert hashes[0] == hashes[1] != (tmp_path / "fresh").read_text()
