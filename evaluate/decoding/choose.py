"""Measure decoding settings on the dev split of a run, and store the best one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from common.errors import UserError
from common.machine import resolve_device
from common.run_layout import DECODING_FILE, find_run
from data.corpora.held_out import held_out_files
from data.kinds import find_kind, summaries
from data.records import Summary
from data.shards import ShardSet, load_run_shard_sets
from data.sources import find_source
from data.sources.base import LetterCase
from evaluate.decoding.options import DecodingOptions
from evaluate.decoding.settings import Decoding
from evaluate.decoding.stored import read_decoding_file, write_run_decoding
from evaluate.input_records import iter_usable_records, read_split_records
from evaluate.kinds.question_sets import Figure
from evaluate.kinds.summaries import EVALUATION, TitleQuestion
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.measures.rouge import answer_resumably, format_figure
from evaluate.metrics.baselines import BASELINES, TRIVIAL_METHODS
from evaluate.metrics.proportion import Proportion
from evaluate.metrics.repetition import is_looping
from evaluate.metrics.rouge import ROUGE_VARIANTS, bootstrap_mean_interval
from evaluate.metrics.rouge_drop import score_f
from evaluate.metrics.rouge_table import CASE_LABELS, find_rouge_case
from evaluate.partial_results import PartialResults, partial_results
from evaluate.result import EvalResult, report_result


@dataclass(frozen=True)
class DevSet:
    """The dev records of one shard set that are in no test split."""

    shards: ShardSet
    records: list[Summary]
    case: LetterCase


def choose_decoding(options: DecodingOptions) -> None:
    """Measure all settings, report them, and store the best in the run.

    Raises UserError if the checkpoint is not that of a run, if there are no dev records, if the
    records of `--source` have no titles, or if the file of the run is damaged.
    """
    run = find_run(options.checkpoint)
    if run is None:
        raise UserError(
            f"--checkpoint {options.checkpoint} is no run, which the setting would be stored in: "
            "name a run, or one of its steps"
        )
    if options.source is not None and find_source(options.source).kind != summaries.KIND.name:
        raise UserError(f"--source {options.source}: its records have no titles")
    if options.store:
        read_decoding_file(run)  # Better refused now than after the measurements.
    dev_sets = _read_dev_sets(options)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    results = partial_results(options.json_file, depends_on)
    figures = _measure_settings(options, loaded, dev_sets, results)
    chosen = choose_best(figures)
    record: dict[str, Any] = {
        "settings": figures,
        "chosen": chosen,
        "data": {
            str(dev_set.shards.folder): {
                "set": dev_set.shards.fingerprint,
                "dev_records": len(dev_set.records),
                "case": dev_set.case,
            }
            for dev_set in dev_sets
        },
        "trivial": _score_trivial_methods(dev_sets),
        "max_new_tokens": options.max_new_tokens,
    }
    lines = _format_lines(options, record)
    lines.append(f"best on the dev split: {figures[chosen]['description']}")
    if options.store:
        decoding = options.decodings[chosen]
        write_run_decoding(run, decoding, {**loaded.provenance, **record}, options.source)
        lines.append(f"stored in {run / DECODING_FILE}: {_describe_use(run, options.source)}")
    report_result(EvalResult(lines, record, loaded.provenance, device=device), options.json_file)


def choose_best(figures: Sequence[dict[str, Any]]) -> int:
    """Return the index of the setting to store; 0 is greedy.

    1. The setting with the highest ROUGE-1 F, if the 95 % interval of its difference to greedy lies
       above 0: what takes several times as long has to be better.
    2. Otherwise, of the settings that loop less than greedy, stop at least as often, and whose
       interval does not lie below 0, the one with the highest ROUGE-1 F.
    3. Otherwise greedy.
    """

    def rouge(index: int) -> float:
        mean: float = figures[index]["rouge"]["1"]["mean"]
        return mean

    best = max(range(len(figures)), key=rouge)
    if figures[best]["difference"]["1"]["low"] > 0:
        return best
    greedy = figures[0]
    cleaner = [
        index
        for index, setting in enumerate(figures)
        if setting["loops"]["rate"] < greedy["loops"]["rate"]
        and setting["stopped"]["rate"] >= greedy["stopped"]["rate"]
        and setting["difference"]["1"]["high"] >= 0
    ]
    return max(cleaner, key=rouge, default=0)


def _describe_use(run: Path, source: str | None) -> str:
    """Return which texts `evaluate.rouge` uses a choice for that was stored for `source`."""
    if source is not None:
        return f"evaluate.rouge uses it from now on for texts of {source}"
    others = " and ".join(read_decoding_file(run)["sources"])
    exception = f", but for texts of {others}, which have a choice of their own" if others else ""
    return f"evaluate.rouge uses it from now on{exception}"


def _read_dev_sets(options: DecodingOptions) -> list[DevSet]:
    """Return the dev records to ask for. Raises UserError if there are none."""
    if options.data:
        candidates = [ShardSet.open(options.data)]
    else:
        candidates = load_run_shard_sets(options.checkpoint)
    test_articles = _read_test_articles()
    dev_sets = []
    for shards in candidates:
        if shards.kind is not summaries.KIND:
            continue
        limit = options.limit or len(shards.load_records("validation"))
        records = cast("list[Summary]", read_split_records(shards, "validation", limit))
        unseen = [record for record in records if record.article not in test_articles]
        num_in_test = len(records) - len(unseen)
        if num_in_test:
            print(f"{shards.folder}: {num_in_test:,} dev articles left out, a test split has them")
        if unseen:
            dev_sets.append(DevSet(shards, unseen, find_rouge_case(shards)))
    if not dev_sets:
        names = " ".join(str(shards.folder) for shards in candidates) or "the run"
        raise UserError(
            f"{names}: no dev records of summaries that no test split has: nothing to choose by; "
            "name a shard set with --data"
        )
    return dev_sets


def _read_test_articles() -> set[str]:
    """Return the articles of the test splits of all known corpora that are here."""
    articles: set[str] = set()
    for source, path in held_out_files(("test",)):
        if find_kind(find_source(source).kind) is summaries.KIND:
            records = iter_usable_records(source, [str(path)])
            articles.update(cast(Summary, record).article for record in records)
    return articles


def _measure_settings(
    options: DecodingOptions,
    loaded: LoadedCheckpoint,
    dev_sets: Sequence[DevSet],
    results: PartialResults,
) -> list[dict[str, Any]]:
    """Return the figures of each setting, over the records of all sets together."""
    figures = []
    greedy_scores = None
    for decoding in options.decodings:
        scores, flags = _measure_setting(options, loaded, dev_sets, results, decoding)
        if greedy_scores is None:
            greedy_scores = scores
        figures.append(
            {
                "description": decoding.describe(),
                "rouge": _name_figures(scores),
                "difference": _name_figures(scores - greedy_scores),
                **{
                    name: Proportion(float(values.sum()), len(values)).to_json()
                    for name, values in zip(("stopped", "loops"), flags.T, strict=True)
                },
            }
        )
    return figures


def _measure_setting(
    options: DecodingOptions,
    loaded: LoadedCheckpoint,
    dev_sets: Sequence[DevSet],
    results: PartialResults,
    decoding: Decoding,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ROUGE F on characters of each record, float64[n, variants], and its flags[n, 2].

    The variants are those of ROUGE_VARIANTS; the flags are 1 if the answer was stopped by <eos>,
    and if it loops.
    """
    scores = []
    flags = []
    for dev_set in dev_sets:
        answers = answer_resumably(
            loaded,
            [TitleQuestion(record.article) for record in dev_set.records],
            results,
            name=f"{decoding.describe()}, {CASE_LABELS[dev_set.case]}",
            decoding=decoding,
            case=dev_set.case,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
        )
        for record, answer in zip(dev_set.records, answers, strict=True):
            title = EVALUATION.strip_answer(loaded.template, answer.text)
            scores.append(score_f(title, record.title, dev_set.case))
            flags.append((float(answer.has_eos), float(is_looping(title))))
    return np.array(scores), np.array(flags)


def _score_trivial_methods(dev_sets: Sequence[DevSet]) -> dict[str, dict[str, Figure]]:
    """Return ROUGE F of each of the TRIVIAL_METHODS."""
    figures = {}
    for method in TRIVIAL_METHODS:
        scores = [
            score_f(
                BASELINES[method](record.article, record.title, dev_set.case),
                record.title,
                dev_set.case,
            )
            for dev_set in dev_sets
            for record in dev_set.records
        ]
        figures[method] = _name_figures(np.array(scores))
    return figures


def _name_figures(scores: np.ndarray) -> dict[str, Figure]:
    """Return mean and interval of scores[n, variants] by the names in ROUGE_VARIANTS."""
    triples = bootstrap_mean_interval(scores).T.tolist()
    return {
        variant: dict(zip(("mean", "low", "high"), triple, strict=True))
        for variant, triple in zip(ROUGE_VARIANTS, triples, strict=True)
    }


def _format_lines(options: DecodingOptions, record: dict[str, Any]) -> list[str]:
    """Return the table of the settings as lines to print."""
    num_records = sum(data["dev_records"] for data in record["data"].values())
    lines = [
        f"{options.checkpoint}: {num_records:,} dev records of {', '.join(record['data'])}, F on "
        f"characters, at most {options.max_new_tokens} tokens",
        f"{'ROUGE-1 (95 % interval)':24}  ROUGE-2  ROUGE-L  {'against greedy':27}  stopped  loops  "
        "setting",
    ]
    rows = [(f"no model, {name}", {"rouge": rouge}) for name, rouge in record["trivial"].items()]
    rows += [(figures["description"], figures) for figures in record["settings"]]
    for label, figures in rows:
        rouge = figures["rouge"]
        rates = ["", ""]
        difference = ""
        if "difference" in figures:
            rates = [f"{figures[key]['rate']:.1%}" for key in ("stopped", "loops")]
            difference = format_figure(figures["difference"]["1"], "+.4f")
        lines.append(
            f"{format_figure(rouge['1'], '.4f'):24}  {rouge['2']['mean']:7.4f}  "
            f"{rouge['l']['mean']:7.4f}  {difference:27}  {rates[0]:>7}  {rates[1]:>5}  {label}"
        )
    return lines
