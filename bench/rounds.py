"""Measure several contenders in alternating rounds, A B C A B C …, each time in its own process.

The speed of a machine drifts, so only ratios within one run are meaningful.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError
from common.progress import progress_bar

# How the threads of libgomp wait unless a program says otherwise. Processes of this project change
# it (`common.threads`), so those that measure other projects are started with it.
LIBRARY_WAITING = {"GOMP_SPINCOUNT": "300000"}


def peer_environments(contenders: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the environment variables of the contenders that are other projects, by name."""
    return {name: LIBRARY_WAITING for name in contenders if not name.startswith("babyllama")}


def run_rounds(
    module: str,
    contenders: Sequence[tuple[str, Sequence[str]]],
    *,
    rounds: int,
    threads: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Any]:
    """Measure every contender once per round, and return the parsed JSON results in order.

    A contender is a name and the arguments with which `python -m MODULE` measures it once and
    prints the result as JSON in its last line of output. Each process gets `threads` threads, and
    the variables that `environments` has for the name of its contender. Raises UserError, with
    that name, if a process fails.
    """
    results = []
    num_processes = rounds * len(contenders)
    with progress_bar("measuring", total=num_processes, unit="process") as bar:
        for name, arguments in [*contenders] * rounds:
            process = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(threads),
                    **(environments or {}).get(name, {}),
                },
            )
            if process.returncode:
                raise UserError(
                    f"{name}: its process ended with exit code {process.returncode}; see above"
                )
            # Libraries may print lines of their own before the result.
            results.append(json.loads(process.stdout.splitlines()[-1]))
            bar.update()
    return results
