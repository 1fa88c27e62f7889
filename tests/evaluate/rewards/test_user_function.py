"""A reward that the user wrote."""

from pathlib import Path

import pytest

from common.errors import UserError
from evaluate.model_answer import ModelAnswer
from evaluate.rewards.terms import build_rewards, score_answers

ANSWER = ModelAnswer("答案", 2, has_eos=True)


def write(folder: Path, code: str) -> str:
    """Write a file with a reward, and return its name in options."""
    path = folder / "mine.py"
    path.write_text(code, encoding="utf-8")
    return f"{path}:score"


def test_function_gets_prompt_answer_and_reference(tmp_path: Path) -> None:
    """Prevents texts in another order than documented."""
    code = "def score(prompt, answer, reference):\n    return len(prompt) + 10 * len(answer) + 100"
    terms = build_rewards(write(tmp_path, code) + ":2")
    assert score_answers(terms, "问", [ANSWER], "")[0, 0] == 121
    assert terms[0].weight == 2 and terms[0].label == "score"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def grade(*_):\n    return 1", "has no function score: define it, or name another one"),
        ("score = 3", "has no function score"),
        ("def score(:", "SyntaxError: "),
        ("import nowhere_to_be_found", "ModuleNotFoundError: .*, line 1"),
        ("def score(a, b, c):\n    return 1 / 0", "ZeroDivisionError: division by zero, line 2"),
        ("def score(a):\n    return 1", "TypeError: "),
        ("def score(*_):\n    return 'good'", "returned 'good', not a finite number"),
        ("def score(*_):\n    return float('nan')", "returned nan, not a finite number"),
    ],
)
def test_mistakes_in_the_file_are_one_line(tmp_path: Path, code: str, message: str) -> None:
    """Prevents a traceback, and a reward that is no number, in the middle of a run."""
    with pytest.raises(UserError, match=message) as caught:
        score_answers(build_rewards(write(tmp_path, code)), "", [ANSWER], "")
    assert "\n" not in str(caught.value) and "mine.py" in str(caught.value)


def test_a_changed_file_is_another_reward(tmp_path: Path) -> None:
    """Prevents a resumed run whose reward has changed unnoticed."""
    name = write(tmp_path, "def score(*_):\n    return 1")
    (before,) = build_rewards(name)
    write(tmp_path, "def score(*_):\n    return 2")
    assert build_rewards(name)[0].fingerprint != before.fingerprint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Prevents a traceback for a path that is wrong."""
    with pytest.raises(UserError, match=r"nowhere\.py: no such file"):
        build_rewards(f"{tmp_path}/nowhere.py:score")
