"""ROUGE of a checkpoint's summaries, of a baseline's, or of a file of predictions."""

from collections.abc import Sequence
from typing import Any

from common.files import write_json
from common.machine import collect_environment, resolve_device
from common.progress import progress_bar
from data.corpora.resolver import find_test_split
from data.records import Summary
from data.shards import load_run_shard_set
from evaluate.load_model import load_checkpoint
from evaluate.model_answers import summarize_articles
from evaluate.options import RougeOptions
from evaluate.predictions import (
    MODEL_FIELDS,
    excerpt,
    read_predictions,
    resolve_model_fields,
    write_predictions,
)
from evaluate.scores.baselines import BASELINES
from evaluate.scores.rouge_table import METHOD, RougeTable, scorer_versions
from evaluate.usable_records import read_records
from model.chat_template.template import load_template

NUM_EXAMPLES_SHOWN = 3
COUNT_LABELS = {"stopped": "stopped by <eos>", "trimmed": "articles trimmed"}


def run_rouge(options: RougeOptions) -> None:
    """Score summaries and print the table; write the files that the options name."""
    device = None if options.score or options.baseline else resolve_device(options.device)
    provenance: dict[str, Any]
    if options.score:
        rows = read_predictions(options.score, ("prediction", "reference"))[: options.limit]
        run_label, provenance = str(options.score), resolve_model_fields(options.score, rows)
    else:
        source, inputs = _resolve_inputs(options)
        articles = [
            each
            for each in read_records(source, inputs, ("summaries",), options.limit)
            if isinstance(each, Summary)
        ]
        run_label = f"{options.baseline or options.checkpoint} on {' '.join(inputs)} ({source})"
        if options.baseline:
            provenance, rows = _generate_baseline(options.baseline, articles)
        else:
            provenance, rows = _generate_summaries(options, device, articles)
    decoding = f", {provenance['decoding']}" if "decoding" in provenance else ""
    with progress_bar("scoring", len(rows), "examples") as bar:
        table = RougeTable.from_predictions(
            [row["prediction"] for row in rows], [row["reference"] for row in rows], bar.update
        )
    counts = _count_flags(rows)
    print("\n".join([f"{run_label}: {len(rows):,} examples" + decoding, *table.format_lines()]))
    for key, count in counts.items():
        print(f"{COUNT_LABELS[key]}: {count:,} of {len(rows):,} ({count / len(rows):.1%})")
    _print_examples(rows, table)
    if options.predictions:
        scored_rows = [{**row, "scores": table.example_scores(i)} for i, row in enumerate(rows)]
        write_predictions(
            options.predictions,
            scored_rows,
            {key: provenance[key] for key in MODEL_FIELDS if key in provenance},
        )
    if options.json_file:
        write_json(
            options.json_file,
            {
                **provenance,
                "scored": run_label,
                "examples": len(rows),
                **counts,
                "scores": table.summarize_scores(),
                "method": METHOD,
                "counted_by": scorer_versions(),
                "made": collect_environment(device),
            },
        )


def _resolve_inputs(options: RougeOptions) -> tuple[str, Sequence[str]]:
    """Return the source and the files to score, by default the test split of the run's data."""
    if options.source:
        return options.source, options.input
    assert options.checkpoint is not None
    shards = load_run_shard_set(
        options.checkpoint, "say what to score with --source NAME --input FILE"
    )
    source, files = find_test_split(shards)
    return source, [str(file) for file in files]


def _generate_baseline(
    name: str, articles: list[Summary]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [
        {
            "input": each.article,
            "reference": each.title,
            "prediction": BASELINES[name](each.article, each.title),
        }
        for each in articles
    ]
    return {"decoding": f"no model: {name}"}, rows


def _generate_summaries(
    options: RougeOptions, device: Any, articles: list[Summary]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the checkpoint answers, which it was and how it was asked."""
    assert options.checkpoint is not None
    loaded = load_checkpoint(options.checkpoint, options.quantize, device)
    template = load_template(loaded.folder)
    with progress_bar("summarising", len(articles), "articles") as bar:
        answers = summarize_articles(
            loaded.model,
            loaded.tokenizer,
            template,
            [each.article for each in articles],
            max_new_tokens=options.max_new_tokens,
            beams=options.beams,
            length_penalty=options.length_penalty,
            batch=options.batch,
            on_progress=bar.update,
        )
    search = (
        "greedy"
        if options.beams == 1
        else f"{options.beams} beams, length penalty {options.length_penalty:g}"
    )
    rows = [
        {
            "input": each.article,
            "reference": each.title,
            "prediction": answer.text,
            "tokens": answer.num_tokens,
            "stopped": answer.has_eos,
            "trimmed": answer.is_truncated,
        }
        for each, answer in zip(articles, answers, strict=True)
    ]
    return {
        **loaded.provenance,
        "decoding": f"{search}, at most {options.max_new_tokens} tokens",
    }, rows


def _count_flags(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many answers stopped by themselves, and how many articles were trimmed, where the rows say so."""
    return {
        key: sum(row[key] is True for row in rows)
        for key in COUNT_LABELS
        if all(key in row for row in rows)
    }


def _print_examples(rows: list[dict[str, Any]], table: RougeTable) -> None:
    """Print the worst and the best examples."""
    order = table.rank_examples()
    for title, chosen in (
        ("worst", order[:NUM_EXAMPLES_SHOWN]),
        ("best", order[NUM_EXAMPLES_SHOWN:][-NUM_EXAMPLES_SHOWN:][::-1]),
    ):
        for index in chosen:
            row, score = rows[index], table.example_scores(index)["characters"]["rouge-1"]["f"]
            print(f"{title}, ROUGE-1 F on characters {score:.3f}")
            for label, key in (
                ("article", "input"),
                ("true", "reference"),
                ("answer", "prediction"),
            ):
                if isinstance(row.get(key), str):
                    print(f"  {label:8}{excerpt(row[key])}")
