"""Passage QA: tell whether a model answers from the given passage or from memory.

Every question is asked twice, with the passage of its record and, as the control, with the passage
of another record. Results files call the answers with the two passages "right" and "wrong". With an
index, questions are also asked with what is found there (`evaluate.measures.retrieved_passages`).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError
from common.machine import resolve_device
from data.copied_parts import copied_share
from data.index.passage_index import PassageIndex
from data.kinds import conversations
from data.records import Conversation
from evaluate.answers import answer_resumably
from evaluate.input_records import read_usable_records
from evaluate.kinds.conversations import Question, extract_questions
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.measures.retrieved_passages import (
    FIRST,
    RETRIEVED,
    TOGETHER,
    ask_with_found,
    check_indexed,
    describe_shortened,
    find_rank,
    join_passages,
    label_retrieved,
    recall_figures,
    search_passages,
)
from evaluate.metrics.proportion import Proportion, mean_share
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


@dataclass(frozen=True, slots=True)
class Found:
    """What an index finds for each question: `--passages` passages at most, the best first."""

    index: PassageIndex
    by_conversation: list[list[str]]
    """By the turns before and the question; these passages are asked with."""
    by_question: list[list[str]]
    """By the question alone."""


def run_passage_qa(options: PassageQAOptions) -> None:
    """Ask a checkpoint all questions with the right and with a control passage; report the result.

    With an index, ask also with what it finds. Raises UserError if the records have fewer than two
    different passages, or if no question fits the model's context.
    """
    # `PassageQAOptions.find_conflicts` requires it.
    assert options.checkpoint is not None
    device = resolve_device(options.device)
    records = read_usable_records(options.source, options.input, conversations.KIND, options.limit)
    with_passage = [record for record in records if record.reference]
    if len(with_passage) < len(records):
        print(f"left out, without a passage: {len(records) - len(with_passage):,} records")
    pairs = pair_with_control_passages(with_passage, " ".join(options.input))
    questions = [question for question, _ in pairs]
    asked = {"right": questions, "wrong": [control for _, control in pairs]}
    found = _search(options, questions)
    loaded = load_checkpoint(options.checkpoint, options, device)
    if found is not None:
        asked |= ask_with_found(loaded, questions, found.by_conversation, options.max_new_tokens)
    output = options.json_file or options.predictions
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    answers = _generate_answers(options, loaded, partial_results(output, depends_on), asked)
    all_rows = _build_rows(questions, asked, answers, found)
    rows = drop_unanswered(all_rows, options.input, loaded.model.trained_context)
    metrics = _compute_metrics(rows)
    run_label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
    headline = (
        f"{run_label}: {len(with_passage):,} records, {len(rows):,} questions, greedy, "
        f"at most {options.max_new_tokens} tokens"
    )
    if found is not None:
        metrics["retrieved"] = {
            "index": str(options.index),
            "fingerprint": found.index.fingerprint,
            "passages": len(found.index),
            **_compute_retrieval(rows, options.passages_together),
        }
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


def _search(options: PassageQAOptions, questions: Sequence[Question]) -> Found | None:
    """Return what `--index` finds for the questions, None without it."""
    if options.index is None:
        return None
    index = PassageIndex.open(options.index)
    check_indexed(index, [question.passage for question in questions], options.index)
    # A later question often names nothing: 他多大了？
    conversations_so_far = [
        "\n".join([*itertools.chain(*question.history), question.question])
        for question in questions
    ]
    alone = [question.question for question in questions]
    return Found(
        index,
        search_passages(index, conversations_so_far, options.passages_together, "conversation"),
        search_passages(index, alone, options.passages_together, "question alone"),
    )


def _generate_answers(
    options: PassageQAOptions,
    loaded: LoadedCheckpoint,
    results: PartialResults,
    asked: Mapping[str, Sequence[Question]],
) -> dict[str, list[ModelAnswer | None]]:
    """Return the answers to the questions; None if the prompt does not fit the context."""
    labels = _column_labels(options.passages_together)
    return {
        name: answer_resumably(
            results,
            labels[name],
            loaded,
            questions,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
        )
        for name, questions in asked.items()
    }


def _column_labels(count: int) -> dict[str, str]:
    """Return the labels of what questions are asked with, by the names of results files."""
    return {"right": "right passage", "wrong": "wrong passage", **label_retrieved(count)}


def _build_rows(
    questions: Sequence[Question],
    asked: Mapping[str, Sequence[Question]],
    answers: Mapping[str, Sequence[ModelAnswer | None]],
    found: Found | None,
) -> list[Row | None]:
    """Return the lines of the predictions file, None for a question that was not answered.

    `asked` are the questions with each passage, `answers` those to them.
    """
    rows: list[Row | None] = []
    for index, question in enumerate(questions):
        scored = {}
        for name in asked:
            answer = answers[name][index]
            if answer is not None:
                scored[name] = _score_answer(asked[name][index], answer)
        if len(scored) < len(asked):
            rows.append(None)
            continue
        row = _build_row(question, scored)
        if found is not None:
            row["found"] = {
                "rank": find_rank(found.by_conversation[index], question.passage),
                "rank_by_question": find_rank(found.by_question[index], question.passage),
                "all_fit": asked[TOGETHER][index].passage
                == join_passages(found.by_conversation[index]),
            }
        rows.append(row)
    return rows


def _score_answer(question: Question, answer: ModelAnswer) -> Row:
    """Return an answer, and the passage that it was asked with, for the predictions file."""
    return {
        "passage": question.passage,
        "prediction": answer.text,
        "exact": answer.text.strip() == question.answer.strip(),
        "stopped": answer.has_eos,
        "tokens": answer.num_tokens,
        "copied": copied_share(answer.text, question.passage),
    }


def _build_row(question: Question, scored: dict[str, Row]) -> Row:
    """Return the line of a question in the predictions file, with its answers of `_score_answer`.

    The answer with the right passage has no level of its own, the one with another passage has the
    key "control".
    """
    true_answer = question.answer.strip()
    control = scored["wrong"]
    answer_part = extract_passage_answer(question) or true_answer
    return {
        "question": question.question,
        "turn": len(question.history) + 1,
        "reference": true_answer,
        "reference_copied": copied_share(true_answer, question.passage),
        "is_answerable": NOT_MENTIONED.search(true_answer) is None,
        "place": locate_answer(question),
        **scored["right"],
        # If the answer is in the control passage, an exact answer does not show that the model
        # ignores the passage.
        "control": {**control, "answer_in_passage": answer_part in control["passage"]},
        **{name: scored[name] for name in RETRIEVED if name in scored},
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
        metrics["true_answers_copied"] = mean_share(
            [row["reference_copied"] for row in answerable]
        ).to_json()
    if unanswerable:
        metrics["unanswerable"] = {
            "questions": len(unanswerable),
            "exact": _rate(unanswerable, "exact"),
        }
    return metrics


def _compute_retrieval(rows: list[Row], count: int) -> dict[str, Any]:
    """Return how often the right passage is found, and rates of the answers with what is found.

    Recall and rates of exact answers are of the questions that the right passage answers.
    """
    answerable = [row for row in rows if row["is_answerable"]]
    unanswerable = [row for row in rows if not row["is_answerable"]]
    by_turn = {
        "all": answerable,
        "first turn": [row for row in answerable if row["turn"] == 1],
        "later turns": [row for row in answerable if row["turn"] > 1],
    }
    has_right_first = [row["found"]["rank"] == 1 for row in answerable]
    firsts = [row[FIRST] for row in answerable]
    metrics: dict[str, Any] = {
        "count": count,
        # Questions that were asked with fewer passages than they found.
        "shortened": sum(not row["found"]["all_fit"] for row in rows),
    }
    for name in RETRIEVED:
        metrics[name] = _answer_rates(
            [row[name] for row in rows], [row[name] for row in answerable]
        )
        if unanswerable:
            metrics[name]["unanswerable"] = _rate([row[name] for row in unanswerable], "exact")
    metrics["exact_if_found"] = _rate(list(itertools.compress(firsts, has_right_first)), "exact")
    metrics["turns"] = {
        turns: {
            "conversation": _recall(chosen, "rank", count),
            "question": _recall(chosen, "rank_by_question", count),
            "right": _rate(chosen, "exact"),
            **{name: _rate([row[name] for row in chosen], "exact") for name in RETRIEVED},
        }
        for turns, chosen in by_turn.items()
        if chosen
    }
    return metrics


def _recall(rows: list[Row], key: str, count: int) -> dict[str, Rate]:
    figures = recall_figures([row["found"][key] for row in rows], count)
    return {limit: share.to_json() for limit, share in figures.items()}


def _answer_rates(answers: list[Row], answerable: list[Row]) -> dict[str, Rate]:
    """Return the rates of answers that `<eos>` ends, and of those that loop.

    Of `answerable`, the answers to questions that the right passage answers, also return those that
    are exact, those that say that the passage does not have it, and the mean share that is copied
    from the passage that they were given.
    """
    loops = [is_looping(answer["prediction"]) for answer in answers]
    rates = {"stopped": _rate(answers, "stopped"), "loops": _rate_of(loops)}
    if answerable:
        refusals = [bool(NOT_MENTIONED.search(answer["prediction"])) for answer in answerable]
        rates |= {
            "exact": _rate(answerable, "exact"),
            "not_mentioned": _rate_of(refusals),
            "copied": mean_share([answer["copied"] for answer in answerable]).to_json(),
        }
    return rates


def _rate(rows: Sequence[Row], key: str) -> Rate:
    return _rate_of([row[key] for row in rows])


def _rate_of(flags: Sequence[bool]) -> Rate:
    return Proportion(sum(flags), len(flags)).to_json()


def _format_rate(rate: Rate) -> str:
    return f"{rate['rate']:.1%} ({100 * rate['low']:.1f} – {100 * rate['high']:.1f})"


def _format_report(metrics: dict[str, Any], rows: list[Row]) -> list[str]:
    """Return the lines of the report: a table of rates, then the first questions.

    The table has a column for the right passage, one for a wrong passage (the control) and, with an
    index, one for the first passage found and one for several.
    """
    retrieved = metrics.get("retrieved", {})
    labels = _column_labels(retrieved.get("count", 0))
    columns = {name: metrics[name] for name in ("right", "wrong")}
    columns |= {name: retrieved[name] for name in RETRIEVED if retrieved}
    table: list[tuple[str, dict[str, Rate]]] = []

    def add_rates(label: str, key: str) -> None:
        table.append((label, {name: rates[key] for name, rates in columns.items()}))

    if metrics["answerable"]:
        add_rates(f"exact answers ({metrics['answerable']:,})", "exact")
        for turns in ("first turn", "later turns"):
            if figures := retrieved.get("turns", {}).get(turns):
                table.append((f"  {turns} ({figures['right']['questions']:,})", figures))
        # By where in the passage the answer stands.
        for position, rates in metrics["places"].items():
            table.append((f"  {position} ({rates['questions']:,})", rates))
        add_rates("copied from the passage", "copied")
        add_rates("refused to answer", "not_mentioned")
    if "unanswerable" in metrics:
        rates = metrics["unanswerable"]
        label = f"unanswerable ({rates['questions']:,}), exact"
        found_rates = {name: retrieved[name]["unanswerable"] for name in RETRIEVED if retrieved}
        table.append((label, {"right": rates["exact"], **found_rates}))
    add_rates("stopped by <eos>", "stopped")
    add_rates("loops", "loops")
    lines = [f"{'':26}" + "".join(f"{labels[name]:>24}" for name in columns)]
    for label, cells in table:
        texts = (_format_rate(cells[name]) if name in cells else "" for name in columns)
        lines.append(f"{label:26}{''.join(f'{text:>24}' for text in texts)}".rstrip())
    if metrics["answerable"]:
        rate = _format_rate(metrics["true_answers_copied"])
        lines.append(f"the true answers are copied from the right passage: {rate}")
        rate = _format_rate(metrics["answer_in_wrong_passage"])
        lines.append(f"the true answer is in the wrong passage too: {rate}")
    if retrieved:
        lines += _format_retrieval(retrieved)
    for row in rows[:NUM_EXAMPLES_SHOWN]:
        lines.append(
            f"{excerpt(row['question'])} → {excerpt(row['prediction'])!r}, "
            f"true: {excerpt(row['reference'])!r}, "
            f"with the wrong passage: {excerpt(row['control']['prediction'])!r}"
        )
    return lines


def _format_retrieval(retrieved: dict[str, Any]) -> list[str]:
    """Return a table of how often the right passage is found among all of the index."""
    count = retrieved["count"]
    limits = ("R@1", f"R@{count}")
    title = f"right one of {retrieved['passages']:,} found"
    lines = [f"{title:50}" + "".join(f"{limit:>24}" for limit in limits)]
    for turns, figures in retrieved["turns"].items():
        # Before the first turn there is no conversation.
        queries = {"question": "question alone", "conversation": "conversation"}
        for key, query in list(queries.items())[: 1 if turns == "first turn" else 2]:
            label = f"  {turns} ({figures['right']['questions']:,}), by the {query}"
            cells = "".join(f"{_format_rate(figures[key][limit]):>24}" for limit in limits)
            lines.append(f"{label:50}{cells}")
    rate = _format_rate(retrieved["exact_if_found"])
    lines.append(f"exact answers where the first passage found is the right one: {rate}")
    if retrieved["shortened"]:
        lines.append(describe_shortened(count, retrieved["shortened"]))
    return lines
