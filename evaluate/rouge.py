"""`python -m evaluate.rouge`: the ROUGE of a checkpoint's summaries, of a baseline's, or of any file of predictions."""

import argparse
import math
from pathlib import Path
from typing import Any

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import collect_environment, resolve_device
from common.progress import progress_bar
from data.corpora.resolver import find_test_split
from data.kinds import summaries
from data.records import Summary
from data.shards import load_run_shard_set
from evaluate.cli import build_generation_parser, load_checkpoint, parse_eval_options
from evaluate.kinds.summaries import summarize_articles
from evaluate.predictions import (
    MODEL_FIELDS,
    excerpt,
    read_predictions,
    resolve_model_fields,
    write_predictions,
)
from evaluate.scores.baselines import BASELINES
from evaluate.scores.rouge_table import METHOD, RougeTable, scorer_versions
from evaluate.usable_records import read_usable_records
from model.chat_template.template import Template

NUM_EXAMPLES_SHOWN = 3
COUNT_LABELS = {"stopped": "stopped by <eos>", "trimmed": "articles trimmed"}
DESCRIPTION = """Score summaries against true titles: ROUGE-1, -2 and -L, precision, recall and F, on characters (the
convention of published CSL and LCSTS figures) and on jieba words, the mean over examples with its 95 % interval.

What is scored is one of
  --checkpoint RUN             what it answers when asked for the title of each article; the whole answer counts
  --baseline NAME              first20: the article's first 20 characters; first_sentence; best_sentence: the sentence
                               most like the title (it looks at the title)
  --score FILE.jsonl           lines of {"prediction": "…", "reference": "…"}, from anywhere, without a model
on the articles of --source and --input, by default the test split that belongs to what the run was trained on."""


def main() -> None:
    """Entry point."""
    options = _parse_options()
    device = None if options.score or options.baseline else resolve_device(options.device)
    if options.score:
        rows = read_predictions(options.score, ("prediction", "reference"))[: options.limit]
        run_label, provenance = str(options.score), resolve_model_fields(options.score, rows)
    else:
        source, inputs = (
            (options.source, options.input)
            if options.source
            else _find_test_split(options.checkpoint)
        )
        articles = read_usable_records(source, inputs, summaries.KIND, options.limit)
        provenance_and_rows = (
            _generate_summaries(options, device, articles)
            if device
            else _generate_baseline(options.baseline, articles)
        )
        run_label, provenance, rows = (
            f"{options.baseline or options.checkpoint} on {' '.join(inputs)} ({source})",
            *provenance_and_rows,
        )
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
    if options.json:
        write_json(
            options.json,
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


def _parse_options() -> argparse.Namespace:
    parser = build_generation_parser("rouge", DESCRIPTION, max_new_tokens=64)
    parser.add_argument(
        "--baseline", choices=tuple(BASELINES), help="score this instead of a model"
    )
    parser.add_argument(
        "--score", type=Path, metavar="FILE.jsonl", help="score the predictions in a file"
    )
    parser.add_argument(
        "--beams", type=int, default=1, help="width of the beam search; 1 is greedy (default: 1)"
    )
    parser.add_argument(
        "--length_penalty",
        type=float,
        default=1.0,
        help="a beam's score is its log-probability / length ** this (default: 1)",
    )
    options = parse_eval_options(parser)
    if not math.isfinite(options.length_penalty):
        raise UserError(f"--length_penalty {options.length_penalty}: must be finite")
    if options.score and (options.checkpoint or options.baseline or options.source):
        raise UserError(
            "--score scores a file as it is: leave out --checkpoint, --baseline, --source and --input"
        )
    if not options.score and not options.checkpoint and not (options.baseline and options.source):
        raise UserError(
            "say what is scored: --checkpoint RUN, --baseline NAME --source csl --input FILE, or --score FILE"
        )
    return options


def _find_test_split(run: Path) -> tuple[str, list[str]]:
    """The source and files of the test split that belongs to what a run was trained on."""
    source, files = find_test_split(
        load_run_shard_set(run, "say what to score with --source NAME --input FILE")
    )
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
    options: argparse.Namespace, device: Any, articles: list[Summary]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the checkpoint answers, which it was and how it was asked."""
    loaded = load_checkpoint(options, device)
    template = Template.load(loaded.folder)
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


if __name__ == "__main__":
    run_main(main)
