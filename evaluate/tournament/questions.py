"""The questions of a tournament, and the answers of its models to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from evaluate.predictions import excerpt, read_predictions
from evaluate.tournament.json_rows import (
    QuestionId,
    check_name,
    read_json_rows,
    read_question_id,
)

# The fields that may have the question; the first one of these is asked. Translated sets have the
# original question in "text".
QUESTION_FIELDS = ("translation", "question", "text")


@dataclass(frozen=True, slots=True)
class TournamentQuestion:
    """A question that all models are asked. `category` may be empty."""

    question_id: QuestionId
    text: str
    category: str

    @property
    def key(self) -> str:
        """Return the id as text: a file may have written the number 1 as "1"."""
        return str(self.question_id)


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of one model: the text by the `key` of the question."""

    name: str
    texts: dict[str, str] = field(default_factory=dict)


def read_questions(path: Path) -> list[TournamentQuestion]:
    """Return the questions of a file. A question without `question_id` gets its number, from 1.

    Raises UserError for a row without a question, an id that is there twice, and an empty file.
    """
    questions: dict[str, TournamentQuestion] = {}
    for number, (place, row) in enumerate(read_json_rows(path), 1):
        texts = [row.get(name) for name in QUESTION_FIELDS]
        text = next((text for text in texts if isinstance(text, str) and text.strip()), None)
        if text is None:
            raise UserError(f"{place}: has no question in {' or '.join(QUESTION_FIELDS)}")
        question_id = read_question_id(row, place)
        question = TournamentQuestion(
            number if question_id is None else question_id, text.strip(), _read_category(row)
        )
        if question.key in questions:
            raise UserError(
                f"{place}: question_id {excerpt(question.key)} is there twice; give every question "
                "an id of its own"
            )
        questions[question.key] = question
    if not questions:
        raise UserError(f'{path} has no questions; a line is {{"question_id": 1, "text": "…"}}')
    return list(questions.values())


def read_answers(paths: Sequence[Path]) -> tuple[list[TournamentQuestion], list[ModelAnswers]]:
    """Return the questions of prediction files, and the answers of each file.

    A file is named after its model. The id of a line without `question_id` is its question. Raises
    UserError if two files have the same name, a file has two answers to a question, or two files
    have different questions under one id.
    """
    questions: dict[str, TournamentQuestion] = {}
    models: dict[str, ModelAnswers] = {}
    for path in paths:
        name = check_name(path.stem, str(path), "the name of the model")
        if name in models:
            raise UserError(f"{path}: there are two files of a model {name}; rename one of them")
        models[name] = answers = ModelAnswers(name)
        for number, row in enumerate(read_predictions(path, ("input", "prediction")), 1):
            place = f"{path} answer {number}"
            question_id = read_question_id(row, place)
            question = TournamentQuestion(
                row["input"] if question_id is None else question_id,
                row["input"],
                _read_category(row),
            )
            if question.key in answers.texts:
                raise UserError(
                    f"{place}: a second answer to question {excerpt(question.key)}; keep one"
                )
            known = questions.setdefault(question.key, question)
            if known.text != question.text:
                raise UserError(
                    f"{place}: question {excerpt(question.key)} is {excerpt(question.text, 30)!r}, "
                    f"but in an earlier file {excerpt(known.text, 30)!r}; the models have to be "
                    "asked the same questions"
                )
            answers.texts[question.key] = row["prediction"]
    return list(questions.values()), list(models.values())


def _read_category(row: dict[str, object]) -> str:
    category = row.get("category")
    return category if isinstance(category, str) else ""
