"""Files of questions, and of answers to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from evaluate.tournament.questions import read_answers, read_questions

WriteLines = Callable[..., Path]


def test_real_questions_are_asked_in_chinese(shared: Path) -> None:
    """The English original asked instead of the translation; questions without ids."""
    path = shared / "data/eval/translated_vicuna_eval_set.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    questions = read_questions(path)
    assert [question.question_id for question in questions] == [row["question_id"] for row in rows]
    assert [question.text for question in questions] == [row["translation"] for row in rows]
    assert {"math", "coding", "generic"} <= {question.category for question in questions}


def test_questions_without_id_are_numbered(write_lines: WriteLines) -> None:
    """Questions of other programs that cannot be asked."""
    path = write_lines("q.jsonl", {"text": "甲？"}, {"question": " 乙？\n", "category": 3})
    questions = read_questions(path)
    assert [(question.question_id, question.text) for question in questions] == [
        (1, "甲？"),
        (2, "乙？"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no questions; a line is"),
        ([{"text": " "}], "line 1: has no question in translation or question or text"),
        ([{"text": "甲", "question_id": []}], "line 1: question_id is []"),
        (
            [{"text": "甲", "question_id": 2}, {"text": "乙"}],
            "line 2: question_id 2 is there twice",
        ),
        ([{"text": "甲", "question_id": "1"}, {"text": "乙", "question_id": 1}], "is there twice"),
    ],
)
def test_faulty_questions_are_named(write_lines: WriteLines, rows: list[Any], message: str) -> None:
    """A traceback, or questions that overwrite each other."""
    with pytest.raises(UserError) as caught:
        read_questions(write_lines("q.jsonl", *rows))
    assert message in str(caught.value)


def test_answers_meet_at_their_question(write_lines: WriteLines) -> None:
    """Answers to different questions compared, because of their line or the type of an id."""
    first = write_lines(
        "a.jsonl",
        {"question_id": 1, "input": "甲？", "prediction": "A1", "category": "math"},
        {"question_id": 2, "input": "乙？", "prediction": "A2"},
    )
    second = write_lines("b.v2.jsonl", {"question_id": "2", "input": "乙？", "prediction": "B2"})
    questions, models = read_answers([first, second])
    assert [(question.question_id, question.category) for question in questions] == [
        (1, "math"),
        (2, ""),
    ]
    assert [model.name for model in models] == ["a", "b.v2"]
    assert [model.texts for model in models] == [{"1": "A1", "2": "A2"}, {"2": "B2"}]
    # What evaluate.repetition writes has no id: the question itself is it.
    unnamed = write_lines("c.jsonl", {"input": "丙？", "prediction": ""})
    questions, models = read_answers([unnamed])
    assert (questions[0].question_id, models[0].texts) == ("丙？", {"丙？": ""})


def test_faulty_answers_are_named(write_lines: WriteLines, tmp_path: Path) -> None:
    """Answers that overwrite each other, and models that share a name."""
    line = {"question_id": 1, "input": "甲？", "prediction": "A"}
    first = write_lines("a.jsonl", line)
    with pytest.raises(UserError, match="two files of a model a; rename one"):
        read_answers([first, first])
    with pytest.raises(UserError, match=r"twice.jsonl answer 2: a second answer to question 1"):
        read_answers([write_lines("twice.jsonl", line, line)])
    other = write_lines("other.jsonl", {**line, "input": "乙？"})
    with pytest.raises(UserError, match="question 1 is '乙？', but in an earlier file '甲？'"):
        read_answers([first, other])
    with pytest.raises(UserError, match="no string 'input'"):
        read_answers([write_lines("bare.jsonl", {"prediction": "A"})])
