"""Multiple-choice questions, from the files of CMMLU, C-Eval and C3, and from JSON lines."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, read_limited
from data.readers.encoding import describe_encoding, is_utf8
from data.readers.files import expand_inputs
from evaluate.choice.subjects import CEVAL, CMMLU
from evaluate.predictions import read_predictions

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# The columns of a table, in lower case: CMMLU writes Question and Answer, C-Eval question and
# answer.
_CSV_OPTIONS = ("a", "b", "c", "d")


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question with its options; `answer` is the index of the right one."""

    subject: str
    question: str
    options: tuple[str, ...]
    answer: int
    passage: str = ""


def read_questions(source: str, inputs: Sequence[str]) -> list[ChoiceQuestion]:
    """Return the questions of files, folders or globs, in the order of the files.

    Of the folder of a dataset, those of its split with answers are read: test/ of CMMLU, val/ of
    C-Eval. Raises UserError for a file that is not of the source, naming the line, and if there
    are no questions.
    """
    split = {"cmmlu": "test", "ceval": "val"}.get(source)
    paths = []
    for name in inputs:
        folder = Path(name) / split if split and Path(name).is_dir() else Path(name)
        paths += expand_inputs([str(folder if folder.is_dir() else name)])
    questions = [question for path in paths for question in _read_file(source, path)]
    if not questions:
        raise UserError(f"--input {' '.join(inputs)}: no question; check that it is of {source}")
    return questions


def read_shots(
    source: str, inputs: Sequence[str], shot_inputs: Sequence[str]
) -> list[ChoiceQuestion]:
    """Return the solved examples: of `shot_inputs`, else of dev/ beside the questions.

    Raises UserError if there is no such folder.
    """
    if shot_inputs:
        paths = expand_inputs(list(shot_inputs))
    else:
        first = Path(inputs[0])
        # FOLDER, FOLDER/test or FOLDER/test/agronomy.csv.
        candidates = [first / "dev", first.parent / "dev", first.parent.parent / "dev"]
        folder = next((folder for folder in candidates if folder.is_dir()), None)
        if folder is None:
            raise UserError(
                f"--shots: {first} has no folder dev with solved examples; name files of them "
                "with --shot_input"
            )
        paths = sorted(folder.glob("*.csv"))
    return [question for path in paths for question in _read_file(source, path)]


def _read_file(source: str, path: Path) -> list[ChoiceQuestion]:
    if source == "c3":
        return _read_c3(path)
    if source == "jsonl":
        return _read_json_lines(path)
    return _read_csv(source, path)


def _read_csv(source: str, path: Path) -> list[ChoiceQuestion]:
    """Return the questions of one subject, which the name of the file tells."""
    data = read_limited(path)
    if not is_utf8(data):
        raise UserError(f"{path} is {describe_encoding(data, path)}")
    rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    subject = _subject_of_file(source, path)
    questions: list[ChoiceQuestion] = []
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        missing = [name for name in ("question", *_CSV_OPTIONS) if name not in names]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]}; the first line of {source} names question, A, B, "
                "C, D and answer"
            )
        if "answer" not in names:
            raise UserError(
                f"{path} has no answers (a test split, whose answers are not published): use the "
                "split val"
            )
        for row in rows:
            if not any(row):
                continue
            cells = dict(zip(names, row, strict=False))
            letter = cells.get("answer", "").strip()
            if len(row) != len(names) or len(letter) != 1 or letter not in "ABCD":
                raise UserError(
                    f"{path} line {rows.line_num}: expected {len(names)} cells and an answer A, B, "
                    f"C or D, not {len(row)} cells and {letter[:20]!r}"
                )
            options = tuple(cells[name] for name in _CSV_OPTIONS)
            questions.append(
                ChoiceQuestion(subject, cells["question"], options, LETTERS.index(letter))
            )
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num}: not a table ({error})") from None
    return questions


def _subject_of_file(source: str, path: Path) -> str:
    """Return the subject: `logic` of logic.csv and, for C-Eval, of logic_val.csv.

    Raises UserError if the dataset has no such subject: its prompts need the Chinese name.
    """
    subject = path.name.removesuffix(".csv")
    if source == "ceval":
        for suffix in ("_val", "_dev", "_test"):
            subject = subject.removesuffix(suffix)
    known = CMMLU if source == "cmmlu" else CEVAL
    if subject not in known:
        raise UserError(f"{path}: {source} has no subject {subject}; files are named SUBJECT.csv")
    return subject


def _read_c3(path: Path) -> list[ChoiceQuestion]:
    """Return the questions of a C3 file: a list of [lines of the text, questions, id]."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is not of C3: expected a list")
    questions = []
    for number, entry in enumerate(entries, 1):
        try:
            lines, asked = entry[0], entry[1]
            if not isinstance(lines, list):
                raise ValueError("the text is no list of lines")
            passage = "\n".join(lines)
            for item in asked:
                if not isinstance(item["choice"], list):
                    raise ValueError("the choice is no list of options")
                options = tuple(item["choice"])
                questions.append(
                    _checked_question("c3", item["question"], options, item["answer"], passage)
                )
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"{path} entry {number} is not of C3, [[lines], [{{question, choice, answer}}], "
                f"id]: {error}"
            ) from None
    return questions


def _read_json_lines(path: Path) -> list[ChoiceQuestion]:
    """Return the questions of JSON lines."""
    questions = []
    for number, row in enumerate(read_predictions(path, ("question",)), 1):
        try:
            options, passage = row.get("options"), row.get("passage") or ""
            if isinstance(options, dict):
                options = list(options.values())
            if not isinstance(options, list):
                raise ValueError("no list of options")
            subject = str(row.get("subject") or path.stem)
            questions.append(
                _checked_question(
                    subject, row["question"], tuple(options), row.get("answer"), passage
                )
            )
        except ValueError as error:
            raise UserError(f"{path} question {number}: {error}") from None
    return questions


def _checked_question(
    subject: str, question: Any, options: tuple[Any, ...], answer: Any, passage: Any
) -> ChoiceQuestion:
    """Return a question of untrusted values.

    `answer` is the text of an option, a letter, or the number of an option from 0. Raises
    ValueError, with what is wrong.
    """
    texts = (question, passage, *options)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("question, passage and options must be strings")
    if not 2 <= len(options) <= len(LETTERS) or not all(option.strip() for option in options):
        raise ValueError(f"expected 2 to {len(LETTERS)} options that are not empty")
    letters = LETTERS[: len(options)]
    if answer in options:
        index = options.index(answer)
        if isinstance(answer, str) and answer in letters and letters.index(answer) != index:
            raise ValueError(
                f"the answer {answer!r} is the letter of one option and the text of another: give "
                "its number, from 0"
            )
    elif isinstance(answer, str) and len(answer) == 1 and answer in letters:
        index = letters.index(answer)
    elif type(answer) is int and 0 <= answer < len(options):
        index = answer
    else:
        raise ValueError(
            f"the answer {str(answer)[:40]!r} is neither an option, nor a letter up to "
            f"{letters[-1]}, nor a number from 0 to {len(options) - 1}"
        )
    # A lone surrogate, which JSON can escape, is no text that can be encoded.
    "".join(texts).encode()
    return ChoiceQuestion(subject, question, options, index, passage)
