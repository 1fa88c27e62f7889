"""`python -m evaluate`: everything that fits a run, each measure by its own command, and a report of them all."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from common.errors import UserError, run_main
from common.options import Parser
from data.catalog import test_files
from data.shards import ShardSet, shard_sets_of_run

DESCRIPTION = """Measure a run with every command that fits it, and write a report.

A pretraining run: evaluate.perplexity and evaluate.trigram. A fine-tuned one: evaluate.perplexity on its dev split, then on
the test split of its data evaluate.rouge (summaries) or evaluate.reading (conversations about a reference), and
evaluate.repetition; a mix is measured part by part. Each command is printed; its figures go into RUN/results/, the report
into RUN/report.md and .html."""
# Sources whose conversations are about a reference passage.
READING = ("redgpt",)


def main() -> None:
    """Entry point."""
    parser = Parser(prog="python -m evaluate", description=DESCRIPTION,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run")
    parser.add_argument("--limit", type=int, help="test records answered (default all)")
    options = parser.parse_args()
    if not (options.checkpoint / "run.json").is_file():
        raise UserError(f"{options.checkpoint} is no run: for other checkpoints use the single commands, such as python -m "
                        "evaluate.perplexity")
    results = options.checkpoint / "results"
    results.mkdir(exist_ok=True)
    sets = shard_sets_of_run(options.checkpoint, "measure it with the single commands, such as python -m evaluate.perplexity "
                             "--source NAME --input FILE")
    for shards in sets:
        part = shards.folder.name if len(sets) > 1 else ""
        for words in commands(options.checkpoint, shards, options.limit, part):
            _run([*words, "--json", str(results / f"{words[0].rpartition('.')[2]}{'-' if part else ''}{part}.json")])
    _run(["evaluate.report", str(options.checkpoint), "--out", str(options.checkpoint / "report")])


def commands(run: Path, shards: ShardSet, limit: int | None, part: str = "") -> list[list[str]]:
    """The modules to run with their arguments (without --json). `part` is what to call one set of a mix."""
    checkpoint = ["--checkpoint", str(run)]
    held_out = shards.split("validation").total_tokens > 1
    if not held_out:
        print(f"{shards.folder} holds nothing out: no perplexity", flush=True)
    found = [["evaluate.perplexity", *checkpoint, *(["--data", str(shards.folder)] if part else [])]] if held_out else []
    if shards.kind == "documents":
        # In a mix it is replay, which the pretraining run was measured on.
        return [*found, *([] if part else [["evaluate.trigram", *checkpoint]])]
    try:
        source, files = test_files(shards)
    except UserError as error:
        print(f"{error}; only the dev split is measured", flush=True)
        return found
    data = ["--source", source, "--input", *map(str, files), *(["--limit", str(limit)] if limit else [])]
    if shards.kind == "summaries":
        predictions = str(run / "results" / f"predictions{'-' if part else ''}{part}.jsonl")
        return [*found, ["evaluate.rouge", *checkpoint, *data, "--predictions", predictions],
                ["evaluate.repetition", "--score", predictions]]
    reading = [["evaluate.reading", *checkpoint, *data]] if source in READING else []
    return [*found, *reading, ["evaluate.repetition", *checkpoint, *data]]


def _run(words: list[str]) -> None:
    print(f"\n$ python -m {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *words]).returncode
    if code:
        # It has said itself what was wrong.
        sys.exit(code)


if __name__ == "__main__":
    run_main(main)
