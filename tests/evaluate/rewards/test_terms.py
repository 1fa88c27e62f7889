"""The rewards of answers."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from evaluate.metrics.rouge import compute_rouge
from evaluate.model_answer import ModelAnswer
from evaluate.rewards.options import REWARD_DESCRIPTIONS
from evaluate.rewards.terms import MEASURES, build_rewards, score_answers, sum_terms


def answer(text: str, *, has_eos: bool = True) -> ModelAnswer:
    """Return an answer of one token per character."""
    return ModelAnswer(text, len(text), has_eos)


def test_every_described_reward_can_be_computed() -> None:
    """Prevents a reward that --help names and a run does not know."""
    assert MEASURES.keys() == REWARD_DESCRIPTIONS.keys()


@pytest.mark.parametrize(
    ("name", "text", "reference", "expected"),
    [
        ("rouge", "三天第", "第三天", 2 / 3),
        ("rouge-1", "三天第", "第三天", 1.0),
        ("rouge-1", "第一", "第三天", 0.4),
        ("exact", " 第三天\n", "第三天", 1.0),
        ("exact", "第三天。", "第三天", 0.0),
        ("number", "3+9=十二", "12", 1.0),
        ("number", "12×7=84", "12", 0.0),
        ("number", "不知道", "没有", 0.0),
        ("length", "两个", "一共四个", 0.5),
        ("length", "", "", 1.0),
        ("repetition", "春眠不觉晓", "", 1.0),
        ("loops", "好的好的好的" * 4, "", -1.0),
        ("loops", "好的", "", 0.0),
    ],
)
def test_values_of_rewards(name: str, text: str, reference: str, expected: float) -> None:
    """Prevents a reward of the wrong sign or of another text."""
    assert MEASURES[name](answer(text), reference) == pytest.approx(expected)


def test_answers_that_do_not_end_are_told() -> None:
    """Prevents a truncated answer that is rewarded like a whole one."""
    assert MEASURES["truncated"](answer("一", has_eos=False), "") == -1.0
    assert MEASURES["truncated"](answer("一"), "") == 0.0


def test_terms_are_summed_by_weight() -> None:
    """Prevents weights in another order than the terms."""
    terms = build_rewards("exact:2,rouge:0.5")
    scores = score_answers(terms, "", [answer("大雨停了"), answer("雨停了")], "大雨停了")
    expected = compute_rouge("雨停了", "大雨停了", case="lower")["l"].f
    np.testing.assert_allclose(scores, [[1, 1], [0, expected]], atol=1e-6)
    np.testing.assert_allclose(sum_terms(terms, scores), [2.5, 0.5 * expected], atol=1e-6)


@pytest.mark.parametrize("name", ["low", "std", "exact", "score"])
def test_functions_with_a_name_that_is_taken_are_refused(tmp_path: Path, name: str) -> None:
    """Prevents a log in which two rewards are added up, and a TypeError at the first evaluation."""
    for file in ("a.py", "b.py"):
        code = f"def {name}(prompt, answer, reference):\n    return 0\n"
        (tmp_path / file).write_text(code, encoding="utf-8")
    rewards = f"exact,{tmp_path}/a.py:{name}"
    if name == "score":
        build_rewards(rewards)
        rewards += f",{tmp_path}/b.py:{name}"
    with pytest.raises(UserError, match=f"another reward_{name}: rename the function {name}"):
        build_rewards(rewards)
