"""Measure several contenders in alternating rounds, A B C A B C …, each time in its own process.

The speed of a machine drifts, so only ratios within one run are meaningful.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from common.progress import progress_bar


def run_rounds(
    module: str, contenders: Sequence[tuple[str, Sequence[str]]], *, rounds: int, threads: int
) -> list[Any]:
    """Measure every contender once per round, and return the parsed JSON results in order.

    A contender is a name and the arguments with which `python -m MODULE` measures it once and
    prints the result as JSON in its last line of output. Each process gets `threads` threads.
    Raises UserError, with the name of the contender, if a process fails.
    """
    results = []
    num_processes = rounds * len(contenders)
    with progress_bar("measuring", total=num_processes, unit="process") as bar:
        for name, arguments in [*contenders] * rounds:
            process = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            if process.returncode:
                raise UserError(
                    f"{name}: its process ended with exit code {process.returncode}; see above"
                )
            # Libraries may print lines of their own before the result.
            results.append(json.loads(process.stdout.splitlines()[-1]))
            bar.update()
    return results
