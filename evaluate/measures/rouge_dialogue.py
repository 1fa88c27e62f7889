"""ROUGE of summaries inside a dialogue: other words, chat before the request, lead-ins.

The same articles are asked for
- by the canonical request, which is that of `evaluate.rouge`,
- by the canonical request after 1 to 4 turns of chat,
- by the canonical request, with the answer begun by each lead-in that the model was taught,
- by the request that training would draw for the record,
- by every phrasing that training knows; of fewer records, because the phrasings are hundreds.

Each answer is scored whole, and without the lead-in that it begins with, if the model was taught
lead-ins. The headline is ROUGE-1 F on characters without the lead-in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from common.machine import resolve_device
from common.progress import progress_bar
from data.batching.summary_prompts import (
    ALL_REQUESTS,
    EVAL_REQUEST,
    LEAD_INS,
    REQUESTS_BY_TEMPLATE,
    SummaryRequest,
    sample_requests,
    strip_lead_in,
)
from data.records import Summary
from data.sources.base import LetterCase
from evaluate.kinds.summaries import EVALUATION, TitleQuestion
from evaluate.load_model import load_checkpoint
from evaluate.measures.rouge import (
    answer_resumably,
    describe_decoding,
    open_partial_results,
    read_articles,
)
from evaluate.metrics.baselines import BASELINES, TRIVIAL_METHODS
from evaluate.metrics.repetition import is_looping
from evaluate.metrics.rouge import NUM_RESAMPLES
from evaluate.metrics.rouge_drop import (
    ANSWER_TEXTS,
    FLAGS,
    ConditionScores,
    score_f,
    summarize_f_scores,
    summarize_flags,
)
from evaluate.metrics.rouge_table import CASE_LABELS, scorer_versions
from evaluate.model_answer import ModelAnswer
from evaluate.options import DIALOGUE_PHRASING_RECORDS, DIALOGUE_RECORDS, RougeOptions
from evaluate.result import EvalResult, Row, report_result
from model.chat_template.template import Template

# Everyday (question, answer) turns; a condition has the first few of them before the request.
CHAT_TURNS = (
    ("你好。", "你好，有什么可以帮你？"),
    ("我刚吃完早饭。", "吃过早饭，上午会更有精神。"),
    ("今天想看一点书。", "看书很好，慢慢看就行。"),
    ("谢谢你。", "不客气。"),
)
CANONICAL = "canonical request"
DRAWN = "request drawn as in training"
EVERY_PHRASING = "every phrasing, mean"
# With fewer records, intervals are too wide, or too narrow by accident, to conclude anything.
MIN_RECORDS_TO_CONCLUDE = 10
# Stands for the article in a request that is printed.
ARTICLE_SLOT = "{article}"


@dataclass(frozen=True)
class Condition:
    """A way to ask for the titles of the first records."""

    name: str
    questions: list[TitleQuestion]


def run_rouge_dialogue(options: RougeOptions) -> None:
    """Ask a checkpoint for titles under all conditions; report the result."""
    report_result(evaluate_dialogue(options), options.json_file, options.predictions)


def evaluate_dialogue(options: RougeOptions) -> EvalResult:
    """Ask for titles under all conditions, and score the answers.

    Raises UserError if the checkpoint or the articles cannot be read, or if a request does not fit
    the context.
    """
    # `RougeOptions.find_conflicts` requires it with --dialogue.
    assert options.checkpoint is not None
    device = resolve_device(options.device)
    records, _, data_label, case = read_articles(options, options.limit or DIALOGUE_RECORDS)
    loaded = load_checkpoint(options.checkpoint, options, device)
    articles = [record.article for record in records]
    conditions = build_conditions(articles, loaded.template)
    num_phrasing_records = options.phrasing_records or DIALOGUE_PHRASING_RECORDS
    phrasings = build_phrasings(articles[:num_phrasing_records])
    asked = [*conditions, *phrasings]
    answers = answer_resumably(
        loaded,
        [question for condition in asked for question in condition.questions],
        open_partial_results(
            options.json_file or options.predictions,
            loaded,
            options.decoding,
            case,
            options.max_new_tokens,
        ),
        decoding=options.decoding,
        case=case,
        max_new_tokens=options.max_new_tokens,
        batch=options.batch,
    )
    rows = _score_answers(asked, records, answers, loaded.template, case)
    scores = _split_by_condition(rows, asked)
    metrics = _compute_metrics(
        dict(zip([condition.name for condition in conditions], scores, strict=False)),
        scores[len(conditions) :],
    )
    metrics["trivial"] = _score_trivial_methods(records, case, scores[0])
    run_label = f"{options.checkpoint} on {data_label}"
    decoding = describe_decoding(options.decoding, options.max_new_tokens)
    headline = (
        f"{run_label}: {len(records):,} records under {len(conditions)} conditions, the first "
        f"{len(phrasings[0].questions):,} by each of {len(phrasings)} phrasings; "
        f"{CASE_LABELS[case]}, {decoding}"
    )
    return EvalResult(
        lines=[
            headline,
            f"(the first {DIALOGUE_RECORDS} records, unless --limit gives a number; phrasings: the "
            f"first {DIALOGUE_PHRASING_RECORDS}, unless --phrasing_records does)",
            *_format_report(metrics, has_lead_ins=loaded.template.lead_ins),
        ],
        metrics={
            "scored": run_label,
            "records": len(records),
            "chat_turns": CHAT_TURNS,
            "lead_ins_taught": loaded.template.lead_ins,
            **metrics,
            "case": case,
            "method": (
                "F on characters without white space, an n-gram counts once (rouge-chinese); drop: "
                "the canonical request's score minus the condition's; 95 % intervals: percentile "
                f"bootstrap over records, {NUM_RESAMPLES:,} resamples, seed 0, of the drop paired; "
                "Wilson's of rates"
            ),
            "counted_by": scorer_versions(),
        },
        provenance={**loaded.provenance, "decoding": decoding},
        rows=rows,
        device=device,
    )


def build_conditions(articles: Sequence[str], template: Template) -> list[Condition]:
    """Return the conditions under which all articles are asked for, the canonical one first.

    There are conditions with a lead-in only if the model was taught lead-ins.
    """
    conditions = [Condition(CANONICAL, [TitleQuestion(article) for article in articles])]
    for count in range(1, len(CHAT_TURNS) + 1):
        name = f"after {count} {'turn' if count == 1 else 'turns'} of chat"
        turns = CHAT_TURNS[:count]
        conditions.append(
            Condition(name, [TitleQuestion(article, turns=turns) for article in articles])
        )
    for lead_in in LEAD_INS if template.lead_ins else ():
        name = f"answer begun with {lead_in}"
        conditions.append(
            Condition(name, [TitleQuestion(article, lead_in=lead_in) for article in articles])
        )
    # As training with seed 0 draws them in its first epoch.
    drawn = sample_requests(0, 0, np.arange(len(articles))).tolist()
    conditions.append(
        Condition(
            DRAWN,
            [
                TitleQuestion(article, ALL_REQUESTS[index])
                for article, index in zip(articles, drawn, strict=True)
            ],
        )
    )
    return conditions


def build_phrasings(articles: Sequence[str]) -> list[Condition]:
    """Return a condition for each of ALL_REQUESTS, in their order, without chat and lead-in."""
    return [
        Condition(
            f"phrasing: {write_request(request)}",
            [TitleQuestion(article, request) for article in articles],
        )
        for request in ALL_REQUESTS
    ]


def write_request(request: SummaryRequest) -> str:
    """Return a request on one line, with ARTICLE_SLOT where the article stands."""
    return " ".join(f"{request.prefix}{ARTICLE_SLOT}{request.suffix}".split())


def _score_answers(
    conditions: Sequence[Condition],
    records: Sequence[Summary],
    answers: Sequence[ModelAnswer],
    template: Template,
    case: LetterCase,
) -> list[Row]:
    """Return the lines of the predictions file: an answer each, by condition and then by record.

    `answers` are in the same order. "answer" is the whole answer, "prediction" is it without the
    lead-in; "lead_in" says whether it begins with a lead-in, taught or not.
    """
    rows: list[Row] = []
    remaining = iter(answers)
    with progress_bar("scoring", len(answers), "answers") as bar:
        for condition in conditions:
            # The questions are those of the first records.
            for record, question in zip(records, condition.questions, strict=False):
                answer = next(remaining)
                title = EVALUATION.strip_answer(template, answer.text)
                whole_scores = score_f(answer.text, record.title, case)
                stripped_scores = whole_scores
                if title != answer.text:
                    stripped_scores = score_f(title, record.title, case)
                rows.append(
                    {
                        "condition": condition.name,
                        "request": write_request(question.request),
                        "turns": len(question.turns),
                        "input": record.article,
                        "reference": record.title,
                        "answer": answer.text,
                        "prediction": title,
                        "tokens": answer.num_tokens,
                        "stopped": answer.has_eos,
                        "loops": is_looping(answer.text),
                        "lead_in": strip_lead_in(answer.text) != answer.text,
                        "trimmed": answer.is_truncated,
                        "case": case,
                        # In the order of ANSWER_TEXTS and ROUGE_VARIANTS.
                        "f_scores": [whole_scores, stripped_scores],
                    }
                )
                bar.update()
    return rows


def _split_by_condition(
    rows: Sequence[Row], conditions: Sequence[Condition]
) -> list[ConditionScores]:
    """Return the scores of each condition, whose rows follow one another."""
    counts = [len(condition.questions) for condition in conditions]
    scores = []
    for end, count in zip(accumulate(counts), counts, strict=True):
        condition_rows = rows[end - count : end]
        scores.append(
            ConditionScores(
                np.array([row["f_scores"] for row in condition_rows]),
                np.array([[float(row[flag]) for flag in FLAGS] for row in condition_rows]),
            )
        )
    return scores


def _compute_metrics(
    conditions: dict[str, ConditionScores], phrasings: Sequence[ConditionScores]
) -> dict[str, Any]:
    """Return the figures of each condition, of each template of phrasings and of each phrasing.

    `phrasings` are in the order of ALL_REQUESTS. The mean over all of them is among the conditions.
    """
    canonical = conditions[CANONICAL].f_scores
    templates = []
    for end, requests in zip(
        accumulate(map(len, REQUESTS_BY_TEMPLATE)), REQUESTS_BY_TEMPLATE, strict=True
    ):
        templates.append(ConditionScores.mean(phrasings[end - len(requests) : end]))
    template_figures = _summarize(templates, canonical)
    for figures, requests in zip(template_figures, REQUESTS_BY_TEMPLATE, strict=True):
        figures["example"] = write_request(requests[0])
        figures["phrasings"] = len(requests)
    phrasing_figures = _summarize(phrasings, canonical)
    for figures, request in zip(phrasing_figures, ALL_REQUESTS, strict=True):
        figures["request"] = write_request(request)
    condition_figures = dict(
        zip(conditions, _summarize(list(conditions.values()), canonical), strict=True)
    )
    [condition_figures[EVERY_PHRASING]] = _summarize([ConditionScores.mean(phrasings)], canonical)
    return {
        "conditions": condition_figures,
        "templates": template_figures,
        "phrasings": phrasing_figures,
    }


def _summarize(
    conditions: Sequence[ConditionScores], canonical: np.ndarray
) -> list[dict[str, Any]]:
    """Return the figures of each condition, with the drop against the scores `canonical`."""
    all_figures = summarize_f_scores([scores.f_scores for scores in conditions], canonical)
    for figures, scores in zip(all_figures, conditions, strict=True):
        rates = summarize_flags(scores.flags)
        figures |= {flag: rate.to_json() for flag, rate in rates.items()}
    return all_figures


def _score_trivial_methods(
    records: Sequence[Summary], case: LetterCase, canonical: ConditionScores
) -> dict[str, Any]:
    """Return the figures of each of the TRIVIAL_METHODS; its drop is the canonical lead over it."""
    f_scores = []
    for method in TRIVIAL_METHODS:
        summarize = BASELINES[method]
        method_scores = []
        for record in records:
            summary = summarize(record.article, record.title, case)
            # Without a model there is no lead-in: both texts are the same.
            method_scores.append([score_f(summary, record.title, case)] * len(ANSWER_TEXTS))
        f_scores.append(np.array(method_scores))
    all_figures = summarize_f_scores(f_scores, canonical.f_scores)
    return dict(zip(TRIVIAL_METHODS, all_figures, strict=True))


def _format_report(metrics: dict[str, Any], *, has_lead_ins: bool) -> list[str]:
    """Return the tables of scores, of rates and of phrasings, as lines to print."""
    conditions = metrics["conditions"]
    lines = [
        "ROUGE F without the taught lead-in ('whole': with it); drop: canonical minus condition, "
        "on the same records"
    ]
    if not has_lead_ins:
        lines.append("the model was taught no lead-ins: nothing is removed from its answers")
    lines.append(
        f"{'records':>7}  {'ROUGE-1 (95 % interval)':24}  {'ROUGE-2':7}  {'ROUGE-L':7}  "
        f"{'drop of ROUGE-1 (95 % interval)':31}  whole"
    )
    rows = [*conditions.items()]
    rows += [(f"no model, {method}", figures) for method, figures in metrics["trivial"].items()]
    for name, figures in rows:
        scores = figures["rouge"]["stripped"]
        drop = "" if name == CANONICAL else _format_drop(figures)
        lines.append(
            f"{figures['records']:7,}  {_format_interval(scores['rouge-1'], '.4f'):24}  "
            f"{scores['rouge-2']['mean']:7.4f}  {scores['rouge-l']['mean']:7.4f}  {drop:31}  "
            f"{figures['rouge']['whole']['rouge-1']['mean']:.4f}  {name}"
        )
    lines.append(_format_verdict(conditions))
    lines.append(f"{'stopped by <eos>':24}{'loops':24}{'begins with a lead-in':24}articles trimmed")
    for name, figures in conditions.items():
        rates = "".join(f"{_format_rate(figures[flag]):24}" for flag in FLAGS)
        lines.append(f"{rates}{name}")
    return lines + _format_phrasings(metrics)


def _format_verdict(conditions: dict[str, Any]) -> str:
    """Return a line that names the conditions with a drop beyond its interval."""
    if conditions[CANONICAL]["records"] < MIN_RECORDS_TO_CONCLUDE:
        return f"fewer than {MIN_RECORDS_TO_CONCLUDE} records: too few to say what is worse"
    dropping = [name for name, figures in conditions.items() if _is_dropping(figures)]
    if not dropping:
        return "below the canonical request beyond the interval: none"
    return f"below the canonical request beyond the interval: {', '.join(dropping)}"


def _format_phrasings(metrics: dict[str, Any]) -> list[str]:
    """Return a table with a row for each template of phrasings, and below it its phrasings."""
    phrasings = metrics["phrasings"]
    num_records = phrasings[EVAL_REQUEST]["records"]
    lines = [f"phrasings, {num_records:,} records"]
    if num_records >= MIN_RECORDS_TO_CONCLUDE:
        num_dropping = sum(map(_is_dropping, phrasings))
        # All phrasings but the canonical one; above 97.5 % of the resamples lie 2.5 %.
        num_by_chance = 0.025 * (len(phrasings) - 1)
        lines[0] += (
            f": {num_dropping} of {len(phrasings)} drop beyond their interval, where chance alone "
            f"would make about {num_by_chance:.0f}"
        )
    lines.append(f"ROUGE-1  {'drop (95 % interval)':27}  stopped  loops  lead-in  phrasing")
    remaining = iter(phrasings)
    for template in metrics["templates"]:
        label = f"{template['phrasings']} phrasings such as {template['example']}"
        lines.append(_format_phrasing_row(template, label))
        for _ in range(template["phrasings"]):
            phrasing = next(remaining)
            lines.append(_format_phrasing_row(phrasing, f"  {phrasing['request']}"))
    return lines


def _format_phrasing_row(figures: dict[str, Any], label: str) -> str:
    rates = [figures[flag]["rate"] for flag in ("stopped", "loops", "lead_in")]
    return (
        f"{figures['rouge']['stripped']['rouge-1']['mean']:7.4f}  {_format_drop(figures):27}  "
        f"{rates[0]:7.0%}  {rates[1]:5.0%}  {rates[2]:7.0%}  {label}"
    )


def _is_dropping(figures: dict[str, Any]) -> bool:
    """Return whether ROUGE-1 without lead-in is below the canonical one beyond the interval."""
    has_enough_records = figures["records"] >= MIN_RECORDS_TO_CONCLUDE
    return has_enough_records and bool(figures["drop"]["stripped"]["rouge-1"]["low"] > 0)


def _format_drop(figures: dict[str, Any]) -> str:
    return _format_interval(figures["drop"]["stripped"]["rouge-1"], "+.4f")


def _format_interval(figure: dict[str, float], number_format: str) -> str:
    mean, low, high = (format(figure[key], number_format) for key in ("mean", "low", "high"))
    return f"{mean} ({low} – {high})"


def _format_rate(figure: dict[str, float]) -> str:
    mean, low, high = (100 * figure[key] for key in ("rate", "low", "high"))
    return f"{mean:.1f} % ({low:.1f} – {high:.1f})"
