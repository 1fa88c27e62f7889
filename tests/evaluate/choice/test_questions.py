"""Files of multiple-choice questions, real and broken ones."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from evaluate.choice.questions import read_questions, read_shots
from evaluate.choice.subjects import (
    CEVAL,
    CEVAL_HARD,
    CMMLU,
    CMMLU_CHINA_SPECIFIC,
    find_categories,
)


def test_cmmlu_folder(shared: Path) -> None:
    """Prevents columns that move with the index, dev questions among those asked, lost quotes."""
    folder = str(shared / "data/eval/cmmlu")
    questions = read_questions("cmmlu", [folder])
    assert len(questions) == 1743
    assert len({question.subject for question in questions}) == 10
    first = questions[0]
    assert first.subject == "agronomy"
    assert first.options == ("农业生产工具", "土地", "劳动力", "资金")
    assert first.options[first.answer] == "土地"
    assert len(read_shots("cmmlu", [folder], [])) == 50
    # The examples are found from any of the names.
    for name in ("test", "test/agronomy.csv"):
        assert len(read_shots("cmmlu", [f"{folder}/{name}"], [])) == 50
    assert len(read_questions("cmmlu", [f"{folder}/test/agronomy.csv"])) == 169


def test_c3(shared: Path) -> None:
    """Prevents lost passages, and options of three among those of four."""
    questions = read_questions("c3", [str(shared / "data/eval/c3-d-dev.json")])
    counts = [len(question.options) for question in questions]
    assert (len(questions), counts.count(4), counts.count(3)) == (1825, 1512, 313)
    assert questions[0].passage.startswith("男：听说你们公司要派你去南方工作?\n女：")
    assert questions[0].options[questions[0].answer] == "工作"


def test_ceval_folder_and_json_lines(tmp_path: Path) -> None:
    """Prevents the dev split as questions, an index for a letter, and Windows files as broken."""
    for split in ("dev", "val"):
        folder = tmp_path / "ceval" / split
        folder.mkdir(parents=True)
        (folder / f"logic_{split}.csv").write_bytes(
            '\ufeffid,question,A,B,C,D,answer\r\n0,"一,\r\n二",1,2,3,4,C\r\n'.encode()
        )
    (question,) = read_questions("ceval", [str(tmp_path / "ceval")])
    assert question.subject == "logic"
    assert question.question == "一,\r\n二"
    assert question.answer == 2
    assert len(read_shots("ceval", [str(tmp_path / "ceval")], [])) == 1
    lines = tmp_path / "own.jsonl"
    rows = [
        {"question": "一", "options": ["甲", "乙"], "answer": "B", "passage": "文"},
        {"question": "二", "options": {"A": "甲", "B": "乙"}, "answer": "乙", "subject": "s"},
        {"question": "三", "options": ["B", "A"], "answer": 1},
        {"question": "四", "options": ["甲", "乙", "丙"], "answer": 0},
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = read_questions("jsonl", [str(lines)])
    assert [question.answer for question in questions] == [1, 1, 1, 0]
    assert [question.subject for question in questions] == ["own", "s", "own", "own"]
    assert questions[0].passage == "文"


def test_subjects_are_those_of_the_datasets() -> None:
    """Prevents a subject without a category, and groups with subjects that do not exist."""
    assert (len(CMMLU), len(CEVAL)) == (67, 52)
    assert len(CMMLU_CHINA_SPECIFIC) == 15 and set(CMMLU) >= CMMLU_CHINA_SPECIFIC
    assert len(CEVAL_HARD) == 8 and set(CEVAL) >= CEVAL_HARD
    assert find_categories("cmmlu", "ethnology") == ["Social Science", "China specific"]
    assert find_categories("ceval", "college_physics") == ["STEM", "Hard"]
    assert find_categories("jsonl", "college_physics") == []


@pytest.mark.parametrize(
    ("source", "name", "content", "message"),
    [
        ("cmmlu", "agronomy.csv", b"", "no column question"),
        ("cmmlu", "agronomy.csv", b",Question,A,B,C,D,Answer\n", "no question; check"),
        ("cmmlu", "farming.csv", b",Question,A,B,C,D,Answer\n", "has no subject farming"),
        ("cmmlu", "agronomy.csv", b",Question,A,B,C,D,Answer\n0,q,1,2,3,4,E\n", "line 2: expected"),
        ("cmmlu", "agronomy.csv", b",Question,A,B,C,D,Answer\n0,q,1,2,3,C\n", "line 2: expected 7"),
        ("cmmlu", "agronomy.csv", "问题".encode("gbk"), "is not UTF-8 but GBK"),
        ("cmmlu", "agronomy.csv", b',Question,A,B,C,D,Answer\n0,"q', "not a table"),
        ("ceval", "logic_test.csv", b"id,question,A,B,C,D\n0,q,1,2,3,4\n", "has no answers"),
        ("c3", "c3.json", b"{}", "expected a list"),
        ("c3", "c3.json", b'[[["a"], [{"question": "q"}], "1"]]', "entry 1 is not of C3"),
        ("c3", "c3.json", b'[[["a"], [{"question": "q", "choice": ["a", "b"], "answer": "c"}]]]',
         "neither an option"),
        ("jsonl", "q.jsonl", b"[1]\n", "line 1: has no string 'question'"),
        ("jsonl", "q.jsonl", b'{"question": "q"}\n', "question 1: no list of options"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["a"], "answer": "A"}', "2 to 26"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["a", " "], "answer": 0}', "not empty"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["a", 2], "answer": 0}', "be strings"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["a", "b"], "answer": true}', "'True'"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["a", "b"], "answer": "C"}', "up to B"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["a", "b"]}', "'None'"),
        ("jsonl", "q.jsonl", b'{"question": "q", "options": ["B", "A"], "answer": "A"}', "letter"),
        ("c3", "c3.json", b'[["ab", [], "1"]]', "no list of lines"),
        ("c3", "c3.json", b'[[["a"], [{"question": "q", "choice": "ab", "answer": "a"}]]]',
         "no list of options"),
    ],
)  # fmt: skip
def test_broken_files_get_one_line(
    source: str, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    """Prevents tracebacks, and questions that are left out without a word."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_questions(source, [str(path)])
    assert "\n" not in str(error.value)
