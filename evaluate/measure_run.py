"""Measure a run with each command that fits it, and write a report."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from data.corpora.resolver import find_test_split
from data.shards import ShardSet, load_run_shard_sets
from evaluate.kinds import find_evaluation
from evaluate.options import EvaluateOptions


def measure_run(options: EvaluateOptions) -> None:
    """Run each command that fits the run; write its results and its report."""
    checkpoint = options.checkpoint or _find_newest_run()
    run = resolve_run(checkpoint)
    advice = (
        "measure it with the single commands, such as python -m evaluate.perplexity --source NAME "
        "--input FILE"
    )
    shard_sets = load_run_shard_sets(run, advice)
    if not shard_sets:
        raise UserError(f"{run} was imported and has no data of its own to measure it on: {advice}")
    results = run / "results"
    results.mkdir(exist_ok=True)
    model = [
        "--checkpoint",
        str(checkpoint),
        *(["--device", options.device] if options.device != "auto" else []),
        *(["--quantize", options.quantize] if options.quantize else []),
    ]
    limit = ["--limit", str(options.limit)] if options.limit is not None else []
    is_fine_tuned = any(not shards.kind.is_text for shards in shard_sets)
    for shards, part in zip(shard_sets, result_suffixes(shard_sets), strict=True):
        for words in build_commands(
            run, shards, part, model_options=model, limit_options=limit, is_fine_tuned=is_fine_tuned
        ):
            _run_command(
                [*words, "--json", str(results / f"{words[0].rpartition('.')[2]}{part}.json")]
            )
    _run_command(["evaluate.report", str(run), "--out", str(run / "report")])


def resolve_run(checkpoint: Path) -> Path:
    """Return the run of a checkpoint, for its figures. Raises UserError for any other folder."""
    from model.checkpoint import locate

    if (checkpoint / "run.json").is_file():
        return checkpoint
    run, step = checkpoint.parent.parent, locate.read_step(checkpoint)
    if step is not None and (run / "run.json").is_file():
        print(
            f"step {step:,} of {run} is measured: what is in {run / 'results'} is replaced by its "
            "figures",
            flush=True,
        )
        return run
    if not checkpoint.exists():
        suggestion = locate.suggest_run(checkpoint)
        advice = (
            f"did you mean {suggestion}?"
            if suggestion
            else "name a run with RUN=runs/NAME (--checkpoint runs/NAME)"
        )
        raise UserError(f"{checkpoint} does not exist: {advice}")
    raise UserError(
        f"{checkpoint} is neither a run nor one of its steps: for other checkpoints use the single "
        "commands, such "
        "as python -m evaluate.perplexity"
    )


def _find_newest_run() -> Path:
    from model.checkpoint import locate

    runs = locate.list_runs()
    if not runs:
        raise UserError(
            f"there is no run with a checkpoint in {locate.RUNS_DIR}/: make pretrain first, or "
            "name a run with "
            "RUN=… (--checkpoint …)"
        )
    print(f"{runs[0]} is measured, the run that was saved last", flush=True)
    return runs[0]


def result_suffixes(shard_sets: Sequence[ShardSet]) -> list[str]:
    """Return the suffix of the result files of each set: none, or the name of its folder."""
    if len(shard_sets) == 1:
        return [""]
    names = [shards.folder.name for shards in shard_sets]
    numbered = len(set(names)) < len(names)
    return [f"-{number}-{name}" if numbered else f"-{name}" for number, name in enumerate(names, 1)]


def build_commands(
    run: Path,
    shards: ShardSet,
    suffix: str,
    *,
    model_options: list[str],
    limit_options: list[str],
    is_fine_tuned: bool,
) -> list[list[str]]:
    """Return the modules to run for one shard set of a run, with their arguments except --json.

    `suffix` ends the names of the set's files. `model_options` name the checkpoint and how it
    computes, `limit_options` how many records are measured. Text in a fine-tuned run is replay.
    """
    evaluation = find_evaluation(shards.kind)
    commands = evaluation.validation_commands(
        ["--data", str(shards.folder)], model_options, limit_options, is_fine_tuned=is_fine_tuned
    )
    if shards.load_split("validation").num_tokens < 2:
        missing = ", ".join(f"no {module.rpartition('.')[2]}" for module, *_ in commands)
        print(f"{shards.folder} holds nothing out: {missing}", flush=True)
        commands = []
    if shards.kind.is_text:
        return commands
    try:
        source, files = find_test_split(shards)
    except UserError as error:
        print(f"{error}; only the dev split is measured", flush=True)
        return commands
    test_options = ["--source", source, "--input", *map(str, files), *limit_options]
    predictions = str(run / "results" / f"predictions{suffix}.jsonl")
    return commands + evaluation.test_commands(source, test_options, model_options, predictions)


def _run_command(arguments: list[str]) -> None:
    print(f"\n$ python -m {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *arguments]).returncode
    if code:
        # It has said itself what was wrong.
        sys.exit(code)
