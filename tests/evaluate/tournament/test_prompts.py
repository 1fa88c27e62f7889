"""The judge's prompt, and scores that are read and never guessed."""

import time

import pytest

from evaluate.tournament.prompts import build_prompt, parse_scores


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("7 5\n理由", (7, 5)),
        ("\n 10 1 \n", (10, 1)),
        ("8.5，9", (8.5, 9)),
        ("8,9\r\n因为", (8, 9)),
        ("8分 6分", (8, 6)),
        ("8 分、6 分", (8, 6)),
        ("<think>也许 3 4？\n再想想</think>\n\n6 7\n好", (6, 7)),
        ("", None),
        ("7", None),
        ("75", None),
        ("7 5 3", None),
        ("回答一：7 回答二：5", None),
        ("好的。\n7 5", None),
        ("8/10", None),
        ("0 5", None),
        ("7 11", None),
        ("-7 5", None),
        ("7 5。", None),
        ("nan nan", None),
        ("<think>7 5", None),
    ],
)
def test_scores_are_read_or_refused(reply: str, expected: tuple[float, float] | None) -> None:
    """Scores that are guessed from prose, from another scale, or from what a model thinks."""
    assert parse_scores(reply) == expected


def test_long_replies_are_read_at_once() -> None:
    """A pattern that takes minutes on a reply made for it."""
    start = time.monotonic()
    for reply in ("8" + " " * 200_000 + "x", " " * 200_000 + "<think>", "<think>" * 100_000):
        assert parse_scores(reply) is None
    assert time.monotonic() - start < 1


def test_categories_have_instructions_of_their_own() -> None:
    """A mathematical answer judged by its style; answers that are swapped or left out."""
    prompts = {
        category: build_prompt("问{0}", category, "甲{question}", "乙")
        for category in ("math", "Math", "coding", "generic", "")
    }
    assert prompts["math"] == prompts["Math"] and prompts["generic"] == prompts[""]
    assert len(set(prompts.values())) == 3
    for prompt in prompts.values():
        assert prompt.index("问{0}") < prompt.index("甲{question}") < prompt.index("\n乙\n")
        assert "第一行只写这两个分数" in prompt and "1 到 10" in prompt
