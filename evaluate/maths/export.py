"""Write generated problems of the training part as conversations."""

import json
from pathlib import Path

from common.files import write_atomic
from evaluate.maths.options import MathsOptions
from evaluate.maths.sources import draw_problems


def export_problems(options: MathsOptions, path: Path) -> None:
    """Write problems with worked solutions, a line of {"messages": […]} each; print how many."""
    problems = draw_problems(options, "training")
    lines = []
    for problem in problems:
        messages = [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": problem.solution},
        ]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
    print(f"{path}: {len(problems):,} problems with solutions, none of which is in a test")
