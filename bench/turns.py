"""Run the turns of several contenders alternately, A B C A B C …, each in its own process.

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


def run_turns(
    module: str, contenders: Sequence[tuple[str, Sequence[str]]], turns: int, threads: int
) -> list[Any]:
    """Run the turns, and return the JSON in the last line of output of each, in order.

    A contender is a name with the arguments of `python -m MODULE` for one of its turns, on
    `threads` threads. Raises UserError, with the name of the contender, if a process fails.
    """
    results = []
    with progress_bar("turns", total=turns * len(contenders), unit="turn") as bar:
        for name, arguments in [*contenders] * turns:
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
            results.append(json.loads(process.stdout.splitlines()[-1]))
            bar.update()
    return results
