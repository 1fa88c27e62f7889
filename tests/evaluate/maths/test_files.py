"""Maths problems of files."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from evaluate.maths.files import read_problems


def write(folder: Path, content: str | bytes, name: str = "test.jsonl") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(source: str, path: str, limit: int | None = None) -> list[tuple[str, Fraction]]:
    return [(problem.question, problem.answer) for problem in read_problems(source, [path], limit)]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (12, 12),
        (0.1, Fraction(1, 10)),
        (1e20, 10**20),
        ("1,234", 1234),
        ("3/4", Fraction(3, 4)),
        ("一共二十三个", 23),
        ("5个，每个3元，15元", 15),
    ],
)
def test_jsonl_answers(tmp_path: Path, answer: Any, number: Fraction) -> None:
    """Prevents an answer from being rounded, or read as another of its numbers."""
    assert read("jsonl", write(tmp_path, lines({"question": "问", "answer": answer}))) == [
        ("问", number)
    ]


def test_gsm8k_answer_is_the_number_after_its_mark(tmp_path: Path) -> None:
    """Prevents a number of the solution from being the answer."""
    answer = "She has 5*3=<<5*3=15>>15.\n#### 1,015"
    row = {"question": "How many?", "answer": answer}
    path = write(tmp_path, lines(row, {**row, "answer": "#### 4\n#### -3"}, row))
    assert read("gsm8k", path, 2) == [("How many?", 1015), ("How many?", -3)]


def test_mgsm_is_read_as_table_and_as_json(tmp_path: Path) -> None:
    """Prevents the published table, CRLF or a byte order mark from being refused."""
    expected = [("罗杰有5个网球。他有几个？", 11), ("问", 2125)]
    table = "\ufeff" + "\r\n".join(f"{question}\t{answer:,}" for question, answer in expected)
    assert read("mgsm_zh", write(tmp_path, table + "\r\n", "mgsm_zh.tsv")) == expected
    rows = [
        {"question": question, "answer": None, "answer_number": answer, "equation_solution": None}
        for question, answer in expected
    ]
    assert read("mgsm_zh", write(tmp_path, lines(*rows))) == expected


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("jsonl", "", "there are no problems"),
        ("jsonl", lines({"question": "问", "answer": 1}) + "{\n", "line 2: not valid JSON"),
        ("jsonl", lines({"question": "问"}), "line 1: there is no field 'answer'"),
        ("jsonl", lines({"question": "问", "answer": "不知道"}), "'不知道' has no number"),
        ("jsonl", lines({"question": "问", "answer": True}), "'True' has no number"),
        ("jsonl", lines({"question": "问", "answer": [1]}), "has no number"),
        ("jsonl", '{"question": "问", "answer": 1%s}\n' % ("0" * 5000), "'inf' has no number"),
        ("jsonl", '{"question": "\\ud800", "answer": 1}\n', "line 1: not valid JSON"),
        ("jsonl", lines({"question": " ", "answer": 1}), "line 1: the question is empty"),
        ("jsonl", b'{"question": "\xff", "answer": 1}\n', "line 1: "),
        ("gsm8k", lines({"question": "问", "answer": "15"}), "has no '####"),
        ("gsm8k", lines({"question": "问", "answer": 15}), "field 'answer' is int"),
        ("mgsm_zh", "问\t1\n问\n", "line 2: 1 columns; expected question TAB number"),
        ("mgsm_zh", "question\tanswer\n", "line 1: the answer 'answer' has no number"),
        ("mgsm_zh", lines({"question": "问", "answer": 3}), "no field 'answer_number'"),
    ],
)
def test_faults_are_named_with_file_and_line(
    tmp_path: Path, source: str, content: str | bytes, message: str
) -> None:
    """Prevents a test from shrinking in silence, and a traceback."""
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read(source, path)
    assert path in str(caught.value) and "\n" not in str(caught.value)
