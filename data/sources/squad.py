"""Reading comprehension in SQuAD's schema: passages, questions, and answers that stand in them.

    {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}
        SQuAD 1.1 and 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822), DRCD, CMRC 2018 in this schema
    [{"context_id", "context_text", "qas": [{"query_id", "query_text", "answers"}]}]
        CMRC 2018 (Cui et al. 2019, arXiv:1810.07366) in its own schema
    {"context", "question", "answers"}
        a question a row, as on the hub

Answers are a list of texts, a list of {"text"}, or {"text": [texts]}. A question that its passage
does not answer has `is_impossible`, or on the hub an empty list of texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.readers.files import ProgressCallback, RawItem, RawRecord, read_records
from data.records import BadRecord, Conversation, SkippedRecord
from data.sources.base import (
    SchemaError,
    Source,
    parse_json,
    parse_json_object,
    printable_reason,
    require_text,
    strip_blank_lines,
)
from data.sources.dialogue import Message, build_conversation
from data.sources.fields import Fields

NAME = "squad"


@dataclass(frozen=True, slots=True)
class PassageQuestion:
    """A question about a passage, with the answers of all annotators, which may be equal.

    There are no answers if the passage does not answer the question. `id` may be empty.
    """

    id: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage with its questions. The title may be empty."""

    title: str
    context: str
    questions: tuple[PassageQuestion, ...]


def iter_passages(path: Path) -> Iterator[Passage | BadRecord]:
    """Yield the passages of a file, and a BadRecord for each question that cannot be read.

    Questions about one passage that follow each other are together. A passage without a readable
    question is left out.
    """

    passage = ("", "")
    questions: list[PassageQuestion] = []
    for raw in read_squad(path, None):
        if isinstance(raw, BadRecord):
            yield raw
            continue
        try:
            title, context, question = _parse_question(raw.data)
        except SchemaError as error:
            yield BadRecord(raw.file, raw.line, printable_reason(str(error)))
            continue
        if questions and (title, context) != passage:
            yield Passage(*passage, tuple(questions))
            questions = []
        passage = title, context
        questions.append(question)
    if questions:
        yield Passage(*passage, tuple(questions))


def read_squad(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield each question of a file as a row of context, question and answers, as on the hub.

    Its line is that of its article. What is no article is yielded as it is, for the parser to
    report.
    """
    # Imported here, as in `parse_json`: commands list the sources in their help.
    import orjson

    for raw in read_records(path, on_bytes_read):
        if isinstance(raw, BadRecord):
            yield raw
            continue
        for row in _split_article(raw.data):
            if row is None:
                yield raw
                continue
            try:
                yield RawRecord(raw.file, raw.line, orjson.dumps(row))
            except orjson.JSONEncodeError:
                yield BadRecord(raw.file, raw.line, "a question is nested too deeply")


def _split_article(data: bytes) -> Iterator[Any]:
    """Yield a row for each question of an article or passage; None for any other record.

    In the place of a passage or a question that is not one, yield it as it is.
    """
    try:
        article = parse_json(data)
    except SchemaError:
        article = None
    is_object = isinstance(article, dict)
    if is_object and _is_filled_list(article.get("paragraphs")):
        passages = article["paragraphs"]
    elif is_object and _is_filled_list(article.get("qas")):
        passages = [article]
    else:
        yield None
        return
    for passage in passages:
        if not isinstance(passage, dict) or not isinstance(passage.get("qas"), list):
            yield passage
            continue
        for question in passage["qas"]:
            if not isinstance(question, dict):
                yield question
                continue
            yield {
                "title": passage.get("title", article.get("title")),
                "context": passage.get("context", passage.get("context_text")),
                "id": question.get("id", question.get("query_id")),
                "question": question.get("question", question.get("query_text")),
                "answers": question.get("answers"),
                "is_impossible": question.get("is_impossible"),
            }


def _is_filled_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def parse_squad(data: bytes) -> Conversation | SkippedRecord:
    """Return a question with its first answer, and its passage as the reference, with the title.

    A question that its passage does not answer is skipped: the schema has no words to say so.
    """
    title, context, question = _parse_question(data)
    if not question.answers:
        return SkippedRecord("question that its passage does not answer")
    messages = [Message("human", question.question), Message("assistant", question.answers[0])]
    return replace(build_conversation(messages, context), title=title)


def _parse_question(data: bytes) -> tuple[str, str, PassageQuestion]:
    """Return the title, the passage and the question of a row.

    Raises SchemaError if a text is missing, not text or empty, or if there is no answer to a
    question that is not marked as one without.
    """
    row = parse_json_object(data)
    question_id = row.get("id")
    question_id = str(question_id) if isinstance(question_id, str | int) else ""
    try:
        context, question = (
            strip_blank_lines(require_text(row, field)) for field in ("context", "question")
        )
        if not context or not question:
            raise SchemaError("the passage or the question is empty")
        title = row.get("title") or ""
        if not isinstance(title, str):
            raise SchemaError(f"field 'title' is {type(title).__name__}, not text")
        answers = () if row.get("is_impossible") is True else _parse_answers(row.get("answers"))
    except SchemaError as error:
        raise SchemaError(
            f"question {question_id}: {error}" if question_id else str(error)
        ) from None
    return title, context, PassageQuestion(question_id, question, answers)


def _parse_answers(answers: Any) -> tuple[str, ...]:
    """Return the texts of the answers; none if they are {"text": []}. Raises SchemaError."""
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        texts = answers["text"]
    elif isinstance(answers, list) and answers:
        texts = [answer.get("text") if isinstance(answer, dict) else answer for answer in answers]
    else:
        raise SchemaError(
            "there are no answers; a question that its passage does not answer has "
            "'is_impossible': true"
        )
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise SchemaError(f"answer {number} is no text, or empty")
    return tuple(strip_blank_lines(text) for text in texts)


FIELDS = Fields(
    used=frozenset({"title", "context", "id", "question", "answers", "is_impossible"}),
)

SOURCES = (
    Source(
        name=NAME,
        description="SQuAD, DRCD, CMRC 2018: JSON of passages with questions and their answers",
        parse=parse_squad,
        read=read_squad,
        kind="conversations",
        check_fields=FIELDS.check,
        has_passages=True,
        keys=(
            frozenset({"paragraphs"}),
            frozenset({"context_text", "qas"}),
            frozenset({"context", "qas"}),
            frozenset({"context", "question", "answers"}),
        ),
    ),
)
