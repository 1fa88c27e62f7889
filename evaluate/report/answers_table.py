"""A table of questions with the answers of several models, or checkpoints, side by side."""

from collections.abc import Sequence

from evaluate.kinds.question_sets import QuestionSet
from evaluate.metrics.repetition import is_looping
from evaluate.model_answer import ModelAnswer
from evaluate.predictions import excerpt
from evaluate.report.render import Cell, Table

# Characters of a question or answer that are shown.
MAX_CELL_CHARACTERS = 300


def answers_table(
    question_set: QuestionSet,
    headers: Sequence[str],
    answers_by_model: Sequence[Sequence[ModelAnswer]],
    limit: int,
) -> Table:
    """Return the first `limit` questions with the true answer, if any, and that of each model.

    `headers` name the models.
    """
    references = question_set.references
    header = [question_set.question_name, *(["true answer"] if references else []), *headers]
    rows: list[list[Cell]] = []
    for index, text in enumerate(question_set.texts[:limit]):
        row: list[Cell] = [excerpt(text, MAX_CELL_CHARACTERS)]
        if references:
            row.append(excerpt(references[index], MAX_CELL_CHARACTERS))
        row += [_format_answer(answers[index].text) for answers in answers_by_model]
        rows.append(row)
    return Table(header, rows)


def _format_answer(text: str) -> str:
    """Return an answer on one line, cut to its beginning; say if it loops or is empty."""
    cell = excerpt(text, MAX_CELL_CHARACTERS) or "(empty)"
    return f"{cell}\n(loops)" if is_looping(text) else cell
