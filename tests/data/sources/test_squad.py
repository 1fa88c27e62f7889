"""Files in SQuAD's schema: every question with all of its answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.corpora.detect import detect_source
from data.records import BadRecord, Conversation, SkippedRecord, Turn
from data.sources import SOURCES
from data.sources.squad import Passage, PassageQuestion, iter_passages

CONTEXT = "\n李时珍是湖北蕲春人。"
QUESTIONS = [("1-1", "他是哪里人？", ["湖北蕲春", "蕲春"]), ("1-2", "谁是湖北人？", ["李时珍"])]
SQUAD_QUESTIONS = [
    {
        "id": id_,
        "question": question,
        "answers": [{"text": text, "answer_start": 0} for text in answers],
    }
    for id_, question, answers in QUESTIONS
]
CMRC_TRIAL_QUESTIONS = [
    {"query_id": id_, "query_text": question, "answers": answers}
    for id_, question, answers in QUESTIONS
]
PARAGRAPH = {"context": CONTEXT, "qas": SQUAD_QUESTIONS}
# The schema → a file in it, and the title that it has.
FILES: dict[str, tuple[Any, str]] = {
    "SQuAD 1.1": ({"data": [{"title": "题", "paragraphs": [PARAGRAPH]}], "version": "1.1"}, "题"),
    "DRCD": (
        {"version": "1.3", "data": [{"title": "题", "id": "1", "paragraphs": [PARAGRAPH]}]},
        "题",
    ),
    "CMRC 2018 as SQuAD": (
        {"version": "v1.0", "data": [{"paragraphs": [{"id": "D", **PARAGRAPH}], "title": "题"}]},
        "题",
    ),
    "CMRC 2018 trial": (
        [
            {
                "context_id": "T",
                "context_text": CONTEXT,
                "qas": CMRC_TRIAL_QUESTIONS,
                "title": "题",
            }
        ],
        "题",
    ),
    "hub": (
        [
            {"id": id_, "context": CONTEXT, "question": question, "answers": {"text": answers}}
            for id_, question, answers in QUESTIONS
        ],
        "",
    ),
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "file.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("schema", FILES)
def test_every_schema_gives_all_questions_and_answers(tmp_path: Path, schema: str) -> None:
    """Prevents a lost question, gold answer, id or title, and a file that is not recognized."""
    content, title = FILES[schema]
    path = write(tmp_path, content)
    assert detect_source([path]) == "squad"
    assert list(iter_passages(path)) == [
        Passage(
            title,
            CONTEXT.strip(),
            tuple(
                PassageQuestion(id_, question, tuple(answers))
                for id_, question, answers in QUESTIONS
            ),
        )
    ]
    assert list(SOURCES["squad"].iter_records(path)) == [
        Conversation((Turn(question, answers[0]),), CONTEXT.strip(), title=title)
        for _, question, answers in QUESTIONS
    ]


@pytest.mark.parametrize("mark", ["is_impossible", "no texts"])
def test_unanswerable_question_is_kept_for_evaluation_and_skipped_in_training(
    tmp_path: Path, mark: str
) -> None:
    """Prevents an empty answer, or a plausible wrong one, from being trained on."""
    question = {"question": "他几岁？", "answers": {"text": []}}
    if mark == "is_impossible":
        wrong = [{"text": "七岁"}]
        question |= {"answers": wrong, "is_impossible": True, "plausible_answers": wrong}
    path = write(tmp_path, [{"context": "文", "qas": [question]}])
    (passage,) = iter_passages(path)
    assert isinstance(passage, Passage) and passage.questions[0].answers == ()
    (record,) = SOURCES["squad"].iter_records(path)
    assert record == SkippedRecord("question that its passage does not answer")


def test_faulty_question_costs_only_itself(tmp_path: Path) -> None:
    """Prevents a fault from costing its article, and a fault that cannot be found."""
    good = {"id": "7", "question": "问", "answers": ["答"]}
    deep: Any = "答"
    for _ in range(300):
        deep = [deep]
    faults = {
        "question 7: there are no answers; a question that its passage does not answer has "
        "'is_impossible': true": {**good, "answers": []},
        "question 7: answer 2 is no text, or empty": {**good, "answers": ["答", {"text": 3}]},
        "question 7: field 'question' is int, not text": {**good, "question": 3},
        "question 7: the passage or the question is empty": {**good, "question": " "},
        "a question is nested too deeply": {**good, "answers": deep},
        "expected a JSON object, not str": "问",
    }
    qas = [item for fault in faults.values() for item in (good, fault)]
    path = write(
        tmp_path, {"data": [{"paragraphs": []}, {"paragraphs": [{"context": "文", "qas": qas}]}]}
    )
    for items in (list(SOURCES["squad"].iter_records(path)), list(iter_passages(path))):
        bad = [item for item in items if isinstance(item, BadRecord)]
        assert [item.reason for item in bad[1:]] == list(faults)
        assert [item.line for item in bad] == [1] + [2] * len(faults)
    assert sum(isinstance(item, Conversation) for item in SOURCES["squad"].iter_records(path)) == 6


def test_file_of_another_schema_is_one_bad_record_a_line(tmp_path: Path) -> None:
    """Prevents a file of another source from being read as one without questions."""
    for content in (
        {"data": [{"paragraphs": {}}]},
        [{"context": "文", "qas": []}],
        [{"text": "文"}],
    ):
        (record,) = SOURCES["squad"].iter_records(write(tmp_path, content))
        assert isinstance(record, BadRecord) and "there is no field" in record.reason


@pytest.mark.slow
def test_real_drcd_is_read_completely(shared: Path) -> None:
    """Prevents lost questions or answers of a real file."""
    path = shared / "data/eval/DRCD_dev_half.json"
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    expected = {
        (article["title"], paragraph["context"], question["id"], question["question"]): tuple(
            answer["text"] for answer in question["answers"]
        )
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert detect_source([path]) == "squad"
    read = {
        (passage.title, passage.context, question.id, question.question): question.answers
        for passage in iter_passages(path)
        if isinstance(passage, Passage)
        for question in passage.questions
    }
    assert len(read) > 1000
    # Only white space around the texts may differ.
    assert {tuple(text.strip() for text in key) for key in expected} == set(read)
    assert sum(map(len, read.values())) == sum(map(len, expected.values()))
