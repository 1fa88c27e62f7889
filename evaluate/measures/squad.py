"""Reading comprehension with gold answers: exact match and F1, beside trivial methods.

Every question is asked three times: with its passage, with another one, and without any. Results
files call the answers "right", "wrong" and "none". The trivial methods see the right passage. With
an index, questions are also asked with what is found there
(`evaluate.measures.retrieved_passages`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.machine import resolve_device
from data.copied_parts import copied_share
from data.index.passage_index import PassageIndex
from data.readers.files import expand_inputs, print_files_about_data
from data.records import BadRecord
from data.sources.squad import PassageQuestion, iter_passages
from data.sources.wikipedia import to_simplified
from evaluate.answers import answer_resumably
from evaluate.kinds.conversations import Question
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.measures.passage_qa import NOT_MENTIONED
from evaluate.measures.retrieved_passages import (
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
from evaluate.metrics.gold_answers import exact_match, overlap_f1
from evaluate.metrics.passage_baselines import longest_number_or_name, most_similar_sentence
from evaluate.metrics.proportion import Proportion, compare_with_trivial, mean_share
from evaluate.metrics.repetition import is_looping
from evaluate.options import PassageQAOptions
from evaluate.partial_results import PartialResults, partial_results
from evaluate.predictions import excerpt
from evaluate.result import EvalResult, Row, drop_unanswered, report_result

# What a question is asked with, and its label in the report.
PASSAGES = {"right": "right passage", "wrong": "wrong passage", "none": "no passage"}
# The trivial methods, and their labels in the report.
TRIVIAL = {
    "sentence": "sentence most like the question",
    "number_or_name": "longest number or name in it",
}
NUM_EXAMPLES_SHOWN = 3
SCRIPT_LABELS = {"simplified": "simplified characters", "original": "characters as written"}
CONVENTION = "CMRC 2018: without punctuation; F1 by the longest common run of characters and words"


@dataclass(frozen=True, slots=True)
class GoldQuestion:
    """A question with its gold answers, none if the passage does not answer it.

    `control` is a passage that it is not about, `written_passage` the passage in the characters of
    the file.
    """

    id: str
    passage: str
    control: str
    question: str
    answers: tuple[str, ...]
    written_passage: str


def run_squad(options: PassageQAOptions) -> None:
    """Score a checkpoint, or the trivial methods alone, on questions with gold answers."""
    questions = read_questions(options)
    if options.checkpoint is None:
        rows = [_build_row(question) for question in questions]
        report_result(_score_rows(options, rows), options.json_file)
        return
    index = None
    if options.index is not None:
        index = PassageIndex.open(options.index)
        check_indexed(index, [question.written_passage for question in questions], options.index)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    output = options.json_file or options.predictions
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    results = partial_results(output, depends_on)
    all_rows = _answer_questions(options, loaded, results, questions, index)
    rows = drop_unanswered(all_rows, options.input, loaded.model.trained_context)
    result = _score_rows(options, rows, len(all_rows) - len(rows), loaded, device, index)
    report_result(result, options.json_file, options.predictions)


def read_questions(options: PassageQAOptions) -> list[GoldQuestion]:
    """Return the first `--limit` questions of the files, in the characters of `--script`.

    Prints how many questions cannot be read. Raises UserError without any that can, and if all are
    about one passage, because then there is none for the control.
    """
    inputs = list(options.input)
    paths = expand_inputs(inputs)
    print_files_about_data(inputs)
    convert = _converter(options)
    bad_records = []
    # With their passages, converted and not.
    questions: list[tuple[str, str, PassageQuestion]] = []
    for item in (item for path in paths for item in iter_passages(path)):
        if isinstance(item, BadRecord):
            bad_records.append(item)
            continue
        context = convert(item.context)
        for question in item.questions:
            answers = tuple(convert(answer) for answer in question.answers)
            converted = PassageQuestion(question.id, convert(question.question), answers)
            questions.append((context, item.context, converted))
    if bad_records:
        first = bad_records[0]
        print(
            f"left out, unreadable: {len(bad_records):,} questions, the first {first.file} line "
            f"{first.line}: {first.reason}"
        )
    passages = list(dict.fromkeys(passage for passage, _, _ in questions))
    if len(passages) < 2:
        raise UserError(
            f"--input {' '.join(inputs)}: has questions about {len(passages)} passages, and the "
            "control needs two; check that the files are of squad"
        )
    places = {passage: place for place, passage in enumerate(passages)}
    return [
        GoldQuestion(
            question.id,
            passage,
            _choose_control(passages, places[passage], question.answers),
            question.question,
            question.answers,
            written_passage,
        )
        for passage, written_passage, question in questions[: options.limit]
    ]


def _converter(options: PassageQAOptions) -> Callable[[str], str]:
    """Return the function that gives texts the characters of `--script`."""
    return to_simplified if options.script != "original" else str


def _choose_control(passages: Sequence[str], place: int, answers: Sequence[str]) -> str:
    """Return another passage than the one at `place`, if possible one that has no answer in it.

    It is the one half of all passages further on, or the next one after it that will do; after the
    last comes the first. If every passage has an answer in it, it is that first one.
    """

    def others() -> Iterator[str]:
        for offset in range(len(passages)):
            other = (place + len(passages) // 2 + offset) % len(passages)
            if other != place:
                yield passages[other]

    without_answer = (text for text in others() if not any(answer in text for answer in answers))
    return next(without_answer, None) or next(others())


def _answer_questions(
    options: PassageQAOptions,
    loaded: LoadedCheckpoint,
    results: PartialResults,
    questions: Sequence[GoldQuestion],
    index: PassageIndex | None,
) -> list[Row | None]:
    """Return the rows with the answers of the model; None if a prompt does not fit the context."""
    asked: dict[str, list[Question]] = {name: [] for name in PASSAGES}
    for question in questions:
        passages = {"right": question.passage, "wrong": question.control, "none": ""}
        for name, passage in passages.items():
            asked[name].append(Question((), question.question, "", passage))
    found: list[list[str]] = []
    converted: list[list[str]] = []
    if index is not None:
        queries = [question.question for question in questions]
        found = search_passages(index, queries, options.passages_together, "question")
        convert = _converter(options)
        converted = [[convert(text) for text in passages] for passages in found]
        asked |= ask_with_found(loaded, asked["right"], converted, options.max_new_tokens)
    labels = _column_labels(options)
    answers = {
        name: answer_resumably(
            results,
            labels[name],
            loaded,
            asked_questions,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
        )
        for name, asked_questions in asked.items()
    }
    rows: list[Row | None] = []
    for number, question in enumerate(questions):
        row = _build_row(question)
        for name in asked:
            answer = answers[name][number]
            if answer is None:
                rows.append(None)
                break
            passage = asked[name][number].passage
            row[name] = {
                **_score_answer(answer.text, question.answers),
                "copied": copied_share(answer.text, passage),
                "stopped": answer.has_eos,
                "tokens": answer.num_tokens,
            }
        else:
            if found:
                row["found"] = {
                    "rank": find_rank(found[number], question.written_passage),
                    "all_fit": asked[TOGETHER][number].passage == join_passages(converted[number]),
                }
                for name in RETRIEVED:
                    row[name]["passage"] = asked[name][number].passage
            rows.append(row)
    return rows


def _column_labels(options: PassageQAOptions) -> dict[str, str]:
    """Return the labels of what questions are asked with, by the names of results files."""
    return PASSAGES | (label_retrieved(options.passages_together) if options.index else {})


def _build_row(question: GoldQuestion) -> Row:
    """Return the line of a question in the predictions file, without the answers of a model."""
    sentence = most_similar_sentence(question.passage, question.question)
    number_or_name = longest_number_or_name(sentence, question.question)
    return {
        "id": question.id,
        "passage": question.passage,
        "wrong_passage": question.control,
        "question": question.question,
        "answers": list(question.answers),
        "answer_in_wrong_passage": any(answer in question.control for answer in question.answers),
        "reference_copied": copied_share(question.answers[0], question.passage)
        if question.answers
        else None,
        "trivial": {
            "sentence": _score_answer(sentence, question.answers),
            "number_or_name": _score_answer(number_or_name, question.answers),
        },
    }


def _score_answer(text: str, answers: Sequence[str]) -> Row:
    """Return an answer with its scores, which are 0 if the passage does not answer the question."""
    return {
        "prediction": text,
        "exact": exact_match(text, answers),
        "f1": overlap_f1(text, answers),
        "not_mentioned": not text.strip() or NOT_MENTIONED.search(text) is not None,
    }


def _score_rows(
    options: PassageQAOptions,
    rows: list[Row],
    num_left_out: int = 0,
    loaded: LoadedCheckpoint | None = None,
    device: Any = None,
    index: PassageIndex | None = None,
) -> EvalResult:
    """Return the report of all rows, which have answers of a model if there is one.

    `num_left_out` questions have no row, because they do not fit the context of the model. With an
    index, rows also have what is found there.
    """
    script = options.script or "simplified"
    files = " ".join(options.input)
    run_label = f"{options.checkpoint or 'no model'} on {files} ({options.source})"
    answerable = [row for row in rows if row["answers"]]
    unanswerable = [row for row in rows if not row["answers"]]
    num_passages = len({row["passage"] for row in rows})
    headline = f"{run_label}: {len(rows):,} questions about {num_passages:,} passages"
    headline += f", {SCRIPT_LABELS[script]}"
    if loaded is not None:
        headline += f", greedy, at most {options.max_new_tokens} tokens"
    metrics: dict[str, Any] = {
        "measured": run_label,
        "questions": len(rows),
        "answerable": len(answerable),
        "passages": num_passages,
        "left_out": num_left_out,
        "script": script,
        "convention": CONVENTION,
    }
    lines = [headline, f"{'':33}{'exact match %':>22}{'F1 %':>24}"]
    labels = _column_labels(options) if loaded is not None else {}
    for name, label in labels.items():
        scores = _scores([row[name] for row in answerable])
        metrics[name] = {key: score.to_json() for key, score in scores.items()}
        lines.append(_format_scores(label, scores))
    metrics["trivial"] = {}
    for name, label in TRIVIAL.items():
        scores = _scores([row["trivial"][name] for row in answerable])
        metrics["trivial"][name] = {key: score.to_json() for key, score in scores.items()}
        lines.append(_format_scores(label, scores))
    if loaded is not None:
        lines += _compare_with_trivial(metrics)
        lines += _describe_answers(metrics, labels, answerable, unanswerable)
        if index is not None:
            lines += _describe_retrieval(metrics, options, index, rows)
        lines += _format_examples(answerable)
    return EvalResult(
        lines=[*lines, f"scored as {CONVENTION}"],
        metrics=metrics,
        provenance=loaded.provenance if loaded is not None else {},
        rows=rows,
        device=device,
    )


def _scores(answers: Sequence[Row]) -> dict[str, Proportion]:
    """Return the exact match and the F1 of answers."""
    return {
        key: Proportion(sum(answer[key] for answer in answers), len(answers))
        for key in ("exact", "f1")
    }


def _format_scores(label: str, scores: dict[str, Proportion]) -> str:
    return f"{label:33}{scores['exact']!s:>22}{scores['f1']!s:>24}"


def _compare_with_trivial(metrics: dict[str, Any]) -> list[str]:
    """Return a line for each score that says whether the model beats the best trivial method."""
    lines = []
    for key, label in (("exact", "exact match"), ("f1", "F1")):
        best = max(scores[key]["rate"] for scores in metrics["trivial"].values())
        verdict = compare_with_trivial(metrics["right"][key], best)
        lines.append(f"{label} with the right passage is {verdict} the best trivial method")
    return lines


def _describe_answers(
    metrics: dict[str, Any],
    labels: dict[str, str],
    answerable: list[Row],
    unanswerable: list[Row],
) -> list[str]:
    """Add the shares of answers that stop, loop or refuse to `metrics`, and those that are copied.

    Return lines of them. `labels` are those of what questions are asked with.
    """
    lines = [f"{'':33}" + "".join(f"{label:>16}" for label in labels.values())]
    all_rows = answerable + unanswerable
    for key, label, rows in (
        ("not_mentioned", "says that it is not mentioned", answerable),
        ("unanswerable", f"the same, unanswerable ({len(unanswerable):,})", unanswerable),
        ("stopped", "stopped by <eos>", all_rows),
        ("loops", "loops", all_rows),
    ):
        if not rows:
            continue
        cells = ""
        for name in labels:
            share = Proportion(sum(_has_flag(row[name], key) for row in rows), len(rows))
            metrics[name][key] = share.to_json()
            cells += f"{share.rate:16.1%}"
        lines.append(f"{label:33}{cells}")
    if answerable:
        cells = ""
        for name in labels:
            if name == "none":  # there is nothing to copy from
                cells += f"{'':16}"
                continue
            mean = mean_share([row[name]["copied"] for row in answerable])
            metrics[name]["copied"] = mean.to_json()
            cells += f"{mean.rate:16.1%}"
        lines.append(f"{'copied from the passage':33}{cells}")
        mean = mean_share([row["reference_copied"] for row in answerable])
        metrics["true_answers_copied"] = mean.to_json()
        lines.append(f"the true answers are copied from the right passage: {mean.rate:.1%}")
        share = Proportion(
            sum(row["answer_in_wrong_passage"] for row in answerable), len(answerable)
        )
        metrics["answer_in_wrong_passage"] = share.to_json()
        lines.append(f"the true answer is in the wrong passage too: {share.rate:.1%}")
    return lines


def _describe_retrieval(
    metrics: dict[str, Any], options: PassageQAOptions, index: PassageIndex, rows: list[Row]
) -> list[str]:
    """Add how often the right passage is found to `metrics`; return lines of it."""
    count = options.passages_together
    ranks = [row["found"]["rank"] for row in rows if row["answers"]]
    figures = recall_figures(ranks, count)
    shortened = sum(not row["found"]["all_fit"] for row in rows)
    metrics["retrieved"] = {
        "index": str(options.index),
        "fingerprint": index.fingerprint,
        "passages": len(index),
        "count": count,
        "shortened": shortened,
        **{limit: share.to_json() for limit, share in figures.items()},
    }
    shares = ", ".join(f"{limit} {share}" for limit, share in figures.items())
    lines = [f"the right passage among the {len(index):,} of the index: {shares}"]
    if shortened:
        lines.append(describe_shortened(count, shortened))
    return lines


def _has_flag(answer: Row, key: str) -> bool:
    """Return whether an answer has the flag that is counted under `key`."""
    if key == "loops":
        return is_looping(answer["prediction"])
    return bool(answer["not_mentioned" if key == "unanswerable" else key])


def _format_examples(rows: list[Row]) -> list[str]:
    """Return the first questions with their answers as lines to print."""
    return [
        f"{excerpt(row['question'])} → {excerpt(row['right']['prediction'])!r}, "
        f"true: {excerpt(row['answers'][0])!r}, "
        f"with the wrong passage: {excerpt(row['wrong']['prediction'])!r}, "
        f"without: {excerpt(row['none']['prediction'])!r}"
        for row in rows[:NUM_EXAMPLES_SHOWN]
    ]
