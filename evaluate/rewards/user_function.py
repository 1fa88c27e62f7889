"""A reward that the user wrote: a function in a Python file, named FILE.py:FUNCTION.

    def score(prompt: str, answer: str, reference: str) -> float:
        return float(reference in answer)

`prompt` is the whole text before the answer in the words of the chat template, `reference` the true
answer of the record. The result is a finite number, higher for better answers, and follows from the
arguments alone: a resumed run scores the same answers again.
"""

import importlib.util
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from common.errors import UserError
from evaluate.model_answer import ModelAnswer


def split_user_reward(name: str) -> tuple[Path, str]:
    """Return the file and the function of FILE.py:FUNCTION."""
    path, _, function = name.rpartition(":")
    return Path(path), function


def load_user_reward(name: str) -> Callable[[str, ModelAnswer, str], float]:
    """Return the function FILE.py:FUNCTION as a reward.

    Raises UserError if there is no such file or function, or if the file cannot be run; the reward
    raises it if the function fails, or returns no finite number.
    """
    path, function_name = split_user_reward(name)
    function = getattr(_run_file(path), function_name, None)
    if not callable(function):
        raise UserError(f"{path} has no function {function_name}: define it, or name another one")

    def score(prompt: str, answer: ModelAnswer, reference: str) -> float:
        try:
            value = function(prompt, answer.text, reference)
        # The function may raise anything.
        except Exception as error:
            raise UserError(f"reward {name}: {_describe(error, path)}") from None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"reward {name}: returned {value!r}, not a finite number")
        return float(value)

    return score


def _run_file(path: Path) -> ModuleType:
    """Return a Python file as a module. Raises UserError if it cannot be run."""
    if not path.is_file():
        raise UserError(f"reward {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # The file may raise anything, syntax errors included.
    except Exception as error:
        raise UserError(f"reward {path}: {_describe(error, path)}") from None
    return module


def _describe(error: Exception, path: Path) -> str:
    """Return type and text of an error in one line, with the line of the file that raised it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    place = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
