"""Rounds of a benchmark: their order, their arguments and their failures."""

from pathlib import Path

import pytest

from bench.rounds import run_rounds
from common.errors import UserError

MODULE = """
import json, os, sys
print("loading: 100%")
print(json.dumps([sys.argv[1:], os.environ["OMP_NUM_THREADS"], os.getpid()]))
sys.exit(3 * (sys.argv[1] == "bad"))
"""


@pytest.mark.slow
def test_contenders_alternate_in_separate_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch rounds in the order A A B B, mixed-up contenders, a failure that counts as a result."""
    (tmp_path / "one_round.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    results = run_rounds("one_round", [("a", ["a", "1"]), ("b", ["b"])], rounds=2, threads=7)
    assert [arguments for arguments, _, _ in results] == [["a", "1"], ["b"]] * 2
    assert {threads for _, threads, _ in results} == {"7"} and len(
        {process for _, _, process in results}
    ) == 4
    with pytest.raises(UserError, match="odd one: its process ended with exit code 3"):
        run_rounds("one_round", [("a", ["a"]), ("odd one", ["bad"])], rounds=1, threads=1)
