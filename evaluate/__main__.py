"""`python -m evaluate`: everything that fits a run, each measure by its own command, and a report of them all."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError, run_main
from common.options import Parser
from data.corpora.resolver import test_files
from data.shards import ShardSet, shard_sets_of_run
from evaluate.cli import add_computing, check_counts

DESCRIPTION = """Measure a run with every command that fits it, and write a report.

A pretraining run: evaluate.perplexity and evaluate.trigram. A fine-tuned one: evaluate.perplexity on its dev split, then on
the test split of its data evaluate.rouge (summaries) or evaluate.reading (conversations about a reference), and
evaluate.repetition. A mix is measured part by part: each part of a pretraining mix beside a trigram of that part alone,
replay in a fine-tuning mix without one. Each command is printed; its figures go into RUN/results/, the report into
RUN/report.md and .html; where a step is named, they are that step's, in the folders of its run."""
# Sources whose conversations are about a reference passage.
READING = ("redgpt",)


def main() -> None:
    """Entry point."""
    parser = Parser(prog="python -m evaluate", description=DESCRIPTION,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a run, or one of its steps (default: the run in runs/ that was saved "
                        "last)")
    parser.add_argument("--limit", type=int, help="only the first so many records of each dev and test split (default: all; "
                        "text is always scored whole)")
    add_computing(parser)
    options = parser.parse_args()
    check_counts(options)
    checkpoint = options.checkpoint or _newest()
    run = run_of(checkpoint)
    cure = "measure it with the single commands, such as python -m evaluate.perplexity --source NAME --input FILE"
    sets = shard_sets_of_run(run, cure)
    if not sets:
        raise UserError(f"{run} was imported and has no data of its own to measure it on: {cure}")
    results = run / "results"
    results.mkdir(exist_ok=True)
    model = ["--checkpoint", str(checkpoint), *(["--device", options.device] if options.device != "auto" else []),
             *(["--quantize", options.quantize] if options.quantize else [])]
    limit = ["--limit", str(options.limit)] if options.limit is not None else []
    tuned = any(shards.kind != "documents" for shards in sets)
    for shards, part in zip(sets, parts(sets), strict=True):
        for words in commands(run, shards, part, model=model, limit=limit, tuned=tuned):
            _run([*words, "--json", str(results / f"{words[0].rpartition('.')[2]}{part}.json")])
    _run(["evaluate.report", str(run), "--out", str(run / "report")])


def run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint is, or is a step of: where its figures go. UserError for any other folder."""
    from model.checkpoint import locate

    if (checkpoint / "run.json").is_file():
        return checkpoint
    run, step = checkpoint.parent.parent, locate.step_of(checkpoint)
    if step is not None and (run / "run.json").is_file():
        print(f"step {step:,} of {run} is measured: what is in {run / 'results'} is replaced by its figures", flush=True)
        return run
    if not checkpoint.exists():
        meant = locate.same_name(checkpoint)
        cure = f"did you mean {meant}?" if meant else "name a run with RUN=runs/NAME (--checkpoint runs/NAME)"
        raise UserError(f"{checkpoint} does not exist: {cure}")
    raise UserError(f"{checkpoint} is neither a run nor one of its steps: for other checkpoints use the single commands, such "
                    "as python -m evaluate.perplexity")


def _newest() -> Path:
    from model.checkpoint import locate

    runs = locate.saved_runs()
    if not runs:
        raise UserError(f"there is no run with a checkpoint in {locate.RUNS}/: make pretrain first, or name a run with "
                        "RUN=… (--checkpoint …)")
    print(f"{runs[0]} is measured, the run that was saved last", flush=True)
    return runs[0]


def parts(sets: Sequence[ShardSet]) -> list[str]:
    """How the names of the results of each set end: in a mix with its folder's name, numbered where two are the same."""
    if len(sets) == 1:
        return [""]
    names = [shards.folder.name for shards in sets]
    numbered = len(set(names)) < len(names)
    return [f"-{number}-{name}" if numbered else f"-{name}" for number, name in enumerate(names, 1)]


def commands(
    run: Path, shards: ShardSet, part: str, *, model: list[str], limit: list[str], tuned: bool
) -> list[list[str]]:
    """The modules to run for one set that a run was trained on, with their arguments but for --json.

    `part` ends the names of the set's files. `model` and `limit` are the options that say what is measured and on how many
    records; text is scored whole, beside a trigram unless the run was fine-tuned (`tuned`), where text is replay.
    """
    data, text = ["--data", str(shards.folder)], shards.kind == "documents"
    found = []
    if shards.split("validation").total_tokens > 1:
        found.append(["evaluate.perplexity", *model, *data, *([] if text else limit)])
        found += [["evaluate.trigram", *data]] if text and not tuned else []
    else:
        print(f"{shards.folder} holds nothing out: no perplexity{', no trigram' if text else ''}", flush=True)
    if text:
        return found
    try:
        source, files = test_files(shards)
    except UserError as error:
        print(f"{error}; only the dev split is measured", flush=True)
        return found
    test = ["--source", source, "--input", *map(str, files), *limit]
    if shards.kind == "summaries":
        predictions = str(run / "results" / f"predictions{part}.jsonl")
        return [*found, ["evaluate.rouge", *model, *test, "--predictions", predictions],
                ["evaluate.repetition", "--score", predictions]]
    reading = [["evaluate.reading", *model, *test]] if source in READING else []
    return [*found, *reading, ["evaluate.repetition", *model, *test]]


def _run(words: list[str]) -> None:
    print(f"\n$ python -m {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *words]).returncode
    if code:
        # It has said itself what was wrong.
        sys.exit(code)


if __name__ == "__main__":
    run_main(main)
