"""Turns of contenders, A B C A B C …, each in a process of its own: a machine's speed drifts, so that only ratios count."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from common.progress import progress_bar


def run_turns(
    module: str, contenders: Sequence[tuple[str, Sequence[str]]], turns: int, threads: int
) -> list[Any]:
    """What each turn's process prints as its last line, which is JSON, in the order of the turns.

    A contender is its name and the words after `python -m MODULE` that make it take one turn, on `threads` threads.
    UserError that names the contender whose process fails.
    """
    results = []
    with progress_bar("turns", total=turns * len(contenders), unit="turn") as bar:
        for name, words in [*contenders] * turns:
            done = subprocess.run(
                [sys.executable, "-m", module, *words],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            if done.returncode:
                raise UserError(
                    f"{name}: its process ended with exit code {done.returncode}; see above"
                )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            bar.update()
    return results
