"""ROUGE of the summaries of a checkpoint, a baseline, or a file of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.machine import resolve_device
from common.progress import progress_bar
from data.corpora.resolver import find_test_split
from data.kinds import summaries
from data.records import Summary
from data.shards import load_run_shard_set
from data.sources import find_source
from data.sources.base import LetterCase
from evaluate.decoding.settings import GREEDY, Decoding
from evaluate.decoding.stored import read_run_decoding
from evaluate.input_records import read_usable_records
from evaluate.kinds.question_sets import Figure
from evaluate.kinds.summaries import EVALUATION, TitleQuestion, answer_title_questions
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.metrics.baselines import BASELINES, TRIVIAL_METHODS
from evaluate.metrics.repetition import is_looping
from evaluate.metrics.rouge import bootstrap_mean_interval, compute_rouge
from evaluate.metrics.rouge_table import (
    CASE_LABELS,
    RougeTable,
    describe_method,
    scorer_versions,
)
from evaluate.model_answer import ModelAnswer
from evaluate.options import RougeOptions
from evaluate.partial_results import PartialResults, partial_results
from evaluate.predictions import excerpt, read_predictions, resolve_model_fields
from evaluate.result import EvalResult, Row, report_result

# Number of examples with the lowest scores, and of those with the highest, that are printed.
NUM_EXAMPLES_SHOWN = 3
# Labels on the terminal of the flags of a row that are counted.
COUNT_LABELS = {"stopped": "stopped by <eos>", "loops": "loops", "trimmed": "articles trimmed"}


class ArticleSet(NamedTuple):
    """Articles to summarize, with their true titles."""

    records: list[Summary]
    source: str
    label: str  # their files and source
    case: LetterCase


def run_rouge(options: RougeOptions) -> None:
    """Score the summaries of a file, a baseline or a checkpoint; report the result."""
    if options.score:
        result = evaluate_predictions(options)
    elif options.baseline:
        result = evaluate_baseline(options)
    else:
        result = evaluate_checkpoint(options)
    report_result(result, options.json_file, options.predictions)


def evaluate_predictions(options: RougeOptions) -> EvalResult:
    """Score the predictions in the file of `--score`, against the references in the same file."""
    assert options.score is not None
    rows = read_predictions(options.score, ("prediction", "reference"))[: options.limit]
    model_fields = resolve_model_fields(options.score, rows)
    case = options.case or _resolve_case(options.score, rows)
    return _score_rows(str(options.score), rows, case, model_fields)


def evaluate_baseline(options: RougeOptions) -> EvalResult:
    """Summarize the articles with the method of `--baseline`, and score the summaries."""
    assert options.baseline is not None
    articles, _, data_label, case = read_articles(options, options.limit)
    summarize = BASELINES[options.baseline]
    rows = [
        {
            "input": record.article,
            "reference": record.title,
            "prediction": summarize(record.article, record.title, case),
        }
        for record in articles
    ]
    provenance = {"decoding": f"no model: {options.baseline}"}
    return _score_rows(f"{options.baseline} on {data_label}", rows, case, provenance)


def evaluate_checkpoint(options: RougeOptions) -> EvalResult:
    """Summarize the articles with a checkpoint, and score the summaries.

    The provenance of the result records the decoding settings. Raises UserError if the checkpoint
    or the articles cannot be read.
    """
    # `RougeOptions.find_conflicts` requires it if there is neither --score nor --baseline.
    assert options.checkpoint is not None
    device = resolve_device(options.device)
    articles, source, data_label, case = read_articles(options, options.limit)
    loaded = load_checkpoint(options.checkpoint, options, device)
    decoding = _resolve_decoding(options, source)
    length = options.max_new_tokens
    provenance = {**loaded.provenance, "decoding": describe_decoding(decoding, length)}
    answers = answer_resumably(
        loaded,
        [TitleQuestion(record.article) for record in articles],
        open_partial_results(
            options.json_file or options.predictions, loaded, decoding, case, length
        ),
        decoding=decoding,
        case=case,
        max_new_tokens=length,
        batch=options.batch,
    )
    rows = _prediction_rows(loaded, articles, answers)
    run_label = f"{options.checkpoint} on {data_label}"
    return _score_rows(run_label, rows, case, provenance, device, beside=TRIVIAL_METHODS)


def _resolve_decoding(options: RougeOptions, source: str) -> Decoding:
    """Return the decoding setting of the options or, if they have none, of the run for a source."""
    if not options.run_decoding or options.decoding != GREEDY:
        return options.decoding
    assert options.checkpoint is not None
    chosen = read_run_decoding(options.checkpoint, source)
    if chosen is None:
        return GREEDY
    texts = "" if chosen.source is None else f" and texts of {source}"
    print(f"decoding as chosen for {options.checkpoint}{texts}: {chosen.decoding.describe()}")
    return chosen.decoding


def describe_decoding(decoding: Decoding, max_new_tokens: int) -> str:
    """Return the decoding of a checkpoint in words, for the output and results files."""
    return f"{decoding.describe()}, at most {max_new_tokens} tokens"


def open_partial_results(
    output: Path | None,
    loaded: LoadedCheckpoint,
    decoding: Decoding,
    case: LetterCase,
    max_new_tokens: int,
) -> PartialResults:
    """Open the answers of an interrupted call that writes `output`; see `partial_results`."""
    settings = {**decoding.model_dump(), "case": case, "max_new_tokens": max_new_tokens}
    return partial_results(output, {**loaded.identity, **settings})


def answer_resumably(
    loaded: LoadedCheckpoint,
    questions: Sequence[TitleQuestion],
    results: PartialResults,
    *,
    name: str = "summarizing",
    decoding: Decoding,
    case: LetterCase,
    max_new_tokens: int,
    batch: int,
) -> list[ModelAnswer]:
    """Return the whole answer to each question, see `answer_title_questions`.

    `name` tells these answers from others in the same `results`, and is shown in the progress bar.
    """

    def answer_chunk(chunk: Sequence[TitleQuestion]) -> list[dict[str, Any]]:
        answers = answer_title_questions(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            chunk,
            max_new_tokens=max_new_tokens,
            decoding=decoding,
            case=case,
            batch=batch,
        )
        return [asdict(answer) for answer in answers]

    # Several batches in a chunk, so that prompts of about the same length are decoded together.
    rows = results.compute(name, questions, answer_chunk, unit="answers", chunk_size=8 * batch)
    return [ModelAnswer(**row) for row in rows]


def _resolve_case(path: Path, rows: list[Row]) -> LetterCase:
    """Return the letter case that all `rows`, lines of the file `path`, were scored in.

    If they do not name one, or differ, return lower case and print how to choose the other.
    """
    for case in CASE_LABELS:
        if all(row.get("case") == case for row in rows):
            return case
    print(
        f"{path} does not name one letter case: lower-cased, as published scores of CSL are; "
        "for those of LCSTS give --case kept"
    )
    return "lower"


def read_articles(options: RougeOptions, limit: int | None) -> ArticleSet:
    """Return the articles to summarize.

    They are the first `limit` (None: all). The letter case is that of `--case`, or else that of
    published scores of the source. Without `--source` the articles are the test split that belongs
    to the data of the run.
    """
    source = options.source
    inputs = options.input
    if not source:
        assert options.checkpoint is not None
        shards = load_run_shard_set(
            options.checkpoint, hint="name the articles to score with --source NAME --input FILE"
        )
        source, files = find_test_split(shards)
        inputs = tuple(str(file) for file in files)
    articles = read_usable_records(source, inputs, summaries.KIND, limit)
    case = options.case or find_source(source).rouge_case
    return ArticleSet(articles, source, f"{' '.join(inputs)} ({source})", case)


def _prediction_rows(
    loaded: LoadedCheckpoint, articles: Sequence[Summary], answers: Sequence[ModelAnswer]
) -> list[Row]:
    """Return the lines of the predictions file, without scores."""
    titles = [EVALUATION.strip_answer(loaded.template, answer.text) for answer in answers]
    return [
        {
            "input": record.article,
            "reference": record.title,
            "prediction": title,
            "tokens": answer.num_tokens,
            "stopped": answer.has_eos,
            "loops": is_looping(title),
            "trimmed": answer.is_truncated,
        }
        for record, title, answer in zip(articles, titles, answers, strict=True)
    ]


def _score_rows(
    run_label: str,
    rows: list[Row],
    case: LetterCase,
    provenance: Mapping[str, Any],
    device: Any = None,
    beside: Sequence[str] = (),
) -> EvalResult:
    """Score the prediction of each row against its reference by ROUGE, and return the result.

    It has the lines to print, the metrics of all rows, and the rows with their scores. `run_label`
    says what is scored on which files, `case` is the letter case to score in, `provenance` names
    the model and its decoding options, `device` is the torch.device of the model, if any, and
    `beside` names baselines to compare with.
    """
    with progress_bar("scoring", len(rows), "examples") as bar:
        table = RougeTable.from_predictions(
            [row["prediction"] for row in rows],
            [row["reference"] for row in rows],
            case,
            bar.update,
        )
    counts = _count_flags(rows)
    decoding = f", {provenance['decoding']}" if "decoding" in provenance else ""
    lines = [f"{run_label}: {len(rows):,} examples, {CASE_LABELS[case]}{decoding}"]
    lines += table.format_lines()
    for key, count in counts.items():
        lines.append(f"{COUNT_LABELS[key]}: {count:,} of {len(rows):,} ({count / len(rows):.1%})")
    trivial = {name: _compare_with_baseline(name, rows, table, case) for name in beside}
    for name, figures in trivial.items():
        lines.append(
            f"no model, {name}: ROUGE-1 F on characters {format_figure(figures['f'], '.4f')}; "
            f"the model against it {format_figure(figures['difference'], '+.4f')}"
        )
    return EvalResult(
        lines=[*lines, *_format_examples(rows, table)],
        metrics={
            "scored": run_label,
            "examples": len(rows),
            **counts,
            "scores": table.summarize_scores(),
            **({"trivial": {"characters": {"rouge-1": trivial}}} if trivial else {}),
            "case": case,
            "method": describe_method(case),
            "counted_by": scorer_versions(),
        },
        provenance=dict(provenance),
        rows=[
            {**row, "case": case, "scores": table.example_scores(index)}
            for index, row in enumerate(rows)
        ],
        device=device,
    )


def _compare_with_baseline(
    name: str, rows: list[Row], table: RougeTable, case: LetterCase
) -> dict[str, Figure]:
    """Return ROUGE-1 F on characters of a baseline, and by how much `table` is above it.

    The two are `f` and `difference`, each with `mean`, `low` and `high`; the difference is paired
    over the articles of the rows.
    """
    baseline = np.array(
        [
            compute_rouge(
                BASELINES[name](row["input"], row["reference"], case), row["reference"], case=case
            )["1"].f
            for row in rows
        ]
    )
    return {
        key: dict(
            zip(("mean", "low", "high"), bootstrap_mean_interval(values).tolist(), strict=True)
        )
        for key, values in {"f": baseline, "difference": table.rouge_1() - baseline}.items()
    }


def format_figure(figure: Figure, number_format: str) -> str:
    """Return a mean with its interval in a number format such as `.4f`."""
    mean, low, high = (format(figure[key], number_format) for key in ("mean", "low", "high"))
    return f"{mean} ({low} – {high})"


def _count_flags(rows: list[Row]) -> dict[str, int]:
    """Return the number of rows with each flag of COUNT_LABELS.

    A flag that a row lacks is left out: files of other programs need not have it.
    """
    counts = {}
    for key in COUNT_LABELS:
        if all(key in row for row in rows):
            counts[key] = sum(row[key] is True for row in rows)
    return counts


def _format_examples(rows: list[Row], table: RougeTable) -> list[str]:
    """Return the worst and then the best examples, best first, as lines to print."""
    order = table.rank_examples()
    worst = order[:NUM_EXAMPLES_SHOWN]
    # Not taken from the worst, so that none of a few examples is shown twice.
    best = order[NUM_EXAMPLES_SHOWN:][-NUM_EXAMPLES_SHOWN:]
    examples = [("worst", index) for index in worst] + [("best", index) for index in reversed(best)]
    lines = []
    for rank_label, index in examples:
        row = rows[index]
        score = table.example_scores(index)["characters"]["rouge-1"]["f"]
        lines.append(f"{rank_label}, ROUGE-1 F on characters {score:.3f}")
        for label, key in (("article", "input"), ("true", "reference"), ("answer", "prediction")):
            # The files of other programs may lack the article.
            if isinstance(row.get(key), str):
                lines.append(f"  {label:8}{excerpt(row[key])}")
    return lines
