"""`python -m evaluate.rouge`: the ROUGE of a checkpoint's summaries, of a baseline's, or of any file of predictions."""

import argparse
import math
from pathlib import Path
from typing import Any

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import describe, resolve_device
from common.progress import progress
from data.corpora.resolver import test_files
from data.records import Summary
from data.shards import shards_of_run
from evaluate.model_answers import summarise
from evaluate.scores.baselines import BASELINES
from evaluate.cli import answering_parser, load, parse
from evaluate.predictions import MODEL, excerpt, model_of, read_predictions, write_predictions
from evaluate.usable_records import read_records
from evaluate.scores.rouge_table import METHOD, RougeTable, versions
from model.chat_template.template import Template

SHOWN = 3
COUNTED = {"stopped": "stopped by <eos>", "trimmed": "articles trimmed"}
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
    options = _options()
    device = None if options.score or options.baseline else resolve_device(options.device)
    if options.score:
        rows = read_predictions(options.score, ("prediction", "reference"))[: options.limit]
        what, facts = str(options.score), model_of(options.score, rows)
    else:
        source, inputs = (options.source, options.input) if options.source else _test_of(options.checkpoint)
        articles = [each for each in read_records(source, inputs, ("summaries",), options.limit) if isinstance(each, Summary)]
        made = _summaries(options, device, articles) if device else _baseline(options.baseline, articles)
        what, facts, rows = f"{options.baseline or options.checkpoint} on {' '.join(inputs)} ({source})", *made
    decoding = f", {facts['decoding']}" if "decoding" in facts else ""
    with progress("scoring", len(rows), "examples") as bar:
        table = RougeTable.of([row["prediction"] for row in rows], [row["reference"] for row in rows], bar.update)
    counts = _counts(rows)
    print("\n".join([f"{what}: {len(rows):,} examples" + decoding, *table.lines()]))
    for key, count in counts.items():
        print(f"{COUNTED[key]}: {count:,} of {len(rows):,} ({count / len(rows):.1%})")
    _show(rows, table)
    if options.predictions:
        scored = [{**row, "scores": table.example(i)} for i, row in enumerate(rows)]
        write_predictions(options.predictions, scored, {key: facts[key] for key in MODEL if key in facts})
    if options.json:
        write_json(options.json, {**facts, "scored": what, "examples": len(rows), **counts, "scores": table.figures(),
                                  "method": METHOD, "counted_by": versions(), "made": describe(device)})


def _options() -> argparse.Namespace:
    parser = answering_parser("rouge", DESCRIPTION, max_new_tokens=64)
    parser.add_argument("--baseline", choices=tuple(BASELINES), help="score this instead of a model")
    parser.add_argument("--score", type=Path, metavar="FILE.jsonl", help="score the predictions in a file")
    parser.add_argument("--beams", type=int, default=1, help="width of the beam search; 1 is greedy (default: 1)")
    parser.add_argument("--length_penalty", type=float, default=1.0,
                        help="a beam's score is its log-probability / length ** this (default: 1)")
    options = parse(parser)
    if not math.isfinite(options.length_penalty):
        raise UserError(f"--length_penalty {options.length_penalty}: must be finite")
    if options.score and (options.checkpoint or options.baseline or options.source):
        raise UserError("--score scores a file as it is: leave out --checkpoint, --baseline, --source and --input")
    if not options.score and not options.checkpoint and not (options.baseline and options.source):
        raise UserError("say what is scored: --checkpoint RUN, --baseline NAME --source csl --input FILE, or --score FILE")
    return options


def _test_of(run: Path) -> tuple[str, list[str]]:
    """The source and files of the test split that belongs to what a run was trained on."""
    source, files = test_files(shards_of_run(run, "say what to score with --source NAME --input FILE"))
    return source, [str(file) for file in files]


def _baseline(name: str, articles: list[Summary]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [{"input": each.article, "reference": each.title, "prediction": BASELINES[name](each.article, each.title)}
            for each in articles]
    return {"decoding": f"no model: {name}"}, rows


def _summaries(
    options: argparse.Namespace, device: Any, articles: list[Summary]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the checkpoint answers, which it was and how it was asked."""
    loaded = load(options, device)
    template = Template.load(loaded.folder)
    with progress("summarising", len(articles), "articles") as bar:
        answers = summarise(
            loaded.model, loaded.tokenizer, template, [each.article for each in articles],
            max_new_tokens=options.max_new_tokens, beams=options.beams, length_penalty=options.length_penalty,
            batch=options.batch, on_progress=bar.update,
        )
    search = "greedy" if options.beams == 1 else f"{options.beams} beams, length penalty {options.length_penalty:g}"
    rows = [
        {"input": each.article, "reference": each.title, "prediction": answer.text, "tokens": answer.tokens,
         "stopped": answer.stopped, "trimmed": answer.trimmed}
        for each, answer in zip(articles, answers, strict=True)
    ]
    return {**loaded.facts, "decoding": f"{search}, at most {options.max_new_tokens} tokens"}, rows


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many answers stopped by themselves, and how many articles were trimmed, where the rows say so."""
    return {key: sum(row[key] is True for row in rows) for key in COUNTED if all(key in row for row in rows)}


def _show(rows: list[dict[str, Any]], table: RougeTable) -> None:
    """Print the worst and the best examples."""
    order = table.order()
    for title, chosen in (("worst", order[:SHOWN]), ("best", order[SHOWN:][-SHOWN:][::-1])):
        for index in chosen:
            row, score = rows[index], table.example(index)["characters"]["rouge-1"]["f"]
            print(f"{title}, ROUGE-1 F on characters {score:.3f}")
            for label, key in (("article", "input"), ("true", "reference"), ("answer", "prediction")):
                if isinstance(row.get(key), str):
                    print(f"  {label:8}{excerpt(row[key])}")


if __name__ == "__main__":
    run_main(main)
