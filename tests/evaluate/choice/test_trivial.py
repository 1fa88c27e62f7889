"""The trivial methods reproduce published figures."""

from pathlib import Path

import pytest

from evaluate.choice.questions import ChoiceQuestion, read_questions
from evaluate.choice.trivial import trivial_scores


def test_figures_of_real_sets(shared: Path) -> None:
    """Prevents trivial methods that are weaker than they can be, so that models look better."""
    folder = shared / "data/eval"
    cmmlu = read_questions("cmmlu", [str(folder / "cmmlu")])
    scores = {name: 100 * score / len(cmmlu) for name, score in trivial_scores(cmmlu).items()}
    assert scores["chance"] == pytest.approx(25)
    assert scores["longest option"] == pytest.approx(28.3, abs=0.05)
    assert scores["always A"] == pytest.approx(25.4, abs=0.05)
    c3 = read_questions("c3", [str(folder / "c3-d-dev.json")])
    scores = {name: 100 * score / len(c3) for name, score in trivial_scores(c3).items()}
    assert scores["chance"] == pytest.approx(26.4, abs=0.05)
    assert scores["longest option"] == pytest.approx(28.75, abs=0.05)
    assert scores["most in common with the passage"] == pytest.approx(40.6, abs=0.05)


def test_equal_options_share_a_point() -> None:
    """Prevents a tie that always goes to the first option, where answers may stand more often."""
    question = ChoiceQuestion("s", "q", ("甲乙", "丙丁", "戊"), 1, passage="丙丁甲乙")
    scores = trivial_scores([question])
    assert scores["longest option"] == 0.5
    assert scores["shortest option"] == 0
    assert scores["always B"] == 1
    assert scores["most in common with the passage"] == 0.5
