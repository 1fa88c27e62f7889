"""Passage QA: tell whether a model answers from the given passage or from memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.errors import UserError
from common.machine import resolve_device
from common.progress import progress_bar
from data.kinds import conversations
from data.records import Conversation
from evaluate.input_records import read_usable_records
from evaluate.kinds.base import ModelAnswer
from evaluate.kinds.conversations import Question, answer_questions, extract_questions
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.metrics.repetition import is_looping
from evaluate.options import ReadingOptions
from evaluate.predictions import excerpt
from evaluate.result import EvalResult, Row, drop_unanswered, report_result

NUM_EXAMPLES_SHOWN = 3
ANSWER_PLACES = ("first third", "middle third", "last third", "not in the passage")


def run_reading(options: ReadingOptions) -> None:
    """Run `python -m evaluate.reading`."""
    report_result(evaluate_reading(options), options.json_file, options.predictions)


def evaluate_reading(options: ReadingOptions) -> EvalResult:
    """Answer all questions with the right passage and with a control passage, and compare."""
    device = resolve_device(options.device)
    records = read_usable_records(options.source, options.input, conversations.KIND, options.limit)
    with_passage = [record for record in records if record.reference]
    if len(with_passage) < len(records):
        print(f"left out, without a passage: {len(records) - len(with_passage):,} records")
    pairs = pair_with_control_passages(with_passage, " ".join(options.input))
    loaded = load_checkpoint(options.checkpoint, options.quantize, device)
    answer_pairs = _generate_answers(options, loaded, pairs)
    rows = drop_unanswered(
        [
            _build_row(*question_pair, *answer_pair)
            for question_pair, answer_pair in zip(pairs, answer_pairs, strict=True)
        ],
        options.input,
    )
    metrics = _compute_metrics(rows)
    run_label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
    headline = (
        f"{run_label}: {len(with_passage):,} records, {len(rows):,} questions, greedy, "
        f"at most {options.max_new_tokens} tokens"
    )
    return EvalResult(
        lines=[headline, *_format_report(metrics, rows)],
        metrics={"measured": run_label, "records": len(with_passage), **metrics},
        provenance=loaded.provenance,
        rows=rows,
        device=device,
    )


def pair_with_control_passages(
    records: Sequence[Conversation], input_label: str
) -> list[tuple[Question, Question]]:
    """Return every question twice: with its own passage, and with the passage of another record.

    The other record is half the file away, or the next one after that with a different passage.
    Raises UserError if the records have fewer than two different passages.
    """
    passages = [record.reference for record in records]
    num_passages = len(set(passages))
    if num_passages < 2:
        raise UserError(
            f"--input {input_label}: the control needs records about at least two passages; "
            f"there are {num_passages}"
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

    The part is the whole answer or has at least two characters; empty if there is no such part.
    """
    answer, passage = question.answer.strip(), question.passage
    for length in range(len(answer), min(1, len(answer) - 1), -1):
        # Among parts of one length the last wins: an answer tends to end with what was asked for.
        for start in range(len(answer) - length, -1, -1):
            part = answer[start : start + length]
            if part in passage and part not in question.question:
                return part
    return ""


def locate_answer(question: Question) -> str:
    """Return the place of the key part of the true answer in its passage, one of ANSWER_PLACES."""
    part, passage = extract_passage_answer(question), question.passage
    if not part:
        return ANSWER_PLACES[-1]
    center = passage.find(part) + len(part) / 2
    return ANSWER_PLACES[min(int(3 * center / len(passage)), 2)]


def _generate_answers(
    options: ReadingOptions,
    loaded: LoadedCheckpoint,
    pairs: Sequence[tuple[Question, Question]],
) -> list[tuple[ModelAnswer | None, ModelAnswer | None]]:
    """Answer each question with the right and with the control passage."""
    with progress_bar("answering", 2 * len(pairs), "answers") as bar:
        right, control = (
            answer_questions(
                loaded.model,
                loaded.tokenizer,
                loaded.template,
                questions,
                max_new_tokens=options.max_new_tokens,
                batch=options.batch,
                on_progress=bar.update,
            )
            for questions in zip(*pairs, strict=True)
        )
    return list(zip(right, control, strict=True))


def _build_row(
    right: Question, wrong: Question, answer: ModelAnswer | None, control: ModelAnswer | None
) -> Row | None:
    """Return the line of a question in the predictions file, or None if it was not answered."""
    if answer is None or control is None:
        return None
    true_answer = right.answer.strip()
    return {
        "passage": right.passage,
        "question": right.question,
        "reference": true_answer,
        "place": locate_answer(right),
        "prediction": answer.text,
        "exact": answer.text.strip() == true_answer,
        "stopped": answer.has_eos,
        "tokens": answer.num_tokens,
        "control": {
            "passage": wrong.passage,
            "prediction": control.text,
            "exact": control.text.strip() == true_answer,
            "stopped": control.has_eos,
            "tokens": control.num_tokens,
            "answer_in_passage": (extract_passage_answer(right) or true_answer) in wrong.passage,
        },
    }


def _compute_metrics(rows: list[Row]) -> dict[str, Any]:
    """Return rates over questions, with the right passage and with the control passage."""
    controls = [row["control"] for row in rows]
    places = {}
    for place in ANSWER_PLACES:
        place_rows = [row for row in rows if row["place"] == place]
        if place_rows:
            places[place] = {
                "questions": len(place_rows),
                "right": _mean(place_rows, "exact"),
                "wrong": _mean([row["control"] for row in place_rows], "exact"),
            }
    return {
        "questions": len(rows),
        "right": _answer_rates(rows),
        "wrong": _answer_rates(controls),
        "places": places,
        "answer_in_wrong_passage": _mean(controls, "answer_in_passage"),
    }


def _answer_rates(answers: list[Row]) -> dict[str, float]:
    return {
        "exact": _mean(answers, "exact"),
        "stopped": _mean(answers, "stopped"),
        "loops": float(np.mean([is_looping(answer["prediction"]) for answer in answers])),
    }


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _format_report(metrics: dict[str, Any], rows: list[Row]) -> list[str]:
    right, wrong = metrics["right"], metrics["wrong"]
    rates = [("exact answers", right["exact"], wrong["exact"])]
    for place, part in metrics["places"].items():
        rates.append((f"  {place} ({part['questions']:,})", part["right"], part["wrong"]))
    rates.append(("stopped by <eos>", right["stopped"], wrong["stopped"]))
    rates.append(("loops", right["loops"], wrong["loops"]))
    lines = [f"{'':26}{'right passage':>15}{'wrong passage':>15}"]
    lines += [f"{label:26}{first:15.1%}{second:15.1%}" for label, first, second in rates]
    lines.append(
        f"the true answer is in the wrong passage too: {metrics['answer_in_wrong_passage']:.1%}"
    )
    for row in rows[:NUM_EXAMPLES_SHOWN]:
        lines.append(
            f"{excerpt(row['question'])} → {excerpt(row['prediction'])!r}, "
            f"true: {excerpt(row['reference'])!r}, "
            f"with the wrong passage: {excerpt(row['control']['prediction'])!r}"
        )
    return lines
