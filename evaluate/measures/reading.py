"""Whether a model answers from the passage that it is given, or from memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, resolve_device
from common.progress import progress_bar
from data.records import Conversation
from evaluate.load_model import load_checkpoint
from evaluate.model_answers import ModelAnswer, Question, answer_questions, extract_questions
from evaluate.options import ReadingOptions
from evaluate.predictions import excerpt, write_predictions
from evaluate.scores.repetition import is_looping
from evaluate.usable_records import read_records
from model.chat_template.template import load_template

NUM_EXAMPLES_SHOWN = 3
ANSWER_PLACES = ("first third", "middle third", "last third", "not in the passage")


def run_reading(options: ReadingOptions) -> None:
    """Ask about passages and print the shares; write the files that the options name."""
    device = resolve_device(options.device)
    records = read_records(options.source, options.input, ("conversations",), options.limit)
    with_passage = [each for each in records if isinstance(each, Conversation) and each.reference]
    if len(with_passage) < len(records):
        print(f"left out, without a passage: {len(records) - len(with_passage):,} records")
    pairs = pair_with_control_passages(with_passage, " ".join(options.input))
    provenance, answers = _generate_answers(options, device, pairs)
    rows = [
        _build_row(right, wrong, answer, control)
        for (right, wrong), (answer, control) in zip(pairs, answers, strict=True)
        if answer and control
    ]
    if len(rows) < len(pairs):
        print(
            f"left out, no room for an answer in the context: {len(pairs) - len(rows):,} questions"
        )
    if not rows:
        raise UserError(
            f"--input {' '.join(options.input)}: no question of it fits the model's context"
        )
    metrics = _compute_metrics(rows)
    run_label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
    print(
        f"{run_label}: {len(with_passage):,} records, {len(rows):,} questions, greedy, at most {options.max_new_tokens} tokens"
    )
    _print_report(metrics, rows)
    if options.predictions:
        write_predictions(options.predictions, rows, provenance)
    if options.json_file:
        write_json(
            options.json_file,
            {
                **provenance,
                "measured": run_label,
                "records": len(with_passage),
                **metrics,
                "made": collect_environment(device),
            },
        )


def pair_with_control_passages(
    records: Sequence[Conversation], input_label: str
) -> list[tuple[Question, Question]]:
    """Every question twice: with its own passage, and with that of a record far away in the file.

    The other record is the one half the file on, or the next behind it whose passage is another. UserError if all have
    the same passage, or none has one.
    """
    passages = [each.reference for each in records]
    if len(set(passages)) < 2:
        found = f"there are {len(set(passages))}"
        raise UserError(
            f"--input {input_label}: the control needs records about at least two passages; {found}"
        )
    pairs = []
    for index, record in enumerate(records):
        candidate_passages = (
            passages[(index + len(passages) // 2 + step) % len(passages)]
            for step in range(len(passages))
        )
        other = next(passage for passage in candidate_passages if passage != record.reference)
        pairs += [
            (question, replace(question, passage=other)) for question in extract_questions(record)
        ]
    return pairs


def extract_passage_answer(question: Question) -> str:
    """The longest part of the true answer that is in the passage and not in the question: the whole or at least two
    characters, or the empty text.
    """
    answer, passage = question.answer.strip(), question.passage
    for length in range(len(answer), min(1, len(answer) - 1), -1):
        # Of two that are equally long the later one: an answer names last what was asked for.
        for start in range(len(answer) - length, -1, -1):
            part = answer[start : start + length]
            if part in passage and part not in question.question:
                return part
    return ""


def locate_answer(question: Question) -> str:
    """Where in its passage what was asked for stands, one of PLACES."""
    found, passage = extract_passage_answer(question), question.passage
    return (
        ANSWER_PLACES[min(int(3 * (passage.find(found) + len(found) / 2) / len(passage)), 2)]
        if found
        else ANSWER_PLACES[-1]
    )


def _generate_answers(
    options: ReadingOptions, device: Any, pairs: Sequence[tuple[Question, Question]]
) -> tuple[dict[str, str | int], list[tuple[ModelAnswer | None, ModelAnswer | None]]]:
    """Which checkpoint it was, and its answers to each question with the right and with the wrong passage."""
    loaded = load_checkpoint(options.checkpoint, options.quantize, device)
    template = load_template(loaded.folder)
    with progress_bar("answering", 2 * len(pairs), "answers") as bar:
        right, wrong = (
            answer_questions(
                loaded.model,
                loaded.tokenizer,
                template,
                asked,
                max_new_tokens=options.max_new_tokens,
                batch=options.batch,
                on_progress=bar.update,
            )
            for asked in zip(*pairs, strict=True)
        )
    return loaded.provenance, list(zip(right, wrong, strict=True))


def _build_row(
    right: Question, wrong: Question, answer: ModelAnswer, control: ModelAnswer
) -> dict[str, Any]:
    """One question as a line of the predictions file; `reference` is the true answer, as in other such files."""
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


def _compute_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over questions, with the right passage and with the wrong one."""
    places = {name: [row for row in rows if row["place"] == name] for name in ANSWER_PLACES}
    return {
        "questions": len(rows),
        "right": _answer_rates(rows),
        "wrong": _answer_rates([row["control"] for row in rows]),
        "places": {
            name: {
                "questions": len(some),
                "right": _mean(some, "exact"),
                "wrong": _mean([r["control"] for r in some], "exact"),
            }
            for name, some in places.items()
            if some
        },
        "answer_in_wrong_passage": _mean([row["control"] for row in rows], "answer_in_passage"),
    }


def _answer_rates(answers: list[dict[str, Any]]) -> dict[str, float]:
    looping = [{"loops": is_looping(answer["prediction"])} for answer in answers]
    return {
        "exact": _mean(answers, "exact"),
        "stopped": _mean(answers, "stopped"),
        "loops": _mean(looping, "loops"),
    }


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _print_report(metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(f"{'':26}{'right passage':>15}{'wrong passage':>15}")
    lines = [("exact answers", metrics["right"]["exact"], metrics["wrong"]["exact"])]
    lines += [
        (f"  {name} ({part['questions']:,})", part["right"], part["wrong"])
        for name, part in metrics["places"].items()
    ]
    lines += [
        (label, metrics["right"][key], metrics["wrong"][key])
        for label, key in (("stopped by <eos>", "stopped"), ("loops", "loops"))
    ]
    for label, right, wrong in lines:
        print(f"{label:26}{right:15.1%}{wrong:15.1%}")
    print(
        f"the true answer stands in the wrong passage too: {metrics['answer_in_wrong_passage']:.1%}"
    )
    for row in rows[:NUM_EXAMPLES_SHOWN]:
        print(
            f"{excerpt(row['question'])} → {excerpt(row['prediction'])!r}, true: {excerpt(row['reference'])!r}, "
            f"with the wrong passage: {excerpt(row['control']['prediction'])!r}"
        )
