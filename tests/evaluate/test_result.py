"""The rows of a result, and what is said if there are none."""

import pytest

from common.errors import UserError
from evaluate.result import drop_unanswered


def test_questions_without_an_answer_are_counted_or_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents figures of no question, and a refusal that does not say what would fit."""
    assert drop_unanswered([{"a": 1}, None, None], ["x.json"], 256) == [{"a": 1}]
    assert "no room for an answer in the context: 2 questions" in capsys.readouterr().out
    with pytest.raises(UserError, match="context of 256 tokens") as one:
        drop_unanswered([None], ["x.json"], 256)
    assert str(one.value).startswith("--input x.json: ") and "\n" not in str(one.value)
