"""Passage QA: tell whether a model answers from the given passage or from memory.

Every question is asked twice, with the passage of its record and, as the control, with the passage
of another record. Results files call the answers with the two passages "right" and "wrong".
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.errors import UserError
from common.machine import resolve_device
from data.kinds import conversations
from data.records import Conversation
from evaluate.answers import answer_resumably
from evaluate.input_records import read_usable_records
from evaluate.kinds.conversations import Question, extract_questions
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.metrics.proportion import Proportion
from evaluate.metrics.repetition import is_looping
from evaluate.model_answer import ModelAnswer
from evaluate.options import PassageQAOptions
from evaluate.partial_results import PartialResults, partial_results
from evaluate.predictions import excerpt
from evaluate.result import EvalResult, Row, drop_unanswered, report_result

# A rate of questions with its interval, see `Proportion.to_json`.
Rate = dict[str, float]
# Number of questions that are printed with their answers.
NUM_EXAMPLES_SHOWN = 3
# Positions of an answer in its passage. Results files have them under the key "places".
ANSWER_POSITIONS = ("first third", "middle third", "last third", "not word for word")
# Answers that say that the passage does not have what is asked for: 文中没有提到, 资料里并未说明 …
NOT_MENTIONED = re.compile(
    "[文料][中里内]?[^，。]{0,4}(没|没有|未)(提到|提及|提供|说明|介绍|给出|写)"
)


def run_passage_qa(options: PassageQAOptions) -> None:
    """Ask a checkpoint all questions with the right and with a control passage; report the result.

    Raises UserError if the records have fewer than two different passages, or if no question fits
    the model's context.
    """
    # `PassageQAOptions.find_conflicts` requires it.
    assert options.checkpoint is not None
    device = resolve_device(options.device)
    records = read_usable_records(options.source, options.input, conversations.KIND, options.limit)
    with_passage = [record for record in records if record.reference]
    if len(with_passage) < len(records):
        print(f"left out, without a passage: {len(records) - len(with_passage):,} records")
    question_pairs = pair_with_control_passages(with_passage, " ".join(options.input))
    loaded = load_checkpoint(options.checkpoint, options.quantize, device)
    output = options.json_file or options.predictions
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    results = partial_results(output, depends_on)
    answer_pairs = _generate_answers(options, loaded, results, question_pairs)
    all_rows = [
        _build_row(*questions, *answers)
        for questions, answers in zip(question_pairs, answer_pairs, strict=True)
    ]
    rows = drop_unanswered(all_rows, options.input, loaded.model.trained_context)
    metrics = _compute_metrics(rows)
    run_label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
    headline = (
        f"{run_label}: {len(with_passage):,} records, {len(rows):,} questions, greedy, "
        f"at most {options.max_new_tokens} tokens"
    )
    result = EvalResult(
        lines=[headline, *_format_report(metrics, rows)],
        metrics={"measured": run_label, "records": len(with_passage), **metrics},
        provenance=loaded.provenance,
        rows=rows,
        device=device,
    )
    report_result(result, options.json_file, options.predictions)


def pair_with_control_passages(
    records: Sequence[Conversation], input_label: str
) -> list[tuple[Question, Question]]:
    """Return every question twice: with its own passage, and with the passage of another record.

    The other record is the one half of all records further on or, if it has the same passage, the
    next one after it with a different passage; after the last record comes the first. `input_label`
    names the files in the message. Raises UserError if the records have fewer than two different
    passages.
    """
    passages = [record.reference for record in records]
    num_passages = len(set(passages))
    if num_passages < 2:
        raise UserError(
            f"--input {input_label}: the control needs records about at least two passages, and "
            f"these have {num_passages}"
        )
    pairs = []
    for index, record in enumerate(records):
        start = (index + len(passages) // 2) % len(passages)
        candidates = passages[start:] + passages[:start]
        control = next(passage for passage in candidates if passage != record.reference)
        for question in extract_questions(record):
            pairs.append((question, replace(question, passage=control)))
    return pairs


def extract_passage_answer(question: Question) -> str:
    """Return the longest part of the true answer that is in the passage and not in the question.

    The part is the whole answer or has at least two characters; it is empty if there is no such
    part.
    """
    answer = question.answer.strip()
    passage = question.passage
    min_length = min(2, len(answer))
    for length in range(len(answer), min_length - 1, -1):
        # Of several parts of this length the last is returned: an answer tends to end with what was
        # asked for.
        for start in range(len(answer) - length, -1, -1):
            part = answer[start : start + length]
            if part in passage and part not in question.question:
                return part
    return ""


def locate_answer(question: Question) -> str:
    """Return the position of the true answer in its passage, one of ANSWER_POSITIONS.

    It is that of the center of the part that `extract_passage_answer` returns.
    """
    part = extract_passage_answer(question)
    passage = question.passage
    if not part:
        return ANSWER_POSITIONS[-1]
    center = passage.find(part) + len(part) / 2
    third = min(int(3 * center / len(passage)), 2)
    return ANSWER_POSITIONS[third]


def _generate_answers(
    options: PassageQAOptions,
    loaded: LoadedCheckpoint,
    results: PartialResults,
    question_pairs: Sequence[tuple[Question, Question]],
) -> list[tuple[ModelAnswer | None, ModelAnswer | None]]:
    """Return the answers to each pair of questions; None if the prompt does not fit the context."""
    # First all questions with the right passage, then all with the control passage.
    right, control = (
        answer_resumably(
            results,
            label,
            loaded,
            questions,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
        )
        for label, questions in zip(
            ("right passage", "wrong passage"), zip(*question_pairs, strict=True), strict=True
        )
    )
    return list(zip(right, control, strict=True))


def _build_row(
    question: Question,
    control_question: Question,
    answer: ModelAnswer | None,
    control_answer: ModelAnswer | None,
) -> Row | None:
    """Return the line of a question in the predictions file, or None if it was not answered.

    `control_question` is the same question with the control passage.
    """
    if answer is None or control_answer is None:
        return None
    true_answer = question.answer.strip()
    control_passage = control_question.passage
    answer_part = extract_passage_answer(question) or true_answer
    return {
        "passage": question.passage,
        "question": question.question,
        "reference": true_answer,
        "is_answerable": NOT_MENTIONED.search(true_answer) is None,
        "place": locate_answer(question),
        "prediction": answer.text,
        "exact": answer.text.strip() == true_answer,
        "stopped": answer.has_eos,
        "tokens": answer.num_tokens,
        "control": {
            "passage": control_passage,
            "prediction": control_answer.text,
            "exact": control_answer.text.strip() == true_answer,
            "stopped": control_answer.has_eos,
            "tokens": control_answer.num_tokens,
            # Then an exact answer to the control does not show that the model ignores the passage.
            "answer_in_passage": answer_part in control_passage,
        },
    }


def _compute_metrics(rows: list[Row]) -> dict[str, Any]:
    """Return rates over questions, in all and by the position of the answer in the passage.

    The keys "right" and "wrong" are those of answers with the right and with the control passage.
    Rates of exact answers and positions are of the questions that the passage answers. If all are
    questions that it does not answer, they are left out.
    """
    answerable = [row for row in rows if row["is_answerable"]]
    unanswerable = [row for row in rows if not row["is_answerable"]]
    rates_by_position = {}
    for position in ANSWER_POSITIONS:
        position_rows = [row for row in answerable if row["place"] == position]
        if position_rows:
            rates_by_position[position] = {
                "questions": len(position_rows),
                "right": _rate(position_rows, "exact"),
                "wrong": _rate([row["control"] for row in position_rows], "exact"),
            }
    metrics = {
        "questions": len(rows),
        "answerable": len(answerable),
        "right": _answer_rates(rows, answerable),
        "wrong": _answer_rates(
            [row["control"] for row in rows], [row["control"] for row in answerable]
        ),
        "places": rates_by_position,
    }
    if answerable:
        metrics["answer_in_wrong_passage"] = _rate(
            [row["control"] for row in answerable], "answer_in_passage"
        )
    if unanswerable:
        metrics["unanswerable"] = {
            "questions": len(unanswerable),
            "exact": _rate(unanswerable, "exact"),
        }
    return metrics


def _answer_rates(answers: list[Row], answerable: list[Row]) -> dict[str, Rate]:
    """Return the rates of answers that `<eos>` ends, and of those that loop.

    Of `answerable`, the answers to questions that the right passage answers, also return those that
    are exact, and those that say that the passage does not have it.
    """
    loops = [is_looping(answer["prediction"]) for answer in answers]
    rates = {"stopped": _rate(answers, "stopped"), "loops": _rate_of(loops)}
    if answerable:
        refusals = [bool(NOT_MENTIONED.search(answer["prediction"])) for answer in answerable]
        rates |= {"exact": _rate(answerable, "exact"), "not_mentioned": _rate_of(refusals)}
    return rates


def _rate(rows: Sequence[Row], key: str) -> Rate:
    return _rate_of([row[key] for row in rows])


def _rate_of(flags: Sequence[bool]) -> Rate:
    return Proportion(sum(flags), len(flags)).to_json()


def _format_rate(rate: Rate) -> str:
    return f"{rate['rate']:.1%} ({100 * rate['low']:.1f} – {100 * rate['high']:.1f})"


def _format_report(metrics: dict[str, Any], rows: list[Row]) -> list[str]:
    """Return the lines of the report: a table of rates, then the first questions.

    The table has a column for the right passage and one for a wrong passage (the control).
    """
    right = metrics["right"]
    control = metrics["wrong"]
    table: list[tuple[str, Rate, Rate | None]] = []
    if metrics["answerable"]:
        label = f"exact answers ({metrics['answerable']:,})"
        table.append((label, right["exact"], control["exact"]))
        # By where in the passage the answer stands.
        for position, rates in metrics["places"].items():
            table.append((f"  {position} ({rates['questions']:,})", rates["right"], rates["wrong"]))
        table.append(("refused to answer", right["not_mentioned"], control["not_mentioned"]))
    if "unanswerable" in metrics:
        rates = metrics["unanswerable"]
        table.append((f"unanswerable ({rates['questions']:,}), exact", rates["exact"], None))
    table.append(("stopped by <eos>", right["stopped"], control["stopped"]))
    table.append(("loops", right["loops"], control["loops"]))
    lines = [f"{'':26}{'right passage':>24}{'wrong passage':>24}"]
    for label, right_rate, control_rate in table:
        control_cell = "" if control_rate is None else f"{_format_rate(control_rate):>24}"
        lines.append(f"{label:26}{_format_rate(right_rate):>24}{control_cell}")
    if metrics["answerable"]:
        rate = _format_rate(metrics["answer_in_wrong_passage"])
        lines.append(f"the true answer is in the wrong passage too: {rate}")
    for row in rows[:NUM_EXAMPLES_SHOWN]:
        lines.append(
            f"{excerpt(row['question'])} → {excerpt(row['prediction'])!r}, "
            f"true: {excerpt(row['reference'])!r}, "
            f"with the wrong passage: {excerpt(row['control']['prediction'])!r}"
        )
    return lines
